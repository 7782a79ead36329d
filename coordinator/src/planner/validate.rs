//! Refuses a bad spec, with every mistake at once and the field of each.

use std::collections::HashSet;

use cappy_proto::v1;

use super::bigbench::model_folder;

/// Subsets of one job.
const MAX_SUBSETS: usize = 1000;
/// Outputs a row, over all decodings.
const MAX_CANDIDATES: u64 = 1000;
/// Most beams of one search.
const MAX_BEAMS: u32 = 256;
/// Dtypes that a spec may ask for.
const DTYPES: [&str; 5] = ["", "auto", "f32", "bf16", "int8"];

/// A mistake in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Path of the field: `spec.bigbench.subsets[3].name`.
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Violation {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// Every mistake in a spec.
pub(crate) fn validate(spec: &v1::BigbenchSpec) -> Vec<Violation> {
    let mut check = Check { out: Vec::new() };
    check.that(!spec.model.trim().is_empty(), "model", "name a generator");
    if !spec.model.trim().is_empty() {
        check.that(model_folder(&spec.model).is_some(), "model", "its last component must be a name");
    }
    check.that(!spec.scorer.trim().is_empty(), "scorer", "name a scorer");
    check.that(
        DTYPES.contains(&spec.dtype.as_str()),
        "dtype",
        &format!("`{}` is not one of auto, f32, bf16, int8", shown(&spec.dtype)),
    );
    check.that(!spec.subsets.is_empty(), "subsets", "name at least one subset");
    check.that(spec.subsets.len() <= MAX_SUBSETS, "subsets", "at most 1000 subsets a job");
    let mut names = HashSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let at = |field: &str| format!("subsets[{index}].{field}");
        check.that(
            is_plain_name(&subset.name),
            &at("name"),
            &format!("`{}` must be letters, digits, `_`, `-` and `.`", shown(&subset.name)),
        );
        check.that(
            names.insert(&subset.name),
            &at("name"),
            &format!("`{}` is there twice", shown(&subset.name)),
        );
        check.that(subset.train.is_some(), &at("train"), "upload the train rows and name their artifact");
        check.that(
            subset.validation.is_some(),
            &at("validation"),
            "upload the validation rows and name their artifact",
        );
        check.that(
            subset.train_rows > 0,
            &at("train_rows"),
            "a subset without train rows cannot be trained on",
        );
        check.that(
            subset.validation_rows > 0,
            &at("validation_rows"),
            "a subset without validation rows has no result",
        );
    }
    check.generation(spec.generation.as_ref());
    check.fine_tuning(spec.fine_tuning.as_ref());
    check.out
}

/// The artifacts that a spec reads, with their fields.
pub(crate) fn required_artifacts(spec: &v1::BigbenchSpec) -> impl Iterator<Item = (String, &v1::Artifact)> {
    spec.subsets.iter().enumerate().flat_map(|(index, subset)| {
        [("train", &subset.train), ("validation", &subset.validation)].into_iter().filter_map(
            move |(field, artifact)| {
                Some((format!("spec.bigbench.subsets[{index}].{field}"), artifact.as_ref()?))
            },
        )
    })
}

struct Check {
    out: Vec<Violation>,
}

impl Check {
    fn that(&mut self, holds: bool, field: &str, reason: &str) {
        if !holds {
            self.out.push(Violation::new(format!("spec.bigbench.{field}"), reason));
        }
    }

    fn generation(&mut self, settings: Option<&v1::GenerationSettings>) {
        let Some(settings) = settings else {
            return self.that(false, "generation", "give the decodings");
        };
        self.that(settings.max_source_tokens > 0, "generation.max_source_tokens", "must be at least 1");
        let decodings = &settings.decodings;
        self.that(!decodings.is_empty(), "generation.decodings", "give at least one decoding");
        let mut names = HashSet::new();
        for (index, decoding) in decodings.iter().enumerate() {
            let at = |field: &str| format!("generation.decodings[{index}].{field}");
            self.that(
                is_plain_name(&decoding.name),
                &at("name"),
                &format!("`{}` must be letters, digits, `_`, `-` and `.`", shown(&decoding.name)),
            );
            self.that(names.insert(&decoding.name), &at("name"), "is there twice");
            self.that(decoding.num_samples > 0, &at("num_samples"), "must be at least 1");
            self.that(
                decoding.max_length > 1 && decoding.max_length >= decoding.min_length,
                &at("max_length"),
                "must be at least 2 and at least min_length",
            );
            match &decoding.method {
                None => self.that(false, &at("method"), "choose beam or sampling"),
                Some(v1::decoding::Method::Beam(beam)) => {
                    let beams = beam.num_beams;
                    self.that(
                        (1..=MAX_BEAMS).contains(&beams) && decoding.num_samples <= beams,
                        &at("beam.num_beams"),
                        "must be between num_samples and 256",
                    );
                    self.that(
                        beam.length_penalty.is_finite(),
                        &at("beam.length_penalty"),
                        "must be a finite number",
                    );
                }
                Some(v1::decoding::Method::Sampling(sampling)) => {
                    self.that(
                        sampling.temperature.is_finite() && sampling.temperature > 0.0,
                        &at("sampling.temperature"),
                        "must be above 0",
                    );
                    self.that(
                        sampling.top_p > 0.0 && sampling.top_p <= 1.0,
                        &at("sampling.top_p"),
                        "must be above 0 and at most 1",
                    );
                }
            }
        }
        let candidates: u64 = decodings.iter().map(|d| u64::from(d.num_samples)).sum();
        self.that(candidates <= MAX_CANDIDATES, "generation.decodings", "at most 1000 outputs a row");
    }

    fn fine_tuning(&mut self, settings: Option<&v1::FineTuning>) {
        let Some(settings) = settings else {
            return self.that(false, "fine_tuning", "give the settings");
        };
        let share = |value: f64| (0.0..1.0).contains(&value);
        self.that(
            settings.learning_rate.is_finite() && settings.learning_rate > 0.0,
            "fine_tuning.learning_rate",
            "must be above 0",
        );
        self.that(settings.batch_size > 0, "fine_tuning.batch_size", "must be at least 1");
        self.that(settings.accumulate > 0, "fine_tuning.accumulate", "must be at least 1");
        self.that(settings.max_tokens > 0, "fine_tuning.max_tokens", "must be at least 1");
        self.that((0.0..=1.0).contains(&settings.warmup), "fine_tuning.warmup", "must be between 0 and 1");
        self.that(share(settings.dropout), "fine_tuning.dropout", "must be at least 0 and below 1");
    }
}

/// Names become file names in results folders.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_told_at_once() {
        let empty = validate(&v1::BigbenchSpec::default());
        let fields: Vec<&str> = empty.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.bigbench.model",
                "spec.bigbench.scorer",
                "spec.bigbench.subsets",
                "spec.bigbench.generation",
                "spec.bigbench.fine_tuning"
            ]
        );
        let spec = v1::BigbenchSpec {
            model: "demo".into(),
            scorer: "demo".into(),
            dtype: "f16".into(),
            subsets: vec![v1::BigbenchSubset { name: "../x".into(), ..Default::default() }],
            generation: Some(v1::GenerationSettings {
                decodings: vec![v1::Decoding {
                    name: "b".into(),
                    num_samples: 9,
                    max_length: 64,
                    method: Some(v1::decoding::Method::Beam(v1::BeamSearch {
                        num_beams: 4,
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                max_source_tokens: 512,
                ..Default::default()
            }),
            fine_tuning: Some(v1::FineTuning {
                learning_rate: f64::NAN,
                batch_size: 8,
                accumulate: 16,
                max_tokens: 512,
                ..Default::default()
            }),
            ..Default::default()
        };
        let fields: Vec<String> = validate(&spec)
            .into_iter()
            .map(|violation| violation.field.trim_start_matches("spec.bigbench.").to_owned())
            .collect();
        assert_eq!(
            fields,
            [
                "dtype",
                "subsets[0].name",
                "subsets[0].train",
                "subsets[0].validation",
                "subsets[0].train_rows",
                "subsets[0].validation_rows",
                "generation.decodings[0].beam.num_beams",
                "fine_tuning.learning_rate"
            ]
        );
    }
}
