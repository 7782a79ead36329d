//! Where tests run: on which device, and where their files lie.

use std::path::PathBuf;

/// The device that models are loaded to: the environment variable `CAPPY_TEST_DEVICE` (such as `cuda:0`), `cpu` when
/// it is not set.
///
/// # Panics
/// When it is not UTF-8.
pub fn device() -> String {
    match std::env::var("CAPPY_TEST_DEVICE") {
        Ok(name) => name,
        Err(std::env::VarError::NotPresent) => "cpu".into(),
        Err(error) => panic!("CAPPY_TEST_DEVICE: {error}"),
    }
}

/// One of the tiny models with transformers' numbers that all backends are compared with: `encoders/roberta`.
///
/// A test program may have been built elsewhere: it looks from the folder of its crate that cargo names when it runs
/// it (`CARGO_MANIFEST_DIR`), otherwise from where this crate was compiled.
///
/// # Panics
/// When it is not there.
pub fn fixture_dir(name: &str) -> PathBuf {
    let of_crate = std::env::var_os("CARGO_MANIFEST_DIR");
    let of_crate = of_crate.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let mut dirs = of_crate.ancestors().map(|root| root.join("plugins/suite/fixtures").join(name));
    dirs.find(|dir| dir.is_dir()).unwrap_or_else(|| {
        panic!("no fixture `{name}` seen from {}; set CARGO_MANIFEST_DIR", of_crate.display())
    })
}
