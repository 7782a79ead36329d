//! [`cappy_plugin_abi::Trainer`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::loading::halve;
use super::scoring::bad_batches;
use super::{CancelledControl, Fixture, Model, batch_of, done, refused};
use cappy_plugin_abi::{Code, LoadRequest, RaggedTokens, TokenRows, Trainer, Unattended};

fn load<'a>(fixture: &'a Fixture, options: &[(&str, f64)]) -> Option<(&'a Model, Box<dyn Trainer>)> {
    let Some(model) = &fixture.trainer else {
        eprintln!("skipped: the backend has no trainers");
        return None;
    };
    let mut json: serde_json::Value =
        serde_json::from_str(&model.request.options_json).expect("a fixture's options are JSON");
    for &(key, value) in options {
        json[key] = value.into();
    }
    let request = LoadRequest { options_json: json.to_string(), ..model.request.clone() };
    let trainer = fixture.backend.load_trainer(&request);
    Some((model, trainer.unwrap_or_else(|failure| panic!("the fixture loads: {failure}"))))
}

fn data(model: &Model, trainer: &dyn Trainer) -> (TokenRows, Vec<f32>) {
    let rows = model.rows(&trainer.info(), 8, 8);
    let labels = (0..rows.len()).map(|i| if i % 3 == 0 { 0.9 } else { 0.2 }).collect();
    (batch_of(&rows), labels)
}

fn squared_error(scores: &[f32], labels: &[f32]) -> f32 {
    scores.iter().zip(labels).map(|(score, label)| (score - label).powi(2)).sum::<f32>() / labels.len() as f32
}

fn path(dir: &Path) -> &str {
    dir.to_str().expect("a UTF-8 path")
}

/// Twenty updates on one batch; the loss without dropout is the mean squared error of the raw scores.
pub fn training_lowers_the_loss(fixture: &Fixture) {
    let Some((model, mut trainer)) = load(fixture, &[("dropout", 0.0)]) else { return };
    let (batch, labels) = data(model, trainer.as_ref());
    let before = squared_error(&done(trainer.score(batch.view(), &Unattended)), &labels);
    for step in 0..20 {
        let loss = done(trainer.accumulate(batch.view(), &labels, step, &Unattended));
        if step == 0 {
            model.assert_close(&[loss], &[before], "the first loss");
        }
        let norm = done(trainer.update(model.learning_rate));
        assert!(norm > 0.0, "step {step}");
    }
    let after = squared_error(&done(trainer.score(batch.view(), &Unattended)), &labels);
    assert!(after < before, "from {before} to {after}");
}

/// Two halves give the gradient of the whole; the same step gives the same loss, with dropout too.
pub fn micro_batches_add_up(fixture: &Fixture) {
    let Some((model, mut whole)) = load(fixture, &[("dropout", 0.0)]) else { return };
    let Some((_, mut halves)) = load(fixture, &[("dropout", 0.0)]) else { return };
    let rows = model.rows(&whole.info(), 8, 8);
    let (batch, labels) = data(model, whole.as_ref());
    let loss = done(whole.accumulate(batch.view(), &labels, 0, &Unattended));
    let first = done(halves.accumulate(batch_of(&rows[..4]).view(), &labels[..4], 0, &Unattended));
    let second = done(halves.accumulate(batch_of(&rows[4..]).view(), &labels[4..], 1, &Unattended));
    model.assert_close(&[(first + second) / 2.0], &[loss], "the mean loss");
    let (one, two) = (done(whole.update(1e-3)), done(halves.update(1e-3)));
    assert!((one - two).abs() <= f64::from(model.tolerance) * one.max(1.0), "gradient norms {one} and {two}");

    let Some((_, mut again)) = load(fixture, &[("dropout", 0.5)]) else { return };
    let losses = [(); 2].map(|()| done(again.accumulate(batch.view(), &labels, 7, &Unattended)));
    assert_eq!(losses[0], losses[1], "dropout is keyed by the step");
}

/// `FailedPrecondition` for an update without one, also after a cancelled or refused micro-batch.
pub fn an_update_needs_a_gradient(fixture: &Fixture) {
    let Some((model, mut trainer)) = load(fixture, &[]) else { return };
    let info = trainer.info();
    let (batch, labels) = data(model, trainer.as_ref());
    let view = batch.view();
    let none = |trainer: &mut dyn Trainer, what: &str| {
        refused(trainer.update(1e-3), Code::FailedPrecondition, "", what);
    };
    none(trainer.as_mut(), "an update at the start");
    refused(
        trainer.accumulate(view, &labels, 0, &CancelledControl),
        Code::Cancelled,
        "",
        "a cancelled batch",
    );
    none(trainer.as_mut(), "an update after a cancelled batch");
    let bad = Code::InvalidArgument;
    refused(trainer.accumulate(view, &labels[1..], 0, &Unattended), bad, "7 labels", "a label too few");
    let mut wrong = labels.clone();
    wrong[3] = f32::NAN;
    refused(trainer.accumulate(view, &wrong, 0, &Unattended), bad, "row 3", "a label that is NaN");
    for (naming, tokens, offsets, type_ids) in bad_batches(&info) {
        let batch = RaggedTokens { tokens: &tokens, offsets: &offsets, type_ids: &type_ids };
        let labels = vec![0.0; batch.rows()];
        refused(trainer.accumulate(batch, &labels, 0, &Unattended), bad, naming, &format!("{batch:?}"));
    }
    none(trainer.as_mut(), "an update after refused batches");
    done(trainer.accumulate(view, &labels, 0, &Unattended));
    refused(trainer.update(f64::NAN), bad, "learning rate", "a learning rate that is NaN");
    done(trainer.update(1e-3));
    none(trainer.as_mut(), "a second update");
}

fn train(trainer: &mut dyn Trainer, batch: &TokenRows, labels: &[f32], steps: std::ops::Range<u64>) {
    for step in steps {
        done(trainer.accumulate(batch.view(), labels, step, &Unattended));
        done(trainer.update(1e-3));
    }
}

/// In a scorer, as in the trainer.
pub fn a_saved_model_scores_alike(fixture: &Fixture) {
    let Some((model, mut trainer)) = load(fixture, &[]) else { return };
    let (batch, labels) = data(model, trainer.as_ref());
    let untrained = done(trainer.score(batch.view(), &Unattended));
    train(trainer.as_mut(), &batch, &labels, 0..3);
    let trained = done(trainer.score(batch.view(), &Unattended));
    assert_ne!(untrained, trained);
    let dir = tempfile::tempdir().expect("a temporary directory");
    done(trainer.save_model(path(dir.path())));
    assert!(dir.path().join("model.safetensors").is_file());
    std::fs::write(dir.path().join("config.json"), &model.request.config_json).expect("writable");
    let request = LoadRequest {
        model_dir: path(dir.path()).into(),
        options_json: fixture
            .scorer
            .as_ref()
            .map_or_else(|| "{}".into(), |it| it.request.options_json.clone()),
        ..model.request.clone()
    };
    if fixture.scorer.is_some() {
        let scorer = fixture.backend.load_scorer(&request);
        let mut scorer = scorer.unwrap_or_else(|failure| panic!("the saved model loads: {failure}"));
        model.assert_close(&done(scorer.score(batch.view(), &Unattended)), &trained, "the saved model");
    }
    let nowhere = dir.path().join("nowhere");
    assert!(trainer.save_model(path(&nowhere)).is_err(), "a directory that is not there");
}

/// Three updates, or one, a checkpoint, a new trainer and two: the same bits. Where training itself does not repeat its
/// bits, a loaded checkpoint does.
pub fn a_resumed_run_is_bit_equal(fixture: &Fixture) {
    let Some((model, mut straight)) = load(fixture, &[]) else { return };
    let Some((_, mut stopped)) = load(fixture, &[]) else { return };
    let Some((_, mut resumed)) = load(fixture, &[]) else { return };
    let (batch, labels) = data(model, straight.as_ref());
    train(straight.as_mut(), &batch, &labels, 0..3);
    train(stopped.as_mut(), &batch, &labels, 0..1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    done(stopped.save_checkpoint(path(dir.path())));
    done(stopped.accumulate(batch.view(), &labels, 1, &Unattended));
    let between = tempfile::tempdir().expect("a temporary directory");
    let early = stopped.save_checkpoint(path(between.path()));
    refused(early, Code::FailedPrecondition, "", "a checkpoint amid an update");

    done(resumed.load_checkpoint(path(dir.path())));
    let again = tempfile::tempdir().expect("a temporary directory");
    done(resumed.save_checkpoint(path(again.path())));
    assert!(files(again.path()) == files(dir.path()), "a loaded checkpoint is saved as it was");
    train(resumed.as_mut(), &batch, &labels, 1..3);
    let score = |trainer: &mut dyn Trainer| done(trainer.score(batch.view(), &Unattended));
    if !model.trains_bit_for_bit() {
        return model.assert_close(&score(resumed.as_mut()), &score(straight.as_mut()), "the resumed run");
    }
    let bits = |scores: Vec<f32>| scores.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(score(resumed.as_mut())), bits(score(straight.as_mut())));

    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    done(straight.save_model(path(dirs[0].path())));
    done(resumed.save_model(path(dirs[1].path())));
    let [one, two] = dirs.map(|dir| std::fs::read(dir.path().join("model.safetensors")).expect("saved"));
    assert!(one == two, "the saved weights are the same bytes");
}

/// Names and contents; of safetensors files the header apart, whose keys come in any order.
fn files(dir: &Path) -> BTreeMap<OsString, (serde_json::Value, Vec<u8>)> {
    let read = |entry: std::fs::DirEntry| {
        let mut bytes = std::fs::read(entry.path()).expect("readable");
        let mut header = serde_json::Value::Null;
        if entry.path().extension().is_some_and(|it| it == "safetensors") {
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            let data = bytes.split_off(8 + length as usize);
            header = serde_json::from_slice(&bytes[8..]).expect("a header");
            bytes = data;
        }
        (entry.file_name(), (header, bytes))
    };
    std::fs::read_dir(dir).expect("a directory").map(|entry| read(entry.expect("an entry"))).collect()
}

/// Missing, or cut in half: `BadModel`, and the trainer keeps its weights.
pub fn damaged_checkpoints_are_refused(fixture: &Fixture) {
    let Some((model, mut trainer)) = load(fixture, &[]) else { return };
    let (batch, labels) = data(model, trainer.as_ref());
    train(trainer.as_mut(), &batch, &labels, 0..1);
    let before = done(trainer.score(batch.view(), &Unattended));
    let dir = tempfile::tempdir().expect("a temporary directory");
    refused(trainer.load_checkpoint(path(dir.path())), Code::BadModel, "", "an empty directory");
    done(trainer.save_checkpoint(path(dir.path())));
    for entry in std::fs::read_dir(dir.path()).expect("a directory") {
        halve(&entry.expect("an entry").path());
    }
    refused(trainer.load_checkpoint(path(dir.path())), Code::BadModel, "", "a checkpoint cut in half");
    assert_eq!(done(trainer.score(batch.view(), &Unattended)), before);
}
