//! [`cappy_plugin_abi::Generator`].

use super::scoring::bad_batches;
use super::{CancelledControl, Fixture, Model, batch_of, done, refused};
use cappy_plugin_abi::random::{fold, key_of};
use cappy_plugin_abi::{
    Code, Decoding, EncodingId, Generated, Generator, Method, MinLengthRule, RaggedTokens, TokenRows,
    Unattended,
};

const SEED: u64 = 11111;

fn load(fixture: &Fixture) -> Option<(&Model, Box<dyn Generator>)> {
    let Some(model) = &fixture.generator else {
        eprintln!("skipped: the backend has no generators");
        return None;
    };
    let generator = fixture.backend.load_generator(&model.request);
    Some((model, generator.unwrap_or_else(|failure| panic!("the fixture loads: {failure}"))))
}

fn decodings() -> Vec<Decoding> {
    let beam = Method::Beam { num_beams: 3, length_penalty: 1.0, early_stopping: true };
    let sample = |temperature, top_k, top_p| Method::Sample { temperature, top_k, top_p };
    let decoding = |name: &str, method, num_samples, min_length_rule| Decoding {
        key: key_of(name),
        method,
        num_samples,
        min_length: 3,
        max_length: 9,
        min_length_rule,
    };
    vec![
        decoding("beam3", beam, 2, MinLengthRule::Pytorch),
        decoding("sampling", sample(1.0, 0, 1.0), 3, MinLengthRule::Flax),
        decoding("temp0.9", sample(0.9, 0, 1.0), 1, MinLengthRule::Flax),
        decoding("topk5", sample(1.0, 5, 1.0), 2, MinLengthRule::Pytorch),
        decoding("topp0.9", sample(1.0, 0, 0.9), 2, MinLengthRule::Flax),
    ]
}

fn row_key(row: usize) -> u64 {
    fold(key_of("suite"), row as u64)
}

fn sequence(generated: &Generated, i: usize) -> (&[u32], &[f32]) {
    let range = generated.offsets[i] as usize..generated.offsets[i + 1] as usize;
    (&generated.tokens[range.clone()], &generated.log_probs[range])
}

fn generate(
    generator: &mut dyn Generator,
    rows: &[Vec<u32>],
    order: &[usize],
    decodings: &[Decoding],
) -> Generated {
    let encoding = done(generator.encode(batch_of(order.iter().map(|&i| &rows[i])).view(), &Unattended));
    let keys: Vec<u64> = order.iter().map(|&i| row_key(i)).collect();
    let generated = done(generator.generate(encoding, decodings, SEED, &keys, &Unattended));
    generator.forget(encoding);
    generated
}

/// Any rows beside it, any decodings beside its own, any order.
pub fn rows_generate_alike_in_every_batch(fixture: &Fixture) {
    let Some((model, mut generator)) = load(fixture) else { return };
    let generator = generator.as_mut();
    let rows = model.rows(&generator.info(), 5, 10);
    let all = decodings();
    let whole = generate(generator, &rows, &[0, 1, 2, 3, 4], &all);
    let a_row: usize = all.iter().map(|decoding| decoding.num_samples as usize).sum();
    let subsets: [&[usize]; 4] = [&[0, 1, 2, 3, 4], &[3], &[4, 1], &[2]];
    for order in subsets {
        for chosen in [vec![0, 1, 2, 3, 4], vec![0], vec![1], vec![4, 2], vec![3, 0]] {
            let some: Vec<Decoding> = chosen.iter().map(|&d| all[d]).collect();
            let generated = generate(generator, &rows, order, &some);
            let mut place = 0;
            for &row in order {
                for &d in &chosen {
                    let before: usize = all[..d].iter().map(|it| it.num_samples as usize).sum();
                    for sample in 0..all[d].num_samples as usize {
                        let what =
                            format!("row {row}, decoding {d}, sample {sample} in {order:?} x {chosen:?}");
                        let (tokens, log_probs) = sequence(&generated, place);
                        let (expected, expected_probs) = sequence(&whole, row * a_row + before + sample);
                        assert_eq!(tokens, expected, "{what}");
                        model.assert_close(log_probs, expected_probs, &what);
                        place += 1;
                    }
                }
            }
        }
    }
}

/// At most `max_length` with the start token; an end token not before the minimum.
pub fn sequences_keep_their_limits(fixture: &Fixture) {
    let Some((model, mut generator)) = load(fixture) else { return };
    let rows = model.rows(&generator.info(), 4, 10);
    for decoding in decodings() {
        let generated = generate(generator.as_mut(), &rows, &[0, 1, 2, 3], &[decoding]);
        for i in 0..generated.offsets.len() - 1 {
            let length = sequence(&generated, i).0.len() as u32 + 1;
            assert!(length <= decoding.max_length, "{length} tokens with {decoding:?}");
            let allowed = decoding.min_length + u32::from(decoding.min_length_rule == MinLengthRule::Flax);
            // The end token itself comes on top of the length at which it became legal.
            assert!(length > allowed, "{length} tokens with {decoding:?}");
        }
        assert!(
            generated.log_probs.iter().all(|&it| it <= model.tolerance),
            "log-probabilities are not positive"
        );
    }
}

/// The log-probabilities of a generated sequence are those of the same sequence as a target, in any batch of targets.
pub fn likelihoods_agree_with_generation(fixture: &Fixture) {
    let Some((model, mut generator)) = load(fixture) else { return };
    let rows = model.rows(&generator.info(), 3, 10);
    let encoding = done(generator.encode(batch_of(&rows).view(), &Unattended));
    let keys: Vec<u64> = (0..3).map(row_key).collect();
    let generated = done(generator.generate(encoding, &decodings(), SEED, &keys, &Unattended));
    let sequences = generated.offsets.len() - 1;
    let (mut targets, mut owners, mut expected) = (TokenRows::new(), Vec::new(), Vec::new());
    // Backwards, so that targets of one row do not lie in the encoding's order.
    for i in (0..sequences).rev() {
        let (tokens, log_probs) = sequence(&generated, i);
        if tokens.is_empty() {
            continue;
        }
        targets.push(tokens);
        owners.push((i * 3 / sequences) as u32);
        expected.extend_from_slice(log_probs);
    }
    let together = done(generator.log_likelihood(encoding, targets.view(), &owners, &Unattended));
    model.assert_close(&together, &expected, "likelihoods of the generated sequences");
    for (i, &owner) in owners.iter().enumerate() {
        let mut one = TokenRows::new();
        one.push(targets.view().row(i));
        let alone = done(generator.log_likelihood(encoding, one.view(), &[owner], &Unattended));
        let range = targets.offsets[i] as usize..targets.offsets[i + 1] as usize;
        model.assert_close(&alone, &together[range], &format!("target {i} alone"));
    }
}

/// Several at a time, each as often as wanted, until forgotten; wrong numbers and batches are refused.
pub fn encodings_live_until_they_are_forgotten(fixture: &Fixture) {
    let Some((model, mut generator)) = load(fixture) else { return };
    let info = generator.info();
    let rows = model.rows(&info, 2, 8);
    let all = decodings();
    let first = done(generator.encode(batch_of(&rows[..1]).view(), &Unattended));
    let second = done(generator.encode(batch_of(&rows).view(), &Unattended));
    assert_ne!(first, second);
    let one = done(generator.generate(first, &all, SEED, &[row_key(0)], &Unattended));
    let target = batch_of(&rows[..1]);
    let likelihood = done(generator.log_likelihood(second, target.view(), &[1], &Unattended));
    done(generator.generate(second, &all[..1], SEED, &[row_key(0), row_key(1)], &Unattended));
    assert_eq!(one, done(generator.generate(first, &all, SEED, &[row_key(0)], &Unattended)), "asked again");
    generator.forget(first);
    generator.forget(first);
    generator.forget(EncodingId(u64::MAX));
    let bad = Code::InvalidArgument;
    let forgotten = generator.generate(first, &all, SEED, &[row_key(0)], &Unattended);
    refused(forgotten, bad, "unknown encoding", "a forgotten encoding");
    let few = generator.generate(second, &all, SEED, &[row_key(0)], &Unattended);
    refused(few, bad, "1 row keys", "too few keys");
    let outside = generator.log_likelihood(second, target.view(), &[2], &Unattended);
    refused(outside, bad, "row 2", "a row outside the encoding");
    for (naming, tokens, offsets, type_ids) in bad_batches(&info) {
        let batch = RaggedTokens { tokens: &tokens, offsets: &offsets, type_ids: &type_ids };
        refused(generator.encode(batch, &Unattended), bad, naming, &format!("{batch:?}"));
    }
    let again = done(generator.log_likelihood(second, target.view(), &[1], &Unattended));
    assert_eq!(again, likelihood, "the other encoding is untouched");
}

/// With `Cancelled`; the model and its encodings go on working.
pub fn a_cancelled_generation_ends(fixture: &Fixture) {
    let Some((model, mut generator)) = load(fixture) else { return };
    let rows = model.rows(&generator.info(), 2, 8);
    let batch = batch_of(&rows);
    let keys = [row_key(0), row_key(1)];
    refused(generator.encode(batch.view(), &CancelledControl), Code::Cancelled, "", "a cancelled encode");
    let encoding = done(generator.encode(batch.view(), &Unattended));
    for decoding in decodings() {
        let ended = generator.generate(encoding, &[decoding], SEED, &keys, &CancelledControl);
        refused(ended, Code::Cancelled, "", "a cancelled generate");
    }
    let ended = generator.log_likelihood(encoding, batch.view(), &[0, 1], &CancelledControl);
    refused(ended, Code::Cancelled, "", "a cancelled log_likelihood");
    done(generator.generate(encoding, &decodings(), SEED, &keys, &Unattended));
}
