//! The suite over the echo backend, linked in. The host's tests run it over the opened library.

use std::ops::Deref;

use cappy_plugin_abi::builtin;
use cappy_plugin_echo::{Echo, write_model};
use cappy_plugin_suite::{Fixture, Model};

/// A fixture whose model lives as long as it does.
struct OnDisk {
    fixture: Fixture,
    _dir: tempfile::TempDir,
}

impl Deref for OnDisk {
    type Target = Fixture;
    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

fn fixture() -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path(), 100, 32, -0.25).expect("writable");
    let model = Model::new(dir.path()).on("cpu");
    let fixture = Fixture::new(builtin(Echo).expect("describes itself"));
    OnDisk { fixture: fixture.scorer(model.clone()).generator(model.clone()).trainer(model), _dir: dir }
}

cappy_plugin_suite::backend_suite!(linked, fixture());
