//! Scores of every family.

use cappy_plugin_abi::{LoadRequest, Scorer, TokenRows, Unattended};
use safetensors::SafeTensors;

use super::stored::{self, CLASSIFIERS, one_label};
use super::{Golden, close, request};
use crate::done;

fn score(scorer: &mut dyn Scorer, rows: &TokenRows) -> Vec<f32> {
    done(scorer.score(rows.view(), &Unattended))
}

/// In f32, in every batch.
pub fn scores_are_those_of_transformers(golden: &Golden) {
    for model in CLASSIFIERS {
        let mut scorer = golden.scorer(&request(model));
        for (i, batch) in stored::scores(model).iter().enumerate() {
            let got = score(scorer.as_mut(), &batch.batch());
            close(&got, &batch.logits.concat(), golden.bounds.score, &format!("{model}, batch {i}"));
        }
    }
}

/// Scores in 8 bits of mantissa.
pub fn scores_in_bf16_are_near(golden: &Golden) {
    if !golden.scores_in_bf16 {
        eprintln!("skipped: the backend does not score in bf16");
        return;
    }
    for model in CLASSIFIERS {
        let mut scorer = golden.scorer(&LoadRequest { dtype: "bf16".into(), ..request(model) });
        assert_eq!(scorer.info().dtype, "bf16");
        for (i, batch) in stored::scores(model).iter().enumerate() {
            let got = score(scorer.as_mut(), &batch.batch());
            close(&got, &batch.logits.concat(), 3e-2, &format!("{model}, batch {i}"));
        }
    }
}

/// Each row twice in the batch: some of equal lengths, some beside longer ones.
pub fn a_row_alone_scores_as_in_a_batch(golden: &Golden) {
    for model in CLASSIFIERS {
        let mut scorer = golden.scorer(&request(model));
        let batch = &stored::scores(model)[3];
        let rows: Vec<usize> = (0..batch.rows.len()).chain(0..batch.rows.len()).collect();
        let together = score(scorer.as_mut(), &batch.of(&rows));
        let labels = together.len() / rows.len();
        for (place, &row) in rows.iter().enumerate() {
            let alone = score(scorer.as_mut(), &batch.of(&[row]));
            let expected = &together[place * labels..][..labels];
            close(&alone, expected, golden.bounds.score_alone, &format!("{model}, row {row}"));
        }
    }
}

/// Of a model with three labels, one is loaded.
pub fn one_label_of_several_ranks(golden: &Golden) {
    for model in ["xlm-roberta", "deberta-v2"] {
        let batch = &stored::scores(model)[3];
        let mut scorer = golden.scorer(&one_label(&request(model), 2, 3));
        assert_eq!(scorer.info().labels, 1, "{model}");
        let expected: Vec<f32> = batch.logits.iter().map(|logits| logits[2]).collect();
        close(&score(scorer.as_mut(), &batch.batch()), &expected, golden.bounds.score, model);
    }
}

/// Files that were saved as the bare encoder, or converted from TensorFlow, have other names.
pub fn other_names_of_tensors_are_found(golden: &Golden) {
    for (model, base) in [
        ("bert", "bert."),
        ("distilbert", "distilbert."),
        ("deberta-v3", "deberta."),
        ("modernbert", "model."),
    ] {
        let original = request(model);
        let bytes = std::fs::read(format!("{}/model.safetensors", original.model_dir)).expect("a fixture");
        let stored = SafeTensors::deserialize(&bytes).expect("tensors");
        let mut others = 0;
        let renamed = stored.tensors().into_iter().map(|(name, tensor)| {
            let other =
                name.strip_prefix(base).unwrap_or(&name).replace("LayerNorm.weight", "LayerNorm.gamma");
            let other = other.replace("LayerNorm.bias", "LayerNorm.beta");
            others += usize::from(other != name);
            (other, tensor)
        });
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("model.safetensors");
        safetensors::serialize_to_file(renamed, None, &file).expect("writable");
        assert!(others > 10, "{model} has other names");
        let model_dir = dir.path().to_str().expect("a UTF-8 path").into();
        let rows = stored::scores(model)[1].batch();
        let expected = score(golden.scorer(&original).as_mut(), &rows);
        let got = score(golden.scorer(&LoadRequest { model_dir, ..original }).as_mut(), &rows);
        assert_eq!(got, expected, "{model}");
    }
}
