//! What transformers and PyTorch found with the tiny models of `fixtures/`, and what must hold for them in any backend,
//! run on each by [`golden_suite!`](crate::golden_suite).
//!
//! The scripts that stored the numbers stand beside them (`fixtures/make_*.py`); [`stored`] reads them, for the checks
//! here and for a backend's own tests. Classifiers: `scores.rs`; their training: `fine_tuning.rs`; T5: its numbers in
//! `generation.rs`, its calls in `requests.rs`.

pub mod fine_tuning;
pub mod generation;
pub mod requests;
pub mod scores;
pub mod stored;

use std::sync::Arc;

use cappy_plugin_abi::{
    Backend, Decoding, EncodingId, Generated, Generator, LoadRequest, Method, MinLengthRule, Scorer, Trainer,
    Unattended,
};

use super::{Model, batch_of, device, done, fixture_dir};
use stored::Settings;

/// A backend that has scorers of every family, generators and trainers.
pub struct Golden {
    /// The implementation itself: the border refuses and checks much before a backend sees it.
    pub backend: Arc<dyn Backend>,
    /// Of [`stored::CLASSIFIERS`], those that it trains.
    pub trained: &'static [&'static str],
    /// Where it generates.
    pub generator_device: String,
    /// Where it trains.
    pub trainer_device: String,
    /// Whether it scores in bf16 on the tests' device.
    pub scores_in_bf16: bool,
    /// Whether it generates in bf16 where it generates.
    pub generates_in_bf16: bool,
    /// How far it may be off.
    pub bounds: Bounds,
}

/// What rounding may make of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A score in f32, absolute.
    pub score: f32,
    /// A row's score alone, from its score in a batch.
    pub score_alone: f32,
    /// A token's log-probability, relative to it, or to a tenth where it is less than that.
    pub likelihood: f64,
    /// A generated token's log-probability when its row is alone, or asked with fewer decodings, absolute.
    pub likelihood_alone: f32,
    /// Losses and norms of gradients over 20 updates, relative; scores after them, absolute.
    pub loss: f64,
}

impl Golden {
    /// Everything on the tests' [`device`], and in bf16 too if the backend knows it.
    pub fn new(backend: Arc<dyn Backend>, trained: &'static [&'static str], bounds: Bounds) -> Self {
        let bf16 = backend.describe().dtypes.iter().any(|it| it == "bf16");
        Self {
            backend,
            trained,
            generator_device: device(),
            trainer_device: device(),
            scores_in_bf16: bf16,
            generates_in_bf16: bf16,
            bounds,
        }
    }

    fn scorer(&self, request: &LoadRequest) -> Box<dyn Scorer> {
        let scorer = self.backend.load_scorer(request);
        scorer.unwrap_or_else(|failure| panic!("{}: {failure}", request.model_dir))
    }

    /// `options`: JSON.
    fn trainer_request(&self, request: &LoadRequest, options: &str) -> LoadRequest {
        let device = self.trainer_device.clone();
        LoadRequest { options_json: options.into(), device, ..request.clone() }
    }

    fn trainer(&self, request: &LoadRequest, options: &str) -> Box<dyn Trainer> {
        let trainer = self.backend.load_trainer(&self.trainer_request(request, options));
        trainer.unwrap_or_else(|failure| panic!("{}: {failure}", request.model_dir))
    }

    fn generator_request(&self, model: &str) -> LoadRequest {
        LoadRequest { device: self.generator_device.clone(), ..request(model) }
    }

    fn generator(&self, request: &LoadRequest) -> Box<dyn Generator> {
        let generator = self.backend.load_generator(request);
        generator.unwrap_or_else(|failure| panic!("{}: {failure}", request.model_dir))
    }

    /// A generator in f32 and an encoding of `sources`.
    fn encoded(&self, model: &str, sources: &[Vec<u32>]) -> (Box<dyn Generator>, EncodingId) {
        let mut generator = self.generator(&self.generator_request(model));
        let encoding = done(generator.encode(batch_of(sources).view(), &Unattended));
        (generator, encoding)
    }
}

/// One of the fixtures, a classifier's by its family's name alone: on the tests' [`device`], in f32.
///
/// # Panics
/// When it is not there.
pub fn request(model: &str) -> LoadRequest {
    Model::new(fixture_dir(&stored::folder(model))).request
}

/// The seed's five decodings, [`OUTPUTS`] outputs a row.
pub fn five_decodings() -> Vec<Decoding> {
    let beam = Settings {
        num_beams: 4,
        min_length: 3,
        max_length: 64,
        length_penalty: 1.0,
        early_stopping: false,
        num_return_sequences: None,
    };
    vec![
        beam.decoding(),
        sampling(1, 1.0, 50, 1.0, 64),
        sampling(2, 0.9, 50, 1.0, 64),
        sampling(3, 1.0, 40, 1.0, 64),
        sampling(4, 1.0, 50, 0.95, 64),
    ]
}

/// Outputs of a row with [`five_decodings`].
pub const OUTPUTS: usize = 17;

/// Four samples of 3 to `max_length` tokens.
pub fn sampling(key: u64, temperature: f64, top_k: u32, top_p: f64, max_length: u32) -> Decoding {
    Decoding {
        key,
        method: Method::Sample { temperature, top_k, top_p },
        num_samples: 4,
        min_length: 3,
        max_length,
        min_length_rule: MinLengthRule::Pytorch,
    }
}

/// Tokens of every output.
pub fn sequences(generated: &Generated) -> Vec<&[u32]> {
    generated.offsets.windows(2).map(|w| &generated.tokens[w[0] as usize..w[1] as usize]).collect()
}

/// As many numbers, none further than `bound` from its own.
///
/// # Panics
/// When they are not, naming `what` and the place.
#[track_caller]
pub fn close(got: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= bound, "{what}, element {i}: {got} not {expected}");
    }
}

/// Runs the golden checks as tests of a module: `golden_suite!(module, expression)`, where the expression makes a
/// [`Golden`] and is evaluated once a test.
#[macro_export]
macro_rules! golden_suite {
    ($module:ident, $golden:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::backend_suite! { @tests $golden;
                golden::scores::scores_are_those_of_transformers: scores_are_those_of_transformers,
                golden::scores::scores_in_bf16_are_near: scores_in_bf16_are_near,
                golden::scores::a_row_alone_scores_as_in_a_batch: a_row_alone_scores_as_in_a_batch,
                golden::scores::one_label_of_several_ranks: one_label_of_several_ranks,
                golden::scores::other_names_of_tensors_are_found: other_names_of_tensors_are_found,
                golden::fine_tuning::fine_tuning_follows_pytorch: fine_tuning_follows_pytorch,
                golden::fine_tuning::one_label_of_several_is_trained: one_label_of_several_is_trained,
                golden::fine_tuning::every_family_is_trained: every_family_is_trained,
                golden::fine_tuning::gradients_lead_downhill_as_far_as_they_say:
                    gradients_lead_downhill_as_far_as_they_say,
                golden::fine_tuning::an_exploded_model_says_so: an_exploded_model_says_so,
                golden::fine_tuning::an_encoder_without_head_gets_one: an_encoder_without_head_gets_one,
                golden::fine_tuning::what_cannot_be_trained_is_refused: what_cannot_be_trained_is_refused,
                golden::generation::likelihoods_are_those_of_transformers: likelihoods_are_those_of_transformers,
                golden::generation::likelihoods_in_bf16_are_near: likelihoods_in_bf16_are_near,
                golden::generation::beams_are_those_of_transformers: beams_are_those_of_transformers,
                golden::generation::samples_follow_the_models_distribution:
                    samples_follow_the_models_distribution,
                golden::requests::a_row_does_not_depend_on_its_batch_or_on_other_decodings:
                    a_row_does_not_depend_on_its_batch_or_on_other_decodings,
                golden::requests::generated_log_probs_are_the_likelihoods_of_the_same_tokens:
                    generated_log_probs_are_the_likelihoods_of_the_same_tokens,
                golden::requests::the_end_token_waits_for_the_minimum_length:
                    the_end_token_waits_for_the_minimum_length,
                golden::requests::targets_may_crowd_on_one_row: targets_may_crowd_on_one_row,
                golden::requests::nothing_asked_is_nothing_answered: nothing_asked_is_nothing_answered,
                golden::requests::calls_report_progress_and_can_be_cancelled:
                    calls_report_progress_and_can_be_cancelled,
                golden::requests::bad_requests_are_refused_in_one_line: bad_requests_are_refused_in_one_line,
            }
        }
    };
}
