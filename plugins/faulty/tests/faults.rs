//! Each fault arrives on the host's side as what it should, linked in; those that end a process, in a child.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cappy_plugin_abi::random::key_of;
use cappy_plugin_abi::{
    Backend, Code, Control, Decoding, EncodingId, Failure, Generator, LoadRequest, Method, MinLengthRule,
    Scorer, TokenRows, Trainer, Unattended, builtin,
};
use cappy_plugin_faulty::Faulty;

struct Bench {
    backend: Arc<dyn Backend>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        cappy_plugin_echo::write_model(dir.path(), 100, 0, 0.5).expect("writable");
        Self { backend: builtin(Faulty::new()).expect("describes itself"), dir }
    }

    fn dir(&self) -> &str {
        self.dir.path().to_str().expect("a UTF-8 path")
    }

    fn request(&self, fault: &str) -> LoadRequest {
        LoadRequest {
            model_dir: self.dir().into(),
            config_json: std::fs::read_to_string(self.dir.path().join("config.json")).expect("readable"),
            device: "cpu".into(),
            dtype: "f32".into(),
            options_json: serde_json::json!({ "fault": fault }).to_string(),
        }
    }

    fn scorer(&self, fault: &str) -> Box<dyn Scorer> {
        self.backend.load_scorer(&self.request(fault)).expect("loads")
    }

    fn generator(&self, fault: &str) -> (Box<dyn Generator>, EncodingId) {
        let mut generator = self.backend.load_generator(&self.request(fault)).expect("loads");
        let encoding = generator.encode(rows(2).view(), &Unattended).unwrap_or(EncodingId(0));
        (generator, encoding)
    }

    fn trainer(&self, fault: &str) -> Box<dyn Trainer> {
        self.backend.load_trainer(&self.request(fault)).expect("loads")
    }
}

fn rows(count: usize) -> TokenRows {
    let mut rows = TokenRows::new();
    for i in 0..count as u32 {
        rows.push(&[i + 3, 7]);
    }
    rows
}

const BEAM: Decoding = Decoding {
    key: 1,
    method: Method::Beam { num_beams: 1, length_penalty: 1.0, early_stopping: true },
    num_samples: 1,
    min_length: 0,
    max_length: 8,
    min_length_rule: MinLengthRule::Flax,
};

type Call = fn(&Bench, &str) -> Result<(), Failure>;

fn generate(bench: &Bench, fault: &str) -> Result<(), Failure> {
    let (mut generator, encoding) = bench.generator(fault);
    let keys = [key_of("a"), key_of("b")];
    let result = generator.generate(encoding, &[BEAM], 1, &keys, &Unattended).map(drop);
    again(result, || generator.generate(encoding, &[BEAM], 1, &keys, &Unattended).map(drop))
}

fn likelihood(bench: &Bench, fault: &str) -> Result<(), Failure> {
    let (mut generator, encoding) = bench.generator(fault);
    let targets = rows(2);
    let result = generator.log_likelihood(encoding, targets.view(), &[0, 1], &Unattended).map(drop);
    again(result, || generator.log_likelihood(encoding, targets.view(), &[0, 1], &Unattended).map(drop))
}

fn score(bench: &Bench, fault: &str) -> Result<(), Failure> {
    let mut scorer = bench.scorer(fault);
    let result = scorer.score(rows(2).view(), &Unattended).map(drop);
    again(result, || scorer.score(rows(2).view(), &Unattended).map(drop))
}

/// After a panic the model refuses to go on.
fn again(result: Result<(), Failure>, mut call: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    if let Err(failure) = &result
        && failure.message.contains("panicked")
    {
        let refusal = call().expect_err("the model is broken");
        assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal}");
        assert!(refusal.message.contains("load the model again"), "{refusal}");
    }
    result
}

fn with_trainer(
    bench: &Bench,
    fault: &str,
    call: fn(&mut dyn Trainer, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut trainer = bench.trainer(fault);
    let result = call(trainer.as_mut(), bench.dir());
    again(result, || call(trainer.as_mut(), bench.dir()))
}

fn accumulate(trainer: &mut dyn Trainer) -> Result<f32, Failure> {
    trainer.accumulate(rows(2).view(), &[0.0, 1.0], 0, &Unattended)
}

const CALLS: [(&str, Call); 15] = [
    ("load_scorer", |bench, fault| bench.backend.load_scorer(&bench.request(fault)).map(drop)),
    ("load_generator", |bench, fault| bench.backend.load_generator(&bench.request(fault)).map(drop)),
    ("load_trainer", |bench, fault| bench.backend.load_trainer(&bench.request(fault)).map(drop)),
    ("info", |bench, fault| bench.backend.load_scorer(&bench.request(fault)).map(drop)),
    ("score", score),
    ("encode", |bench, fault| {
        let mut generator = bench.backend.load_generator(&bench.request(fault))?;
        let result = generator.encode(rows(2).view(), &Unattended).map(drop);
        again(result, || generator.encode(rows(2).view(), &Unattended).map(drop))
    }),
    ("generate", generate),
    ("log_likelihood", likelihood),
    ("forget", |bench, fault| {
        let (mut generator, encoding) = bench.generator(fault);
        generator.forget(encoding);
        let refusal = generator.encode(rows(2).view(), &Unattended).expect_err("broken by `forget`");
        assert_eq!(refusal.code, Code::FailedPrecondition);
        Err(Failure::internal(refusal.message))
    }),
    ("accumulate", |bench, fault| with_trainer(bench, fault, |trainer, _| accumulate(trainer).map(drop))),
    ("update", |bench, fault| {
        with_trainer(bench, fault, |trainer, _| {
            accumulate(trainer)?;
            trainer.update(0.1).map(drop)
        })
    }),
    ("score", |bench, fault| {
        with_trainer(bench, fault, |trainer, _| trainer.score(rows(2).view(), &Unattended).map(drop))
    }),
    ("save_model", |bench, fault| with_trainer(bench, fault, |trainer, dir| trainer.save_model(dir))),
    ("save_checkpoint", |bench, fault| {
        with_trainer(bench, fault, |trainer, dir| trainer.save_checkpoint(dir))
    }),
    ("load_checkpoint", |bench, fault| {
        with_trainer(bench, fault, |trainer, dir| trainer.load_checkpoint(dir))
    }),
];

#[test]
fn a_panic_in_any_method_is_a_failure_with_its_message() {
    let bench = Bench::new();
    for (method, call) in CALLS {
        let failure = call(&bench, &format!("{method}:panic")).expect_err(method);
        assert_eq!(failure.code, Code::Internal, "{method}: {failure}");
        let message = format!("the backend panicked in {method}: {method} panics as planned");
        assert!(failure.message.starts_with(&message), "{failure}");
    }
}

#[test]
fn a_panic_while_a_model_is_dropped_ends_nothing() {
    let bench = Bench::new();
    drop(bench.scorer("drop:panic"));
    drop(bench.generator("drop:panic"));
    drop(bench.trainer("drop:panic"));
    assert_eq!(bench.backend.describe().name, "faulty");
}

#[test]
fn nan_and_missing_results_never_reach_the_caller() {
    let bench = Bench::new();
    for (fault, code) in [("nan", Code::NotFinite), ("short", Code::Internal)] {
        let calls: [(&str, Call); 3] =
            [("score", score), ("generate", generate), ("log_likelihood", likelihood)];
        for (method, call) in calls {
            let failure = call(&bench, &format!("{method}:{fault}")).expect_err(method);
            assert_eq!(failure.code, code, "{method}: {failure}");
        }
    }
    let failure = score(&bench, "score:nan").expect_err("a NaN");
    assert_eq!(failure.message, "the scores of row 1 are not finite");
    for method in ["accumulate", "update", "score"] {
        let mut trainer = bench.trainer(&format!("{method}:nan"));
        let result = accumulate(trainer.as_mut()).and_then(|_| trainer.update(0.1));
        let result = result.and_then(|_| trainer.score(rows(2).view(), &Unattended));
        assert_eq!(result.expect_err(method).code, Code::NotFinite, "{method}");
    }
}

#[test]
fn a_batch_halved_fits_the_memory() {
    let bench = Bench::new();
    let mut scorer = bench.scorer("score:oom>2");
    let failure = scorer.score(rows(3).view(), &Unattended).expect_err("too many rows");
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (Code::OutOfMemory, "3 rows, there is memory for 2")
    );
    assert_eq!(scorer.score(rows(2).view(), &Unattended).expect("they fit").len(), 2);
}

#[test]
fn planned_codes_arrive() {
    let bench = Bench::new();
    for (fault, code) in [("unsupported", Code::Unsupported), ("internal", Code::Internal)] {
        assert_eq!(score(&bench, &format!("score:{fault}")).expect_err(fault).code, code);
    }
    let unknown =
        bench.backend.load_scorer(&bench.request("score:explode")).map(drop).expect_err("no such fault");
    assert_eq!(unknown.code, Code::InvalidArgument);
}

/// Wants the call to end from the third time it is asked.
#[derive(Default)]
struct Impatient(AtomicU32);

impl Control for Impatient {
    fn cancelled(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= 2
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

#[test]
fn a_hanging_call_ends_when_it_is_cancelled() {
    let failure = Bench::new().scorer("score:hang").score(rows(1).view(), &Impatient::default());
    assert_eq!(failure.expect_err("cancelled").code, Code::Cancelled);
}

/// Panics when it is asked.
struct Careless;

impl Control for Careless {
    fn cancelled(&self) -> bool {
        panic!("the caller's own defect")
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

#[test]
fn a_panic_of_the_callers_control_stays_the_callers() {
    let mut scorer = Bench::new().scorer("");
    let call = std::panic::AssertUnwindSafe(|| scorer.score(rows(1).view(), &Careless));
    let payload = std::panic::catch_unwind(call).map(drop).expect_err("goes on after the call");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the caller's own defect"));
    assert_eq!(scorer.score(rows(1).view(), &Unattended).expect("the model is whole").len(), 1);
}

/// Not a test of its own: what [`faults_of_the_process_end_only_their_own`] runs in children.
#[test]
#[ignore = "run in a child process with faults in its environment"]
fn child() {
    match builtin(Faulty::new()) {
        Ok(backend) => drop(backend),
        Err(failure) => panic!("refused: {failure}"),
    }
    let bench = Bench::new();
    let mut scorer =
        bench.backend.load_scorer(&LoadRequest { options_json: String::new(), ..bench.request("") });
    let scores = scorer.as_mut().expect("loads").score(rows(2).view(), &Unattended);
    println!("scored {}", scores.expect("scores").len());
}

#[cfg(unix)]
#[test]
fn faults_of_the_process_end_only_their_own() {
    use std::os::unix::process::ExitStatusExt;

    const SIGABRT: i32 = 6;
    const SIGSEGV: i32 = 11;
    let run = |fault: &str, once: Option<&std::path::Path>| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "child", "--ignored", "--nocapture"]).env("CAPPY_FAULTY", fault);
        if let Some(file) = once {
            command.env("CAPPY_FAULTY_ONCE", file);
        }
        command.output().expect("runs")
    };
    assert_eq!(run("score:abort", None).status.signal(), Some(SIGABRT));
    let output = run("describe:panic", None);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("refused: the backend panicked in describe: describe panics as planned"), "{text}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let once = dir.path().join("struck");
    assert_eq!(run("score:segfault", Some(&once)).status.signal(), Some(SIGSEGV));
    let output = run("score:segfault", Some(&once));
    assert!(String::from_utf8_lossy(&output.stdout).contains("scored 2"), "{output:?}");
}
