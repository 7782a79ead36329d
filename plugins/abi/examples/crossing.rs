//! Nanoseconds of one call through the border: `cargo run --release -p cappy-plugin-abi --example crossing`.

use std::time::Instant;

use cappy_plugin_abi::{
    Backend, Control, Descriptor, Failure, Generator, LoadRequest, ModelInfo, RaggedTokens, Scorer,
    TokenRows, Trainer, Unattended, builtin,
};

const CALLS: u32 = 1_000_000;

struct Constant;

impl Scorer for Constant {
    fn info(&self) -> ModelInfo {
        ModelInfo { vocab_size: 100, labels: 1, ..ModelInfo::default() }
    }
    fn score(&mut self, batch: RaggedTokens<'_>, _: &dyn Control) -> Result<Vec<f32>, Failure> {
        Ok(vec![0.5; batch.rows()])
    }
}

impl Backend for Constant {
    fn describe(&self) -> Descriptor {
        Descriptor::default()
    }
    fn load_scorer(&self, _: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        Ok(Box::new(Constant))
    }
    fn load_generator(&self, _: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        Err(Failure::unsupported("constant"))
    }
    fn load_trainer(&self, _: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        Err(Failure::unsupported("constant"))
    }
}

fn time(what: &str, scorer: &mut dyn Scorer, batch: &TokenRows) {
    let start = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(
            scorer.score(std::hint::black_box(batch.view()), &Unattended).expect("constant"),
        );
    }
    println!("{what}: {:.1} ns a call", start.elapsed().as_nanos() as f64 / f64::from(CALLS));
}

fn main() {
    let backend = builtin(Constant).expect("describes itself");
    let mut remote = backend.load_scorer(&LoadRequest::default()).expect("loads");
    let mut batch = TokenRows::new();
    batch.push(&[1, 2, 3]);
    time("direct", &mut Constant, &batch);
    time("across the border, checked", remote.as_mut(), &batch);
}
