//! Numbers and tokens of transformers.

use super::*;

fn likelihoods(model: &str, kind: Kind) -> (Vec<f32>, Vec<f64>) {
    let golden = expected(model);
    let mut generator = open_as(&request(model), kind).expect("model");
    let id = generator.encode(rows(&golden.sources).view(), &Unattended).expect("encode");
    let targets = rows(golden.targets.iter().map(|t| &t.tokens));
    let of: Vec<u32> = golden.targets.iter().map(|t| t.row).collect();
    let got = generator.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
    (got, golden.targets.into_iter().flat_map(|t| t.log_probs).collect())
}

#[test]
fn likelihoods_match_transformers() {
    for model in MODELS {
        let (got, want) = likelihoods(model, Kind::Float);
        assert_eq!(got.len(), want.len());
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            let got = f64::from(got);
            assert!((got - want).abs() < 1e-4 * want.abs().max(0.1), "{model} token {i}: {got} {want}");
        }
    }
}

#[test]
fn bf16_stays_near_f32() {
    for model in MODELS {
        let (got, want) = likelihoods(model, Kind::BFloat16);
        let (mut sum, mut worst) = (0.0, 0.0_f64);
        for (&got, want) in got.iter().zip(&want) {
            let error = (f64::from(got) - want).abs();
            (sum, worst) = (sum + error, worst.max(error));
        }
        // Eight bits of mantissa: an error of 0.4% of activations, whose logits span a few units.
        let mean = sum / want.len() as f64;
        assert!(mean < 0.03 && worst < 0.2, "{model}: mean error {mean}, worst {worst}");
    }
}

#[test]
fn beam_search_gives_transformers_tokens() {
    for model in MODELS {
        let golden = expected(model);
        let (mut generator, id) = encoded(model, &golden.sources);
        let all: Vec<&Beams> = golden.beams.iter().chain([&golden.greedy]).collect();
        let keys = vec![0; golden.sources.len()];
        // Together in one call, as the rows of one batch, and each setting alone.
        let decodings: Vec<Decoding> = all.iter().map(|b| beam(&b.settings)).collect();
        let together = generator.generate(id, &decodings, 0, &keys, &Unattended).expect("generate");
        let outputs: usize = decodings.iter().map(|d| d.num_samples as usize).sum();
        let mut before = 0;
        for (golden_beams, decoding) in all.into_iter().zip(&decodings) {
            let alone = generator.generate(id, &[*decoding], 0, &keys, &Unattended).expect("generate");
            let each = decoding.num_samples as usize;
            let mut at = 0;
            for (i, (want, log_probs)) in golden_beams.tokens.iter().zip(&golden_beams.log_probs).enumerate()
            {
                let got = sequences(&alone)[i];
                assert_eq!(got, want, "{model} {decoding:?} output {i}");
                let shared = i / each * outputs + before + i % each;
                assert_eq!(
                    sequences(&together)[shared],
                    want,
                    "{model} {decoding:?} output {i} of the batch"
                );
                for (got, want) in alone.log_probs[at..].iter().zip(log_probs) {
                    assert!((f64::from(*got) - want).abs() < 1e-4 * want.abs().max(0.1), "{got} {want}");
                }
                at += got.len();
            }
            before += each;
        }
    }
}
