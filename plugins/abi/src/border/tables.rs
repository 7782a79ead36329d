//! The C functions behind each object: one table an interface, in the order of the traits' methods.
//!
//! `this` is the object that came with the table. Descriptors and model infos travel as JSON text: they are asked for
//! once, people add fields to them, and a missing field is an error, never a wrong read.

use std::ffi::c_void;

use super::layout::crossing;
use super::values::{
    ControlRecord, DecodingRecord, GeneratedRecord, Given, Lent, LoadRecord, RaggedRecord, Reply,
};

crossing! {
    /// [`crate::Backend`]. Callable from any thread.
    pub struct BackendTable {
        /// Destroys `this`.
        pub release: unsafe extern "C" fn(*mut c_void),
        /// JSON of a [`crate::Descriptor`].
        pub describe: unsafe extern "C" fn(*const c_void) -> Reply<Given<u8>>,
        /// See [`crate::Backend::load_scorer`].
        pub load_scorer: unsafe extern "C" fn(*const c_void, LoadRecord) -> Reply<ScorerObject>,
        /// See [`crate::Backend::load_generator`].
        pub load_generator: unsafe extern "C" fn(*const c_void, LoadRecord) -> Reply<GeneratorObject>,
        /// See [`crate::Backend::load_trainer`].
        pub load_trainer: unsafe extern "C" fn(*const c_void, LoadRecord) -> Reply<TrainerObject>,
    }
}

crossing! {
    /// A [`crate::Backend`]. Whoever holds it calls `release` once.
    pub struct BackendObject {
        /// The object.
        pub this: *mut c_void,
        /// Its functions, in the plugin's static memory.
        pub table: *const BackendTable,
    }
}

crossing! {
    /// [`crate::Scorer`]. One thread at a time.
    pub struct ScorerTable {
        /// Destroys `this`.
        pub release: unsafe extern "C" fn(*mut c_void),
        /// JSON of a [`crate::ModelInfo`].
        pub info: unsafe extern "C" fn(*mut c_void) -> Reply<Given<u8>>,
        /// See [`crate::Scorer::score`].
        pub score: unsafe extern "C" fn(*mut c_void, RaggedRecord, ControlRecord) -> Reply<Given<f32>>,
    }
}

crossing! {
    /// A [`crate::Scorer`]. Whoever holds it calls `release` once.
    pub struct ScorerObject {
        /// The object.
        pub this: *mut c_void,
        /// Its functions, in the plugin's static memory.
        pub table: *const ScorerTable,
    }
}

crossing! {
    /// Arguments of [`crate::Generator::generate`].
    #[derive(Clone, Copy)]
    pub struct GenerateRecord {
        /// The encoding.
        pub encoding: u64,
        /// The decodings.
        pub decodings: Lent<DecodingRecord>,
        /// The job's seed.
        pub seed: u64,
        /// One a row of the encoding.
        pub row_keys: Lent<u64>,
    }
}

crossing! {
    /// [`crate::Generator`]. One thread at a time.
    pub struct GeneratorTable {
        /// Destroys `this`.
        pub release: unsafe extern "C" fn(*mut c_void),
        /// JSON of a [`crate::ModelInfo`].
        pub info: unsafe extern "C" fn(*mut c_void) -> Reply<Given<u8>>,
        /// See [`crate::Generator::encode`].
        pub encode: unsafe extern "C" fn(*mut c_void, RaggedRecord, ControlRecord) -> Reply<u64>,
        /// See [`crate::Generator::generate`].
        pub generate: unsafe extern "C" fn(*mut c_void, GenerateRecord, ControlRecord) -> Reply<GeneratedRecord>,
        /// See [`crate::Generator::log_likelihood`]: encoding, targets, rows.
        pub log_likelihood:
            unsafe extern "C" fn(*mut c_void, u64, RaggedRecord, Lent<u32>, ControlRecord) -> Reply<Given<f32>>,
        /// See [`crate::Generator::forget`]. Replies 0.
        pub forget: unsafe extern "C" fn(*mut c_void, u64) -> Reply<u8>,
    }
}

crossing! {
    /// A [`crate::Generator`]. Whoever holds it calls `release` once.
    pub struct GeneratorObject {
        /// The object.
        pub this: *mut c_void,
        /// Its functions, in the plugin's static memory.
        pub table: *const GeneratorTable,
    }
}

crossing! {
    /// [`crate::Trainer`]. One thread at a time.
    pub struct TrainerTable {
        /// Destroys `this`.
        pub release: unsafe extern "C" fn(*mut c_void),
        /// JSON of a [`crate::ModelInfo`].
        pub info: unsafe extern "C" fn(*mut c_void) -> Reply<Given<u8>>,
        /// See [`crate::Trainer::accumulate`]: batch, labels, step.
        pub accumulate:
            unsafe extern "C" fn(*mut c_void, RaggedRecord, Lent<f32>, u64, ControlRecord) -> Reply<f32>,
        /// See [`crate::Trainer::update`].
        pub update: unsafe extern "C" fn(*mut c_void, f64) -> Reply<f64>,
        /// See [`crate::Trainer::score`].
        pub score: unsafe extern "C" fn(*mut c_void, RaggedRecord, ControlRecord) -> Reply<Given<f32>>,
        /// See [`crate::Trainer::save_model`]. Replies 0.
        pub save_model: unsafe extern "C" fn(*mut c_void, Lent<u8>) -> Reply<u8>,
        /// See [`crate::Trainer::save_checkpoint`]. Replies 0.
        pub save_checkpoint: unsafe extern "C" fn(*mut c_void, Lent<u8>) -> Reply<u8>,
        /// See [`crate::Trainer::load_checkpoint`]. Replies 0.
        pub load_checkpoint: unsafe extern "C" fn(*mut c_void, Lent<u8>) -> Reply<u8>,
    }
}

crossing! {
    /// A [`crate::Trainer`]. Whoever holds it calls `release` once.
    pub struct TrainerObject {
        /// The object.
        pub this: *mut c_void,
        /// Its functions, in the plugin's static memory.
        pub table: *const TrainerTable,
    }
}

/// Makes the backend; exported by each plugin.
pub type Factory = unsafe extern "C" fn() -> Reply<BackendObject>;
