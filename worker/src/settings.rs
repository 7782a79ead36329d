//! Generation settings from the wire, checked.

use cappy_plugin_abi::{Decoding, Failure, Method, MinLengthRule, random::key_of};
use cappy_proto::v1;

use crate::compute::Decodings;

/// Most outputs of one decoding: memory grows with it.
const MAX_SAMPLES: u32 = 1024;

/// Longest output: memory grows with it.
const MAX_LENGTH: u32 = 4096;

/// Checks and translates.
///
/// # Errors
/// `InvalidArgument` that names the decoding and the setting.
pub fn decodings(settings: &v1::GenerationSettings) -> Result<Decodings, Failure> {
    if settings.decodings.is_empty() {
        return Err(Failure::invalid_argument("`settings.decodings` is empty: name at least one decoding"));
    }
    let mut names = Vec::new();
    let mut list = Vec::new();
    for decoding in &settings.decodings {
        if names.contains(&decoding.name) {
            let message = format!("decoding `{}` is named twice in `settings.decodings`", decoding.name);
            return Err(Failure::invalid_argument(message));
        }
        list.push(one(decoding)?);
        names.push(decoding.name.clone());
    }
    Ok(Decodings {
        names,
        settings: list,
        max_source_tokens: settings.max_source_tokens,
        seed: settings.seed,
    })
}

/// The seed's five decodings: what a call gets that says nothing.
pub fn default_settings() -> v1::GenerationSettings {
    use v1::decoding::Method as Wire;
    let decoding = |name: &str, num_samples, method| v1::Decoding {
        name: name.to_owned(),
        method: Some(method),
        num_samples,
        min_length: 3,
        max_length: 64,
        min_length_rule: v1::MinLengthRule::Pytorch.into(),
    };
    // transformers < 5 samples from the 50 likeliest tokens where a call does not say otherwise.
    let sampling = |temperature, top_k, top_p| Wire::Sampling(v1::Sampling { temperature, top_k, top_p });
    v1::GenerationSettings {
        decodings: vec![
            decoding(
                "beam4",
                1,
                Wire::Beam(v1::BeamSearch { num_beams: 4, length_penalty: 1.0, early_stopping: false }),
            ),
            decoding("sampling", 4, sampling(1.0, 50, 1.0)),
            decoding("temp0.9", 4, sampling(0.9, 50, 1.0)),
            decoding("topk40", 4, sampling(1.0, 40, 1.0)),
            decoding("topp0.95", 4, sampling(1.0, 50, 0.95)),
        ],
        max_source_tokens: 512,
        seed: 11111,
    }
}

/// What a call to an endpoint gets that says nothing: of the seed's decodings those that its protocol has.
pub fn endpoint_settings() -> v1::GenerationSettings {
    use v1::decoding::Method;
    let mut settings = default_settings();
    settings.decodings.retain_mut(|decoding| match &mut decoding.method {
        Some(Method::Sampling(sampling)) => {
            sampling.top_k = 0;
            decoding.name != "topk40"
        }
        _ => false,
    });
    settings
}

fn one(decoding: &v1::Decoding) -> Result<Decoding, Failure> {
    let wrong = |what: &str| Err(Failure::invalid_argument(format!("decoding `{}`: {what}", decoding.name)));
    if decoding.name.is_empty() {
        return Err(Failure::invalid_argument("a decoding has no `name`"));
    }
    if !(1..=MAX_SAMPLES).contains(&decoding.num_samples) {
        return wrong(&format!("`num_samples` must be 1 to {MAX_SAMPLES}"));
    }
    if !(2..=MAX_LENGTH).contains(&decoding.max_length) || decoding.min_length > decoding.max_length {
        return wrong(&format!("`max_length` must be 2 to {MAX_LENGTH} and not below `min_length`"));
    }
    use v1::decoding::Method as Wire;
    let method = match &decoding.method {
        Some(Wire::Beam(beam)) => {
            if beam.num_beams == 0 || beam.num_beams > MAX_SAMPLES || beam.num_beams < decoding.num_samples {
                return wrong("`num_beams` must be at least `num_samples`, and 1 to 1024");
            }
            if !beam.length_penalty.is_finite() {
                return wrong("`length_penalty` must be a finite number");
            }
            Method::Beam {
                num_beams: beam.num_beams,
                length_penalty: beam.length_penalty,
                early_stopping: beam.early_stopping,
            }
        }
        Some(Wire::Sampling(sampling)) => {
            if !(sampling.temperature.is_finite() && sampling.temperature > 0.0) {
                return wrong("`temperature` must be greater than 0");
            }
            if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
                return wrong("`top_p` must be greater than 0 and at most 1");
            }
            Method::Sample { temperature: sampling.temperature, top_k: sampling.top_k, top_p: sampling.top_p }
        }
        None => return wrong("neither `beam` nor `sampling` is set"),
    };
    Ok(Decoding {
        key: key_of(&decoding.name),
        method,
        num_samples: decoding.num_samples,
        min_length: decoding.min_length,
        max_length: decoding.max_length,
        min_length_rule: match decoding.min_length_rule() {
            v1::MinLengthRule::Flax => MinLengthRule::Flax,
            v1::MinLengthRule::Pytorch | v1::MinLengthRule::Unspecified => MinLengthRule::Pytorch,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> v1::Decoding {
        v1::Decoding {
            name: "temp0.9".into(),
            method: Some(v1::decoding::Method::Sampling(v1::Sampling {
                temperature: 0.9,
                top_k: 50,
                top_p: 1.0,
            })),
            num_samples: 4,
            min_length: 3,
            max_length: 64,
            min_length_rule: 0,
        }
    }

    #[test]
    fn the_defaults_are_accepted() {
        let defaults = decodings(&default_settings()).unwrap();
        assert_eq!(defaults.settings.iter().map(|decoding| decoding.num_samples).sum::<u32>(), 17);
        assert_eq!(decodings(&endpoint_settings()).unwrap().names, ["sampling", "temp0.9", "topp0.95"]);
    }

    #[test]
    fn settings_are_translated_or_named() {
        let settings = |decodings| v1::GenerationSettings { decodings, max_source_tokens: 0, seed: 7 };
        let good = decodings(&settings(vec![sampling()])).unwrap();
        assert_eq!(good.settings[0].key, key_of("temp0.9"));
        assert_eq!(good.settings[0].min_length_rule, MinLengthRule::Pytorch);
        let wrong = |change: fn(&mut v1::Decoding), words: &str| {
            let mut decoding = sampling();
            change(&mut decoding);
            let error = decodings(&settings(vec![decoding])).unwrap_err();
            assert!(error.message.contains(words), "{error}");
        };
        wrong(|d| d.num_samples = 0, "decoding `temp0.9`: `num_samples`");
        wrong(|d| d.max_length = 1, "`max_length`");
        wrong(|d| d.min_length = 65, "`min_length`");
        wrong(|d| d.name.clear(), "`name`");
        wrong(|d| d.method = None, "neither `beam` nor `sampling`");
        wrong(
            |d| {
                d.method = Some(v1::decoding::Method::Sampling(v1::Sampling {
                    temperature: 0.0,
                    top_k: 0,
                    top_p: 1.0,
                }))
            },
            "`temperature`",
        );
        assert!(decodings(&settings(vec![])).unwrap_err().message.contains("empty"));
        assert!(decodings(&settings(vec![sampling(), sampling()])).unwrap_err().message.contains("twice"));
    }
}
