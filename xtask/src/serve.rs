//! `cargo xtask bench serve`: the online service under load, beside transformers behind a small Python server. Same
//! machine, model, texts and callers, level by level in turn.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    bench::{difference, median, model, python_of},
    steps::{cargo, root, run, target},
};

/// Callers at the same time, and calls in all.
const LEVELS: [(usize, usize); 3] = [(1, 8), (8, 32), (64, 128)];

/// Callers that come at once, ten times as many as the widest level; each calls once.
const OVERLOAD: usize = 640;

/// Arguments of `bench serve`.
#[derive(Args)]
pub struct Serve {
    /// Shape of the model (roberta-base, roberta-large), or `demo`: the demo's scorer, without a peer
    #[arg(long, default_value = "roberta-base")]
    shape: String,
    /// Times that every level runs
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Threads on both sides
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Profile that Cappy is built with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Python with tests/bench/requirements.txt installed [default: a virtual environment made below target/]
    #[arg(long, env = "CAPPY_BENCH_PYTHON")]
    python: Option<PathBuf>,
}

/// A server that ends with the measurement.
struct Server {
    name: &'static str,
    kind: &'static str,
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serve {
    /// Builds, starts both sides, measures.
    pub fn run(self) -> Result<()> {
        let python = if self.shape == "demo" { None } else { Some(python_of(self.python.as_deref())?) };
        let model = match &python {
            None => "demo".to_owned(),
            Some(python) => with_tokenizer(&model(python, &self.shape)?)?.display().to_string(),
        };
        let profile = ["--profile", &self.profile];
        // The programs, the backend's library and the callers in one build: they share their dependencies.
        let all =
            ["build", "--locked", "--quiet", "--workspace", "--lib", "--bins", "--example", "bench_serve"];
        run("build", cargo(all).args(profile))?;
        let built = target().join(if self.profile == "dev" { "debug" } else { &self.profile });
        let callers = built.join("examples/bench_serve");

        let scratch = tempdir(&target().join("bench"))?;
        let ours = self.cappy(&built, &scratch)?;
        let mut servers = vec![ours];
        if let Some(python) = &python {
            servers.push(self.peer(python, &model)?);
        }
        let mut levels = Vec::new();
        for (count, calls) in LEVELS {
            let mut sides: Vec<Vec<Value>> = servers.iter().map(|_| Vec::new()).collect();
            for _ in 0..self.rounds.max(1) {
                for (server, side) in servers.iter().zip(&mut sides) {
                    let measured = measure(&callers, server, &model, count, calls)?;
                    eprintln!("{count} callers: {} {}", server.name, told(&measured));
                    side.push(measured);
                }
            }
            levels.push(level(count, &servers, &sides));
        }
        let calm = memory(&servers[0]);
        let overload = measure(&callers, &servers[0], &model, OVERLOAD, OVERLOAD)?;
        eprintln!("{OVERLOAD} callers: {} {}", servers[0].name, told(&overload));
        let after = measure(&callers, &servers[0], &model, 1, 4)?;
        let report = json!({
            "shape": self.shape, "threads": self.threads, "profile": self.profile, "levels": levels,
            "overload": {
                "callers": OVERLOAD, "answered": overload["answered"], "turned_away": overload["turned_away"],
                "p99": overload["p99"], "peak_mib": memory(&servers[0]), "peak_mib_before": calm,
                "answered_afterwards": after["answered"],
            },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        if servers[0].child.try_wait()?.is_some() {
            bail!("the worker did not survive");
        }
        fs::remove_dir_all(scratch)?;
        Ok(())
    }

    fn cappy(&self, built: &Path, scratch: &Path) -> Result<Server> {
        let mut command = Command::new(built.join("cappy-worker"));
        command.args(["run-device", "--device", "cpu", "--inference-listen", "127.0.0.1:0", "--plugin-path"]);
        command.arg(built).arg("--cache-dir").arg(scratch.join("cache"));
        command.env("CAPPY_DATA_DIR", scratch.join("data")).env("HF_HUB_OFFLINE", "1");
        command.env("RAYON_NUM_THREADS", self.threads.to_string()).env_remove("CAPPY_COORDINATOR");
        let child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the worker")?;
        let mut server = Server { name: "cappy", kind: "grpc", child, address: String::new() };
        let log = server.child.stderr.take().context("the worker has no log")?;
        server.address = announced(log, "the inference service listens", |line| {
            let value: Value = serde_json::from_str(line).ok()?;
            let address = value.pointer("/fields/address").or(value.get("address"))?;
            Some(address.as_str()?.to_owned())
        })?;
        Ok(server)
    }

    fn peer(&self, python: &Path, model: &str) -> Result<Server> {
        let mut command = Command::new(python);
        command.arg(root().join("tests/bench/serve_transformers.py")).args(["--model", model]);
        command.args(["--threads", &self.threads.to_string()]);
        let child = command.stdout(Stdio::piped()).spawn().context("cannot start the peer")?;
        let mut server =
            Server { name: "transformers + PyTorch f32", kind: "http", child, address: String::new() };
        let output = server.child.stdout.take().context("the peer has no output")?;
        server.address =
            announced(output, "listening on ", |line| Some(line.strip_prefix("listening on ")?.to_owned()))?;
        Ok(server)
    }
}

/// The model with the tokenizer of the worker's own tests beside it: both sides read the same texts.
fn with_tokenizer(model: &Path) -> Result<PathBuf> {
    let tokenizer = root().join("worker/tests/fixtures/roberta/tokenizer.json");
    fs::copy(tokenizer, model.join("tokenizer.json")).context("cannot put the tokenizer beside the model")?;
    Ok(model.to_owned())
}

fn tempdir(parent: &Path) -> Result<PathBuf> {
    let dir = parent.join(format!("serve-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Reads until the line that tells the address; what follows is read and dropped, so that the server never waits.
fn announced(
    output: impl std::io::Read + Send + 'static,
    words: &str,
    address: impl Fn(&str) -> Option<String>,
) -> Result<String> {
    let mut lines = BufReader::new(output).lines();
    for line in lines.by_ref() {
        let line = line?;
        if line.contains(words) {
            let address = address(&line).with_context(|| format!("no address in `{line}`"))?;
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
        eprintln!("    {line}");
    }
    bail!("it ended before it said `{words}`")
}

fn measure(callers: &Path, server: &Server, model: &str, count: usize, calls: usize) -> Result<Value> {
    let mut command = Command::new(callers);
    command.args([server.kind, &server.address, model, &count.to_string(), &calls.to_string()]);
    let output = command.output().context("cannot start the callers")?;
    if !output.status.success() {
        bail!("{}: {}", server.name, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| format!("not JSON: {text}"))
}

fn told(measured: &Value) -> String {
    let number = |name: &str| measured[name].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:.1} calls/s, p50 {:.0} ms, p99 {:.0} ms, {} turned away",
        number("calls_per_second"),
        1e3 * number("p50"),
        1e3 * number("p99"),
        measured["turned_away"]
    )
}

/// Medians of a level's rounds, and how many times better than each peer.
fn level(callers: usize, servers: &[Server], sides: &[Vec<Value>]) -> Value {
    let of = |side: usize, name: &str| {
        median(&sides[side].iter().filter_map(|round| round[name].as_f64()).collect::<Vec<_>>())
    };
    let list: Vec<Value> = servers
        .iter()
        .enumerate()
        .map(|(side, server)| {
            let mut value = json!({
                "name": server.name, "calls_per_second": of(side, "calls_per_second"), "p50": of(side, "p50"),
                "p99": of(side, "p99"), "turned_away": of(side, "turned_away"),
            });
            if side > 0 {
                let flat = |side: usize| {
                    let lists = sides[side][0]["scores"].as_array().cloned().unwrap_or_default();
                    Value::from(
                        lists.iter().filter_map(Value::as_array).flatten().cloned().collect::<Vec<_>>(),
                    )
                };
                value["throughput_ratio"] = (of(0, "calls_per_second") / of(side, "calls_per_second")).into();
                value["p50_ratio"] = (of(side, "p50") / of(0, "p50")).into();
                value["p99_ratio"] = (of(side, "p99") / of(0, "p99")).into();
                value["worst_score_difference"] = json!(difference(&flat(0), &flat(side)));
            }
            value
        })
        .collect();
    json!({ "callers": callers, "sides": list })
}

/// Most memory that a process has held so far, in MiB, where the system tells.
fn memory(server: &Server) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}
