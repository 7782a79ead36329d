//! The conformance suite over the echo backend as an opened library.

use std::ops::Deref;
use std::sync::Arc;

use cappy_plugin_abi::Backend;
use cappy_plugin_host::{Registry, Role, Want, testing};
use cappy_plugin_suite::{Fixture, Model};

struct OnDisk {
    fixture: Fixture,
    _dirs: [tempfile::TempDir; 2],
}

impl Deref for OnDisk {
    type Target = Fixture;
    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

fn opened(plugins: &tempfile::TempDir) -> Arc<dyn Backend> {
    let mut registry = Registry::default();
    registry.discover(plugins.path()).expect("readable");
    registry.choose(&Want { name: Some("echo"), ..Want::new(Role::Scorer) }).expect("the echo backend opens")
}

fn fixture() -> OnDisk {
    let plugins = testing::plugin_dir(&["cappy-plugin-echo"]);
    let models = tempfile::tempdir().expect("a temporary directory");
    cappy_plugin_echo::write_model(models.path(), 100, 32, -0.25).expect("writable");
    let model = Model::new(models.path()).on("cpu");
    let fixture = Fixture::new(opened(&plugins));
    let fixture = fixture.scorer(model.clone()).generator(model.clone()).trainer(model);
    OnDisk { fixture, _dirs: [plugins, models] }
}

cappy_plugin_suite::backend_suite!(echo, fixture());
