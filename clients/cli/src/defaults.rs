//! The seed's settings: what a run uses when nothing else is said. Source: the method's reference scripts.

use cappy_proto::v1::{
    BeamSearch, Decoding, Endpoint, GenerationSettings, MinLengthRule, Sampling, decoding::Method,
};

/// Randomness key of a run.
pub const SEED: u64 = 11111;
/// Source tokens kept, the end token included.
pub const MAX_SOURCE_TOKENS: u32 = 512;
/// Tokens kept of an (instruction, response) pair.
pub const MAX_PAIR_TOKENS: u32 = 512;
/// Response tokens kept when a likelihood is computed, the end token included.
pub const MAX_TARGET_TOKENS: u32 = 64;
/// Shortest output, the decoder start token counted.
pub const MIN_LENGTH: u32 = 3;
/// Longest output, the decoder start token counted.
pub const MAX_LENGTH: u32 = 64;
/// Samples of each sampling decoding.
pub const NUM_SAMPLES: u32 = 4;
/// The reference library cuts every sampling decoding to this many tokens unless told otherwise.
pub const TOP_K: u32 = 50;
/// Rows the scorer is fine-tuned on.
pub const TRAIN_SIZE: u64 = 102_400;
/// Fine-tuning.
pub const LEARNING_RATE: f64 = 2e-5;
/// Rows a micro-batch.
pub const BATCH_SIZE: u32 = 8;
/// Micro-batches an update.
pub const ACCUMULATE: u32 = 16;
/// Share of the updates spent warming up.
pub const WARMUP: f64 = 0.1;
/// Dropout probability.
pub const DROPOUT: f64 = 0.1;

/// The seed's five decodings, in its order.
pub const DECODINGS: [&str; 5] = ["beam4", "sampling", "temp0.9", "topk40", "topp0.95"];

/// What an endpoint is asked for unless told otherwise: its protocol has no beam search and no top-k.
pub const ENDPOINT_DECODINGS: [&str; 3] = ["sampling", "temp0.9", "topp0.95"];

/// What a decoding's name means: `beamN`, `sampling`, `tempT`, `topkK`, `toppP`.
///
/// `top_k` is the cut of the sampling decodings that do not name their own (0: none).
///
/// # Errors
/// A line that names what is wrong.
pub fn decoding(name: &str, num_samples: u32, top_k: u32, rule: MinLengthRule) -> Result<Decoding, String> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
    let sampling = |temperature, top_k, top_p| Method::Sampling(Sampling { temperature, top_k, top_p });
    let method = if name == "sampling" {
        sampling(1.0, top_k, 1.0)
    } else if let Some(beams) =
        name.strip_prefix("beam").and_then(|text| text.parse().ok()).filter(|&n| n > 0)
    {
        Method::Beam(BeamSearch { num_beams: beams, length_penalty: 1.0, early_stopping: false })
    } else if let Some(temperature) = name.strip_prefix("temp").and_then(number).filter(|&t| t > 0.0) {
        sampling(temperature, top_k, 1.0)
    } else if let Some(k) = name.strip_prefix("topk").and_then(|text| text.parse().ok()).filter(|&k| k > 0) {
        sampling(1.0, k, 1.0)
    } else if let Some(p) = name.strip_prefix("topp").and_then(number).filter(|&p| p > 0.0 && p <= 1.0) {
        sampling(1.0, top_k, p)
    } else {
        return Err(format!(
            "`{name}` is not a decoding: expected beamN, sampling, tempT, topkK or toppP, such as {}",
            DECODINGS.join(", ")
        ));
    };
    let samples = if matches!(method, Method::Beam(_)) { 1 } else { num_samples };
    Ok(Decoding {
        name: name.to_owned(),
        method: Some(method),
        num_samples: samples,
        min_length: MIN_LENGTH,
        max_length: MAX_LENGTH,
        min_length_rule: rule.into(),
    })
}

/// How responses are generated; flags of every verb that generates.
#[derive(Clone, Debug, clap::Args)]
pub struct GenerationFlags {
    /// Decodings: beamN, sampling, tempT, topkK, toppP; may be given several times [default: the seed's five]
    #[arg(long = "decoding", value_name = "NAME")]
    decodings: Vec<String>,
    /// Samples of each sampling decoding
    #[arg(long, default_value_t = NUM_SAMPLES, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    num_samples: u32,
    /// Cut of the sampling decodings that do not name their own; 0 for none [default: 50, as the seed's library has;
    /// none at an endpoint]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// When the end token becomes legal: as PyTorch's `generate` has it, or one token later as Flax's
    #[arg(long, value_enum, default_value_t = RuleName::Pytorch, value_name = "RULE")]
    min_length_rule: RuleName,
}

/// See [`GenerationFlags::min_length_rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuleName {
    /// While the decoder length is < 3.
    Pytorch,
    /// While the decoder length is <= 3, as in the seed's own runs.
    Flax,
}

impl GenerationFlags {
    /// The flags of a recipe: no decodings and no number are the seed's.
    pub fn of(decodings: Vec<String>, num_samples: Option<u32>) -> Self {
        let num_samples = num_samples.unwrap_or(NUM_SAMPLES);
        Self { decodings, num_samples, top_k: None, min_length_rule: RuleName::Pytorch }
    }

    /// As the wire has it.
    ///
    /// # Errors
    /// A line that names the decoding that is none, or is given twice.
    pub fn settings(&self, seed: u64) -> Result<GenerationSettings, String> {
        self.build(seed, &DECODINGS, TOP_K)
    }

    /// As the wire has it, for a generator that is behind an endpoint where there is one.
    ///
    /// # Errors
    /// As [`Self::settings`], and for a decoding that endpoints do not have.
    pub fn settings_for(&self, seed: u64, endpoint: Option<&Endpoint>) -> Result<GenerationSettings, String> {
        if endpoint.is_none() {
            return self.settings(seed);
        }
        let settings = self.build(seed, &ENDPOINT_DECODINGS, 0)?;
        let beam = |decoding: &&Decoding| matches!(decoding.method, Some(Method::Beam(_)));
        match settings.decodings.iter().find(beam) {
            Some(beam) => Err(format!(
                "--decoding: `{}` is not available at an endpoint, whose protocol has no beam search; use {}",
                beam.name,
                ENDPOINT_DECODINGS.join(", ")
            )),
            None => Ok(settings),
        }
    }

    fn build(&self, seed: u64, defaults: &[&'static str], top_k: u32) -> Result<GenerationSettings, String> {
        let rule = match self.min_length_rule {
            RuleName::Pytorch => MinLengthRule::Pytorch,
            RuleName::Flax => MinLengthRule::Flax,
        };
        let names: Vec<&str> = match self.decodings.as_slice() {
            [] => defaults.to_vec(),
            some => some.iter().map(String::as_str).collect(),
        };
        let top_k = self.top_k.unwrap_or(top_k);
        if let Some(twice) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
            return Err(format!("--decoding: `{}` is given twice", names[twice]));
        }
        let decodings = names
            .iter()
            .map(|name| decoding(name, self.num_samples, top_k, rule))
            .collect::<Result<_, _>>()
            .map_err(|reason| format!("--decoding: {reason}"))?;
        Ok(GenerationSettings { decodings, max_source_tokens: MAX_SOURCE_TOKENS, seed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_seed_means() {
        let of = |name| decoding(name, 4, 50, MinLengthRule::Pytorch).unwrap();
        let sampling =
            |temperature, top_k, top_p| Some(Method::Sampling(Sampling { temperature, top_k, top_p }));
        for (name, method, samples) in [
            ("sampling", sampling(1.0, 50, 1.0), 4),
            ("temp0.9", sampling(0.9, 50, 1.0), 4),
            ("topk40", sampling(1.0, 40, 1.0), 4),
            ("topp0.95", sampling(1.0, 50, 0.95), 4),
        ] {
            assert_eq!((of(name).method, of(name).num_samples), (method, samples), "{name}");
        }
        assert_eq!(of("beam4").num_samples, 1);
        for bad in ["", "beam", "beam0", "temp0", "tempx", "topp1.5", "topk0", "greedy", "tempNaN"] {
            let reason = decoding(bad, 4, 50, MinLengthRule::Pytorch).unwrap_err();
            assert!(reason.contains(&format!("`{bad}`")), "{reason}");
        }
    }
}
