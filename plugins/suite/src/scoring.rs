//! [`cappy_plugin_abi::Scorer`].

use super::{CancelledControl, Fixture, Model, batch_of, done, refused};
use cappy_plugin_abi::{Code, ModelInfo, RaggedTokens, Scorer, Unattended};

fn load(fixture: &Fixture) -> Option<(&Model, Box<dyn Scorer>)> {
    let Some(model) = &fixture.scorer else {
        eprintln!("skipped: the backend has no scorers");
        return None;
    };
    let scorer = fixture.backend.load_scorer(&model.request);
    Some((model, scorer.unwrap_or_else(|failure| panic!("the fixture loads: {failure}"))))
}

/// Alone, together, in reverse order, twice in one batch.
pub fn rows_score_alike_in_every_batch(fixture: &Fixture) {
    let Some((model, mut scorer)) = load(fixture) else { return };
    let info = scorer.info();
    assert!(info.labels > 0 && info.vocab_size > 0 && !info.architecture.is_empty(), "{info:?}");
    let labels = info.labels as usize;
    let rows = model.rows(&info, 9, 12);
    let alone: Vec<Vec<f32>> =
        rows.iter().map(|row| done(scorer.score(batch_of([row]).view(), &Unattended))).collect();
    assert!(alone.iter().all(|scores| scores.len() == labels));
    assert!(alone.iter().any(|scores| scores != &alone[0]), "different rows have different scores");
    let orders: [Vec<usize>; 4] = [(0..9).collect(), (0..9).rev().collect(), vec![4, 0, 4, 8], vec![1, 7]];
    for order in orders {
        let batch = batch_of(order.iter().map(|&i| &rows[i]));
        let together = done(scorer.score(batch.view(), &Unattended));
        for (place, &i) in order.iter().enumerate() {
            let scores = &together[place * labels..][..labels];
            model.assert_close(scores, &alone[i], &format!("row {i} in the batch {order:?}"));
        }
        assert_eq!(
            together,
            done(scorer.score(batch.view(), &Unattended)),
            "the same call gives the same bits"
        );
    }
    assert_eq!(done(scorer.score(batch_of([]).view(), &Unattended)), [] as [f32; 0]);
}

/// `InvalidArgument` for ids outside the vocabulary, wrong offsets, empty and overlong rows, missing type ids.
pub fn bad_batches_are_refused(fixture: &Fixture) {
    let Some((model, mut scorer)) = load(fixture) else { return };
    let info = scorer.info();
    for (naming, tokens, offsets, type_ids) in bad_batches(&info) {
        let batch = RaggedTokens { tokens: &tokens, offsets: &offsets, type_ids: &type_ids };
        refused(scorer.score(batch, &Unattended), Code::InvalidArgument, naming, &format!("{batch:?}"));
    }
    let rows = model.rows(&info, 2, 4);
    done(scorer.score(batch_of(&rows).view(), &Unattended));
}

type BadBatch = (&'static str, Vec<u32>, Vec<u32>, Vec<u8>);

/// What a refusal names, tokens, offsets, type ids.
pub(super) fn bad_batches(info: &ModelInfo) -> Vec<BadBatch> {
    let id = info.vocab_size - 1;
    let mut bad = vec![
        ("row 1 has token id", vec![id, id, info.vocab_size], vec![0, 1, 3], vec![]),
        ("row 0 has token id", vec![u32::MAX], vec![0, 1], vec![]),
        ("row 1", vec![id, id], vec![0, 1, 1, 2], vec![]),
        ("row 1", vec![id, id, id], vec![0, 2, 1, 3], vec![]),
        ("offsets", vec![id, id], vec![1, 2], vec![]),
        ("offsets", vec![id, id], vec![0, 1], vec![]),
        ("offsets", vec![id], vec![0, 2], vec![]),
        ("offsets", vec![], vec![], vec![]),
        ("type id", vec![id, id], vec![0, 2], vec![0]),
    ];
    if info.max_tokens > 0 {
        let length = info.max_tokens + 1;
        bad.push(("row 1", vec![id; length as usize + 1], vec![0, 1, 1 + length], vec![]));
    }
    bad
}

/// With `Cancelled`; the model goes on working.
pub fn a_cancelled_score_ends(fixture: &Fixture) {
    let Some((model, mut scorer)) = load(fixture) else { return };
    let rows = model.rows(&scorer.info(), 3, 8);
    let batch = batch_of(&rows);
    refused(scorer.score(batch.view(), &CancelledControl), Code::Cancelled, "", "a cancelled score");
    done(scorer.score(batch.view(), &Unattended));
}
