//! `cargo xtask bench`: this project and a peer on the same machine, model and rows, in turn (ours, theirs, ours,
//! theirs, ...), so that a drift of the machine hits both. Reports each side's median and the ratio pair by pair.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    serve::Serve,
    steps::{cargo, root, run, target},
};

/// Arguments of `bench`.
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Pairs scored by RoBERTa's shape, against transformers + PyTorch with sorted batches, and padded as the seed does
    Score(Sides),
    /// 17 candidates and their likelihoods by FLAN-T5's shape, against transformers' `generate`
    Generate(Sides),
    /// The online service under load: 1, 8 and 64 callers beside a Python server, then ten times as many
    Serve(Serve),
}

#[derive(Args)]
struct Sides {
    /// Shape of the model (roberta-base, roberta-large, distilbert, modernbert-base, deberta-v3-base; flan-t5-small,
    /// flan-t5-base) [default: the workload's own]
    #[arg(long)]
    shape: Option<String>,
    /// Times that both sides run
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keep every N-th of the sorted row lengths
    #[arg(long, default_value_t = 4)]
    stride: usize,
    /// Take each of these lengths so often
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Threads on both sides
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Python with tests/bench/requirements.txt installed [default: a virtual environment made below target/]
    #[arg(long, env = "CAPPY_BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Where both sides compute: cpu, or cuda:0 (libtorch takes CUDA from the Python's own torch)
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format of both sides: f32, bf16
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// The backend that is measured: candle, libtorch
    #[arg(long, default_value = "candle", value_parser = ["candle", "libtorch"])]
    backend: String,
    /// Prompts generated for together, on both sides
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Leave out the seed's padded way (score only; it is slow)
    #[arg(long)]
    no_seed: bool,
}

/// One program of a comparison; prints one JSON line with `seconds`.
struct Side {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
}

impl Bench {
    /// Prepares models and programs, then measures.
    pub fn run(self) -> Result<()> {
        let (sides, kind, shape, example, lengths, peer) = match self.workload {
            Workload::Serve(serve) => return serve.run(),
            Workload::Score(sides) => (
                sides,
                "roberta",
                "roberta-large",
                "bench_score",
                "lengths_score.json",
                "score_transformers.py",
            ),
            Workload::Generate(sides) => (
                sides,
                "t5",
                "flan-t5-small",
                "bench_generate",
                "lengths_generate.json",
                "generate_transformers.py",
            ),
        };
        let shape = sides.shape.clone().unwrap_or_else(|| shape.to_owned());
        let python = python_of(sides.python.as_deref())?;
        let model = model(&python, &shape)?;
        let package = format!("cappy-plugin-{}", sides.backend);
        // Examples of one workspace share a folder.
        let example = match sides.backend.as_str() {
            "libtorch" => format!("libtorch_{example}"),
            _ => example.to_owned(),
        };
        let build =
            ["build", "--release", "--locked", "--quiet", "--package", &package, "--example", &example];
        let gpu = sides.device != "cpu";
        let features: &[&str] = match sides.backend.as_str() {
            "libtorch" => &["--features", "torch"],
            _ if gpu => &["--features", "cuda"],
            _ => &[],
        };
        run("build", cargo(build).args(features))?;
        let lengths = root().join("tests/bench").join(lengths);
        let rows = target().join("bench").join(format!("rows-{kind}-{}-{}.json", sides.stride, sides.repeat));
        let mut make_rows = Command::new(&python);
        make_rows.arg(root().join("tests/bench/workload.py")).arg(kind).arg(&lengths);
        run("rows", make_rows.args([sides.stride, sides.repeat].map(|n| n.to_string())).arg(&rows))?;
        let arguments: Vec<String> = [
            ("--model", model.display().to_string()),
            ("--lengths", lengths.display().to_string()),
            ("--stride", sides.stride.to_string()),
            ("--repeat", sides.repeat.to_string()),
            ("--threads", sides.threads.to_string()),
            ("--device", sides.device.clone()),
            ("--dtype", sides.dtype.clone()),
            ("--batch", sides.batch.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        let program = target().join("release/examples").join(&example);
        let ours = {
            let (model, rows, threads) = (model.clone(), rows.clone(), sides.threads.to_string());
            let torch = if gpu { Some(torch_libraries(&python)?) } else { None };
            let place = [sides.device.clone(), sides.dtype.clone(), sides.batch.to_string()];
            let command = move || {
                let mut command = Command::new(&program);
                command.env("RAYON_NUM_THREADS", &threads).env("OMP_NUM_THREADS", &threads);
                if let Some(torch) = &torch {
                    // What a worker does by --torch-lib-dir.
                    command.env("LD_LIBRARY_PATH", torch).env("LD_PRELOAD", torch.join("libtorch_cuda.so"));
                }
                command.arg(&model).arg(&rows).args(&place);
                command
            };
            Side { name: "cappy", command: Box::new(command) }
        };
        let script = root().join("tests/bench").join(peer);
        let peer_side = |name, extra: &'static [&'static str]| {
            let (python, script, arguments) = (python.clone(), script.clone(), arguments.clone());
            Side {
                name,
                command: Box::new(move || {
                    let mut command = Command::new(&python);
                    command.arg(&script).args(&arguments).args(extra);
                    command
                }),
            }
        };
        let mut theirs = vec![peer_side("transformers + PyTorch", &[])];
        if peer.starts_with("score") && !sides.no_seed {
            theirs.push(peer_side("the seed's way (padded to 512)", &["--padding", "seed"]));
        }
        let report = compare(&ours, &theirs, sides.rounds)?;
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({
                "shape": shape, "threads": sides.threads, "device": sides.device, "dtype": sides.dtype,
                "backend": sides.backend, "sides": report,
            }))?
        );
        Ok(())
    }
}

/// `torch/lib` of a Python's PyTorch.
fn torch_libraries(python: &Path) -> Result<PathBuf> {
    let tell = "import torch; print(torch.__path__[0])";
    let output = Command::new(python).args(["-c", tell]).output().context("cannot start Python")?;
    if !output.status.success() {
        bail!("{} has no torch: {}", python.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("lib"))
}

fn compare(ours: &Side, theirs: &[Side], rounds: usize) -> Result<Vec<Value>> {
    let mut our_seconds = Vec::new();
    let mut worst_difference = vec![None; theirs.len()];
    let mut their_seconds = vec![Vec::new(); theirs.len()];
    for round in 1..=rounds {
        let (mine, our_scores) = measure(ours)?;
        eprintln!("round {round}: {} {mine:.2} s", ours.name);
        our_seconds.push(mine);
        for ((side, seconds), worst) in theirs.iter().zip(&mut their_seconds).zip(&mut worst_difference) {
            let (other, their_scores) = measure(side)?;
            *worst = difference(&our_scores, &their_scores);
            eprintln!("round {round}: {} {other:.2} s, ratio {:.2}", side.name, other / mine);
            seconds.push(other);
        }
    }
    let mut report =
        vec![json!({ "name": ours.name, "median_seconds": median(&our_seconds), "seconds": our_seconds })];
    for ((side, seconds), worst) in theirs.iter().zip(&their_seconds).zip(worst_difference) {
        let ratios: Vec<f64> = seconds.iter().zip(&our_seconds).map(|(other, mine)| other / mine).collect();
        report.push(json!({
            "name": side.name,
            "median_seconds": median(seconds),
            "seconds": seconds,
            "times_as_fast_as_this": median(&ratios),
            "worst_score_difference": worst,
        }));
    }
    Ok(report)
}

/// The largest difference of two lists of scores, where both sides have one.
pub fn difference(ours: &Value, theirs: &Value) -> Option<f64> {
    let (ours, theirs) = (ours.as_array()?, theirs.as_array()?);
    let pairs = ours.iter().zip(theirs).map(|(a, b)| Some((a.as_f64()? - b.as_f64()?).abs()));
    pairs.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
}

/// Seconds, and scores where the side prints them.
fn measure(side: &Side) -> Result<(f64, Value)> {
    let output = (side.command)().output().with_context(|| format!("cannot start {}", side.name))?;
    if !output.status.success() {
        bail!("{}: {}\n{}", side.name, output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let value: Value =
        serde_json::from_str(line).with_context(|| format!("{}: not JSON: {line}", side.name))?;
    let seconds =
        value["seconds"].as_f64().with_context(|| format!("{}: no `seconds` in {line}", side.name))?;
    Ok((seconds, value["scores"].clone()))
}

/// NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The peers' Python: the one that is given, or one made below the target folder.
pub fn python_of(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(python) = given {
        return Ok(python.to_owned());
    }
    let home = target().join("bench/python");
    let python = home.join("bin/python");
    if !home.join("ready").exists() {
        let base = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        run("make a virtual environment", Command::new(base).args(["-m", "venv"]).arg(&home))?;
        let requirements = root().join("tests/bench/requirements.txt");
        run(
            "install the peers (about 5 GB)",
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--requirement"])
                .arg(requirements),
        )?;
        std::fs::write(home.join("ready"), "")?;
    }
    Ok(python)
}

/// The folder of a random model of this shape.
pub fn model(python: &Path, shape: &str) -> Result<PathBuf> {
    let directory = target().join("bench/models").join(shape);
    if !directory.join("model.safetensors").exists() {
        let script = root().join("tests/bench/make_models.py");
        run(&format!("make a random {shape}"), Command::new(python).arg(script).arg(shape).arg(&directory))?;
    }
    Ok(directory)
}
