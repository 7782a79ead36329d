//! What a backend refuses to load.

use std::path::Path;

use super::{Fixture, Model, refused};
use cappy_plugin_abi::{Backend, Code, Failure, LoadRequest};

type Load = fn(&dyn Backend, &LoadRequest) -> Result<(), Failure>;

fn parts(fixture: &Fixture) -> Vec<(&'static str, &Model, Load)> {
    let parts: [(_, _, Load); 3] = [
        ("scorer", &fixture.scorer, |backend, request| backend.load_scorer(request).map(drop)),
        ("generator", &fixture.generator, |backend, request| backend.load_generator(request).map(drop)),
        ("trainer", &fixture.trainer, |backend, request| backend.load_trainer(request).map(drop)),
    ];
    let present = parts.into_iter().filter_map(|(name, model, load)| Some((name, model.as_ref()?, load)));
    present.collect()
}

/// `Unsupported`, naming what was asked for.
pub fn unknown_architectures_dtypes_and_devices_are_unsupported(fixture: &Fixture) {
    for (part, model, load) in parts(fixture) {
        let request = &model.request;
        let mut config: serde_json::Value = serde_json::from_str(&request.config_json).expect("valid JSON");
        config["model_type"] = "abacus".into();
        config["architectures"] = serde_json::json!(["AbacusForCounting"]);
        let other = LoadRequest { config_json: config.to_string(), ..request.clone() };
        refused(load(&*fixture.backend, &other), Code::Unsupported, "abacus", part);
        let other = LoadRequest { dtype: "f12".into(), ..request.clone() };
        refused(load(&*fixture.backend, &other), Code::Unsupported, "f12", part);
        let other = LoadRequest { device: "abacus:7".into(), ..request.clone() };
        refused(load(&*fixture.backend, &other), Code::Unsupported, "abacus:7", part);
    }
}

/// `InvalidArgument`, naming the key.
pub fn unknown_options_are_refused(fixture: &Fixture) {
    for (part, model, load) in parts(fixture) {
        let mut options: serde_json::Value =
            serde_json::from_str(&model.request.options_json).expect("a fixture's options are JSON");
        options["bead_count"] = 10.into();
        let request = LoadRequest { options_json: options.to_string(), ..model.request.clone() };
        refused(load(&*fixture.backend, &request), Code::InvalidArgument, "bead_count", part);
        let request = LoadRequest { options_json: "[".into(), ..model.request.clone() };
        refused(load(&*fixture.backend, &request), Code::InvalidArgument, "", part);
    }
}

/// `BadModel`: no directory, no weights, weights cut short, an absurd header, a configuration that is no JSON.
pub fn missing_and_damaged_files_are_bad_models(fixture: &Fixture) {
    for (part, model, load) in parts(fixture) {
        let check = |damage: &str, apply: &dyn Fn(&Path)| {
            let copy = copied(Path::new(&model.request.model_dir));
            apply(copy.path());
            let model_dir = copy.path().to_str().expect("a UTF-8 path").to_owned();
            let request = LoadRequest { model_dir, ..model.request.clone() };
            refused(load(&*fixture.backend, &request), Code::BadModel, "", &format!("{part}, {damage}"));
        };
        check("no directory", &|dir| std::fs::remove_dir_all(dir).expect("removable"));
        check("no weights", &|dir| each_weights(dir, |file| std::fs::remove_file(file).expect("removable")));
        check("weights cut in half", &|dir| each_weights(dir, halve));
        check("empty weights", &|dir| each_weights(dir, |file| std::fs::write(file, []).expect("writable")));
        check("a header of 2^63 bytes", &|dir| {
            each_weights(dir, |file| {
                let mut bytes = std::fs::read(file).expect("readable");
                bytes[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
                std::fs::write(file, bytes).expect("writable");
            });
        });
        let request = LoadRequest { config_json: "{".into(), ..model.request.clone() };
        refused(
            load(&*fixture.backend, &request),
            Code::BadModel,
            "",
            &format!("{part}, a broken config.json"),
        );
    }
}

/// Cuts a file to half its length.
pub(super) fn halve(file: &Path) {
    let bytes = std::fs::read(file).expect("readable");
    std::fs::write(file, &bytes[..bytes.len() / 2]).expect("writable");
}

fn each_weights(dir: &Path, apply: impl Fn(&Path)) {
    let mut found = false;
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            apply(&path);
            found = true;
        }
    }
    assert!(found, "the fixture has weights");
}

fn copied(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let bytes = std::fs::read(&path).expect("readable");
            std::fs::write(copy.path().join(path.file_name().expect("a file")), bytes).expect("writable");
        }
    }
    copy
}
