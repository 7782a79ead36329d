//! What every backend must do, with the engine linked in: the suite over classifiers of every family, T5 and training;
//! and the numbers and tokens of transformers and PyTorch.

use std::sync::Arc;

use cappy_plugin_abi::builtin;
use cappy_plugin_libtorch::LibtorchBackend;
use cappy_plugin_suite::golden::{Bounds, Golden};
use cappy_plugin_suite::{Fixture, Model, device, fixture_dir};

fn encoder(name: &str) -> Model {
    Model::new(fixture_dir("encoders").join(name))
}

fn trained(name: &str) -> Model {
    Model { learning_rate: 2e-3, ..encoder(name) }
}

fn backend(scorer: &str, generator: &str, trainer: &str) -> Fixture {
    // These models are tiny and tests run side by side: threads of libtorch's own would only wait for a core.
    tch::set_num_threads(1);
    Fixture::new(builtin(LibtorchBackend).expect("describes itself"))
        .scorer(encoder(scorer))
        .generator(Model::new(fixture_dir(generator)))
        .trainer(trained(trainer))
}

cappy_plugin_suite::backend_suite!(roberta, backend("roberta", "t5_v1_1", "roberta"));
cappy_plugin_suite::backend_suite!(distilbert, backend("distilbert", "t5_v1_0", "distilbert"));
cappy_plugin_suite::backend_suite!(modernbert, backend("modernbert", "t5_v1_1", "bert"));
cappy_plugin_suite::backend_suite!(deberta, backend("deberta-v3", "t5_v1_0", "roberta"));

const TRAINED: [&str; 7] =
    ["roberta", "bert", "distilbert", "modernbert", "modernbert-mean", "deberta-v3", "deberta-v2"];

fn golden() -> Golden {
    tch::set_num_threads(1);
    let cpu = Bounds { score: 2e-5, score_alone: 5e-6, likelihood: 1e-4, likelihood_alone: 1e-4, loss: 1e-4 };
    // A GPU's kernels cut their sums as the whole batch's size asks for, and PyTorch's losses are those of a CPU.
    let bounds = if device() == "cpu" { cpu } else { Bounds { score_alone: 2e-5, loss: 1e-3, ..cpu } };
    Golden::new(Arc::new(LibtorchBackend), &TRAINED, bounds)
}

cappy_plugin_suite::golden_suite!(transformers, golden());
