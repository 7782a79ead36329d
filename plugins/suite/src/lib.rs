//! The conformance suite: what every backend must do, run on each by [`backend_suite!`](crate::backend_suite).
//!
//! A backend crate makes a tiny model in a directory of its own and runs
//! ```text
//! fn fixture() -> Fixture {
//!     let dir = fixture_dir("encoders/roberta");
//!     Fixture::new(builtin(Mine).expect("describes itself"))
//!         .scorer(Model::new(&dir))
//!         .trainer(Model { learning_rate: 1e-2, ..Model::new(&dir) })
//! }
//! cappy_plugin_suite::backend_suite!(linked, fixture());
//! ```
//! Parts that a backend lacks stay out, and their tests say so and pass. The files: what loading refuses
//! (`loading.rs`), then one file an interface. [`device`] says where models are loaded to.
//!
//! A crate of its own, for development only: were it a feature of the contract, a build of one package and a build of
//! the workspace would make two contract crates that do not fit each other.

pub mod bench;
pub mod generation;
pub mod golden;
pub mod loading;
mod place;
pub mod scoring;
pub mod training;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use cappy_plugin_abi::random::{fold, key_of, mix};
use cappy_plugin_abi::{Backend, Code, Control, Failure, LoadRequest, ModelInfo, TokenRows};
pub use place::{device, fixture_dir};

/// A backend and a small model for each interface that it has.
pub struct Fixture {
    /// From [`cappy_plugin_abi::builtin`] or opened by the host.
    pub backend: Arc<dyn Backend>,
    /// A sequence classifier.
    pub scorer: Option<Model>,
    /// An encoder-decoder.
    pub generator: Option<Model>,
    /// A sequence classifier with one label.
    pub trainer: Option<Model>,
}

impl Fixture {
    /// A backend without models.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, scorer: None, generator: None, trainer: None }
    }

    /// Adds the scorer's model.
    #[must_use]
    pub fn scorer(self, model: Model) -> Self {
        Self { scorer: Some(model), ..self }
    }

    /// Adds the generator's model.
    #[must_use]
    pub fn generator(self, model: Model) -> Self {
        Self { generator: Some(model), ..self }
    }

    /// Adds the trainer's model.
    #[must_use]
    pub fn trainer(self, model: Model) -> Self {
        Self { trainer: Some(model), ..self }
    }
}

/// A small model and what may be asked of it.
#[derive(Clone)]
pub struct Model {
    /// How to load it.
    pub request: LoadRequest,
    /// Ids to make rows of; `None`: from 3 (behind the special tokens) to the vocabulary's end.
    pub token_ids: Option<Range<u32>>,
    /// Largest difference, absolute and relative to values above 1, that rounding may make.
    pub tolerance: f32,
    /// Trainer: at which twenty updates on one batch lower its loss.
    pub learning_rate: f64,
}

impl Model {
    /// A directory with `config.json` and weights, on the tests' [`device`] in f32, with differences up to 1e-4.
    ///
    /// # Panics
    /// When there is no readable `config.json`.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref();
        let config = dir.join("config.json");
        Self {
            request: LoadRequest {
                model_dir: dir.to_str().expect("a UTF-8 path").into(),
                config_json: std::fs::read_to_string(&config)
                    .unwrap_or_else(|error| panic!("{}: {error}", config.display())),
                device: device(),
                dtype: "f32".into(),
                options_json: "{}".into(),
            },
            token_ids: None,
            tolerance: 1e-4,
            learning_rate: 1e-3,
        }
    }

    /// On another device than the tests': for what runs on the CPU alone.
    #[must_use]
    pub fn on(mut self, device: &str) -> Self {
        self.request.device = device.into();
        self
    }

    /// Whether training twice gives the same bits. A GPU adds up some gradients in no fixed order.
    fn trains_bit_for_bit(&self) -> bool {
        self.request.device == "cpu"
    }

    /// `count` rows of different lengths, 1 token to `longest`.
    fn rows(&self, info: &ModelInfo, count: usize, longest: u32) -> Vec<Vec<u32>> {
        let ids = self.token_ids.clone().unwrap_or(3..info.vocab_size);
        let longest = if info.max_tokens == 0 { longest } else { longest.min(info.max_tokens) };
        let draw = |key: u64, range: Range<u32>| {
            range.start + (mix(key) % u64::from(range.end - range.start)) as u32
        };
        (0..count as u64)
            .map(|row| {
                let key = fold(key_of("suite"), row);
                let length = if row == 0 { longest } else { draw(key, 1..longest + 1) };
                (0..length).map(|i| draw(fold(key, 1 + u64::from(i)), ids.clone())).collect()
            })
            .collect()
    }

    #[track_caller]
    fn assert_close(&self, got: &[f32], expected: &[f32], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (&a, &b)) in got.iter().zip(expected).enumerate() {
            let allowed = self.tolerance * b.abs().max(1.0);
            assert!((a - b).abs() <= allowed, "{what}: value {i} is {a}, expected {b}");
        }
    }
}

/// Rows of token ids as a batch.
pub fn batch_of<'a>(rows: impl IntoIterator<Item = &'a Vec<u32>>) -> TokenRows {
    let mut batch = TokenRows::new();
    for row in rows {
        batch.push(row);
    }
    batch
}

/// Wants every call to end.
struct CancelledControl;

impl Control for CancelledControl {
    fn cancelled(&self) -> bool {
        true
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

#[track_caller]
fn refused<T>(result: Result<T, Failure>, code: Code, naming: &str, what: &str) -> Failure {
    let Err(failure) = result else { panic!("{what}: not refused") };
    assert_eq!(failure.code, code, "{what}: {failure}");
    assert!(failure.message.contains(naming), "{what}: `{failure}` does not name `{naming}`");
    assert!(
        !failure.message.is_empty() && !failure.message.contains('\n'),
        "{what}: one line, not `{failure}`"
    );
    failure
}

#[track_caller]
fn done<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{:?}: {failure}", failure.code))
}

/// The description does not change and is complete.
pub fn descriptor_is_stable(fixture: &Fixture) {
    let first = fixture.backend.describe();
    assert_eq!(first, fixture.backend.describe());
    assert!(
        !first.name.is_empty() && !first.version.is_empty() && !first.engine_version.is_empty(),
        "{first:?}"
    );
    assert!(!first.devices.is_empty() && !first.dtypes.is_empty(), "{first:?}");
    assert_eq!(fixture.scorer.is_some(), !first.scorer_architectures.is_empty(), "{first:?}");
    assert_eq!(fixture.generator.is_some(), !first.generator_architectures.is_empty(), "{first:?}");
    assert_eq!(fixture.trainer.is_some(), first.features.iter().any(|it| it == "training"), "{first:?}");
}

/// Runs the conformance suite as tests of a module: `backend_suite!(module, expression)`, where the expression makes
/// a [`Fixture`] and is evaluated once a test.
#[macro_export]
macro_rules! backend_suite {
    ($module:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::backend_suite! { @tests $fixture;
                descriptor_is_stable: descriptor_is_stable,
                loading::unknown_architectures_dtypes_and_devices_are_unsupported:
                    unknown_architectures_dtypes_and_devices_are_unsupported,
                loading::unknown_options_are_refused: unknown_options_are_refused,
                loading::missing_and_damaged_files_are_bad_models: missing_and_damaged_files_are_bad_models,
                scoring::rows_score_alike_in_every_batch: rows_score_alike_in_every_batch,
                scoring::bad_batches_are_refused: bad_batches_are_refused,
                scoring::a_cancelled_score_ends: a_cancelled_score_ends,
                generation::rows_generate_alike_in_every_batch: rows_generate_alike_in_every_batch,
                generation::sequences_keep_their_limits: sequences_keep_their_limits,
                generation::likelihoods_agree_with_generation: likelihoods_agree_with_generation,
                generation::encodings_live_until_they_are_forgotten: encodings_live_until_they_are_forgotten,
                generation::a_cancelled_generation_ends: a_cancelled_generation_ends,
                training::training_lowers_the_loss: training_lowers_the_loss,
                training::micro_batches_add_up: micro_batches_add_up,
                training::an_update_needs_a_gradient: an_update_needs_a_gradient,
                training::a_saved_model_scores_alike: a_saved_model_scores_alike,
                training::a_resumed_run_is_bit_equal: a_resumed_run_is_bit_equal,
                training::damaged_checkpoints_are_refused: damaged_checkpoints_are_refused,
            }
        }
    };
    (@tests $fixture:expr; $($($check:ident)::+: $name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::$($check)::+(&$fixture);
            }
        )*
    };
}
