//! What every backend must do, with the engine linked in: the suite over classifiers of every family, T5, and training.

use cappy_plugin_abi::builtin;
use cappy_plugin_libtorch::LibtorchBackend;
use cappy_plugin_suite::{Fixture, Model, fixture_dir};

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
