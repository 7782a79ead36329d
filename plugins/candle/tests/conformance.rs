//! What every backend must do: the suite over classifiers of every family, T5 and training; and the numbers and tokens of
//! transformers and PyTorch. Scores are computed on the tests' device; T5 and training have only the CPU.

use std::sync::Arc;

use cappy_plugin_abi::builtin;
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_suite::golden::{Bounds, Golden};
use cappy_plugin_suite::{Fixture, Model, device, fixture_dir};

fn encoder(name: &str) -> Model {
    Model::new(fixture_dir("encoders").join(name))
}

fn trained(name: &str) -> Model {
    Model { learning_rate: 2e-3, ..encoder(name) }.on("cpu")
}

/// The backend with one of its scorers.
fn with_scorer(name: &str) -> Fixture {
    Fixture::new(builtin(CandleBackend).expect("describes itself"))
        .scorer(encoder(name))
        .generator(Model::new(fixture_dir("t5_v1_1")).on("cpu"))
        .trainer(trained("roberta"))
}

cappy_plugin_suite::backend_suite!(roberta, with_scorer("roberta"));
cappy_plugin_suite::backend_suite!(distilbert, with_scorer("distilbert").trainer(trained("distilbert")));
cappy_plugin_suite::backend_suite!(modernbert, with_scorer("modernbert"));
cappy_plugin_suite::backend_suite!(deberta, with_scorer("deberta-v3"));

fn golden() -> Golden {
    let cpu = Bounds { score: 2e-5, score_alone: 1e-6, likelihood: 1e-4, likelihood_alone: 0.0, loss: 1e-3 };
    let on_cpu = device() == "cpu";
    // A GPU's kernels cut their sums as the whole batch's size asks for.
    let bounds = if on_cpu { cpu } else { Bounds { score_alone: 2e-5, ..cpu } };
    Golden {
        generator_device: "cpu".into(),
        trainer_device: "cpu".into(),
        scores_in_bf16: !on_cpu,
        generates_in_bf16: false,
        ..Golden::new(Arc::new(CandleBackend), &["roberta", "bert", "distilbert"], bounds)
    }
}

cappy_plugin_suite::golden_suite!(transformers, golden());
