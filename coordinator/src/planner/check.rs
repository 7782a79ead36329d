//! Refuses a bad spec, with every mistake at once and the field of each.

use std::collections::HashSet;

use cappy_proto::{ModelId, v1};

use super::kinds::{kind_of, model_folder};

/// Priorities go from minus this to this.
const MAX_PRIORITY: i32 = 100;
/// Outputs a row, over all decodings.
const MAX_CANDIDATES: u64 = 1000;
/// Most beams of one search.
const MAX_BEAMS: u32 = 256;
/// Most workers that compute a shard together.
const MAX_RANKS: u32 = 64;
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

/// Every mistake in a spec, field by field.
pub(crate) fn check(spec: &v1::JobSpec) -> Vec<Violation> {
    let Some(kind) = kind_of(spec) else {
        return vec![Violation::new(
            "spec.kind",
            "say what kind of job this is, and one that this coordinator knows",
        )];
    };
    let mut check = Check { prefix: format!("spec.{}", kind.word()), out: Vec::new() };
    kind.check(&mut check);
    if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&spec.priority) {
        check.out.push(Violation::new("spec.priority", "must be between -100 and 100"));
    }
    check.out
}

/// Gathers the mistakes of one spec.
pub(crate) struct Check {
    /// Path of the spec's message.
    prefix: String,
    out: Vec<Violation>,
}

impl Check {
    pub(super) fn that(&mut self, holds: bool, field: &str, reason: &str) {
        if !holds {
            self.out.push(Violation::new(format!("{}.{field}", self.prefix), reason));
        }
    }

    pub(super) fn scorer(&mut self, scorer: &str) {
        self.that(!scorer.trim().is_empty(), "scorer", "name a scorer");
    }

    pub(super) fn dtype(&mut self, dtype: &str) {
        let reason = format!("`{}` is not one of auto, f32, bf16, int8", shown(dtype));
        self.that(DTYPES.contains(&dtype), "dtype", &reason);
    }

    /// Workers that hold a generator together.
    pub(super) fn model_shards(&mut self, shards: u32, backend: &str, endpoint: Option<&v1::Endpoint>) {
        self.ranks("model_shards", shards, backend);
        let endless = shards <= 1 || endpoint.is_none();
        self.that(endless, "model_shards", "a model behind an endpoint cannot be split; leave it unset");
    }

    /// Workers that train together.
    pub(super) fn data_parallel(&mut self, ranks: u32, backend: &str, tuning: Option<&v1::FineTuning>) {
        self.ranks("data_parallel", ranks, backend);
        let rows = tuning.map_or(0, |tuning| tuning.batch_size);
        let reason = format!(
            "a micro-batch of {rows} rows cannot be shared by {ranks} workers; raise fine_tuning.batch_size"
        );
        self.that(ranks <= 1 || rows == 0 || ranks <= rows, "data_parallel", &reason);
    }

    fn ranks(&mut self, field: &str, ranks: u32, backend: &str) {
        self.that(ranks <= MAX_RANKS, field, "at most 64 workers compute together");
        let alone = "the candle backend runs on one device; use libtorch, or leave this unset";
        self.that(ranks <= 1 || backend != "candle", field, alone);
    }

    /// A generator, by name or behind an endpoint.
    pub(super) fn generator(&mut self, field: &str, model: &str, endpoint: Option<&v1::Endpoint>) {
        if model.trim().is_empty() {
            return self.that(false, field, "name a generator");
        }
        self.that(model_folder(model).is_some(), field, "its last component must be a name");
        self.that(
            !model.starts_with(ModelId::PREFIX),
            field,
            "a registered model is a scorer; name a generator",
        );
        if let Some(endpoint) = endpoint {
            let http = endpoint.url.starts_with("https://") || endpoint.url.starts_with("http://");
            self.that(http, "endpoint.url", "must begin with https:// or http://");
            self.that(
                !endpoint.model.trim().is_empty(),
                "endpoint.model",
                "name the model as the endpoint calls it",
            );
        }
    }

    /// A generator that need not be: without one, nothing that belongs to it.
    pub(super) fn optional_generator(
        &mut self,
        model: &str,
        endpoint: Option<&v1::Endpoint>,
        generation: Option<&v1::GenerationSettings>,
    ) {
        if model.is_empty() {
            self.that(endpoint.is_none(), "endpoint", "an endpoint needs a model");
        } else {
            self.generator("model", model, endpoint);
            self.generation(generation);
        }
    }

    /// A file of rows.
    pub(super) fn rows(&mut self, field: &str, file: Option<&v1::RowFile>) {
        let Some(file) = file else {
            return self.that(false, field, "upload the rows and name their artifact");
        };
        self.that(
            is_plain_name(&file.name),
            &format!("{field}.name"),
            &format!("`{}` must be letters, digits, `_`, `-` and `.`", shown(&file.name)),
        );
        self.that(
            file.artifact.is_some(),
            &format!("{field}.artifact"),
            "upload the rows and name their artifact",
        );
        self.that(file.rows > 0, &format!("{field}.rows"), "a file without rows gives nothing");
    }

    pub(super) fn generation(&mut self, settings: Option<&v1::GenerationSettings>) {
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

    pub(super) fn fine_tuning(&mut self, settings: Option<&v1::FineTuning>) {
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
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use cappy_proto::v1::job_spec::Kind;

    use super::*;

    fn fields(kind: Kind) -> Vec<String> {
        let spec = v1::JobSpec { kind: Some(kind), priority: 0 };
        check(&spec).into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        assert_eq!(
            fields(Kind::Bigbench(v1::BigbenchSpec::default())),
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
        let fields: Vec<String> = fields(Kind::Bigbench(spec))
            .into_iter()
            .map(|field| field.trim_start_matches("spec.bigbench.").to_owned())
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

    #[test]
    fn groups_are_checked_against_what_they_share() {
        let adapt = |data_parallel, backend: &str, batch_size| {
            let fine_tuning = Some(v1::FineTuning { batch_size, ..Default::default() });
            let spec =
                v1::AdaptSpec { data_parallel, backend: backend.into(), fine_tuning, ..Default::default() };
            let told = fields(Kind::Adapt(spec));
            told.iter().filter(|field| field.ends_with("data_parallel")).count()
        };
        assert_eq!(
            [adapt(0, "candle", 8), adapt(1, "candle", 8), adapt(8, "", 8), adapt(2, "libtorch", 8)],
            [0; 4]
        );
        assert_eq!([adapt(2, "candle", 8), adapt(9, "", 8), adapt(65, "", 128)], [1; 3]);
        let generate = |model_shards, endpoint: bool| {
            let endpoint = endpoint.then(v1::Endpoint::default);
            let spec = v1::GenerateSpec { model_shards, endpoint, ..Default::default() };
            fields(Kind::Generate(spec)).iter().any(|field| field.ends_with("model_shards"))
        };
        assert_eq!([generate(1, true), generate(2, true), generate(2, false)], [false, true, false]);
    }

    #[test]
    fn every_kind_says_what_it_lacks() {
        for (kind, expected) in [
            (Kind::Generate(v1::GenerateSpec::default()), "spec.generate: model files generation"),
            (Kind::Score(v1::ScoreSpec::default()), "spec.score: scorer input"),
            (
                Kind::Boost(v1::BoostSpec {
                    model: "mdl_01hzzzzzzzzzzzzzzzzzzzzzzz".into(),
                    endpoint: Some(v1::Endpoint { url: "ftp://x".into(), ..Default::default() }),
                    ..Default::default()
                }),
                "spec.boost: scorer input model endpoint.url endpoint.model generation",
            ),
            (Kind::Promptsource(v1::PromptsourceSpec::default()), "spec.promptsource: scorer input"),
            (
                Kind::Adapt(v1::AdaptSpec {
                    endpoint: Some(v1::Endpoint::default()),
                    validation: Some(v1::RowFile { name: "a/b".into(), ..Default::default() }),
                    ..Default::default()
                }),
                "spec.adapt: scorer train validation.name validation.artifact validation.rows form endpoint \
                 fine_tuning",
            ),
            (
                Kind::Pretrain(v1::PretrainSpec {
                    models: vec!["a/x".into(), "b/x".into()],
                    ..Default::default()
                }),
                "spec.pretrain: scorer examples prompts models[1] fine_tuning",
            ),
        ] {
            let (prefix, names) = expected.split_once(": ").unwrap();
            let names: Vec<String> =
                names.split_whitespace().map(|name| format!("{prefix}.{name}")).collect();
            assert_eq!(fields(kind), names);
        }
        let unknown = check(&v1::JobSpec { kind: None, priority: 0 });
        assert_eq!(unknown[0].field, "spec.kind");
        let score = v1::JobSpec { kind: Some(Kind::Score(v1::ScoreSpec::default())), priority: 101 };
        assert_eq!(check(&score).last().unwrap().field, "spec.priority");
    }
}
