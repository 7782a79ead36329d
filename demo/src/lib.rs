//! The demo: a generator, a scorer and a benchmark small enough to travel inside the program.
//!
//! A request for the model `demo` goes through this crate once: the hub asks for [`GENERATOR_FILES`] or
//! [`SCORER_FILES`] and writes them to a directory of its cache like any downloaded model; the benchmark importer
//! reads [`BENCHMARK_FILES`], which are BIG-bench's own `task.json` files; the planner takes [`DEMO_SETTINGS`] in
//! place of the defaults meant for a scorer of 360 million parameters. Nothing here knows what a model or a task
//! is: the files are bytes with a path.
//!
//! `tools/demo/make.py` makes every asset again; the README beside each model says how it was trained.
//!
//! ```
//! let (path, bytes) = cappy_demo::BENCHMARK_FILES[0];
//! assert!(path.ends_with("/task.json") && !bytes.is_empty());
//! ```

/// A file of the demo: its path relative to the folder it belongs to (`/` between parts), and its content.
pub type File = (&'static str, &'static [u8]);

/// The short name by which `--model` and `--scorer` ask for the demo models.
pub const MODEL_NAME: &str = "demo";

/// Fine-tuning settings of a scorer, in the words of `submit adapt`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rows of one subset's training set, after repeating or cutting the list.
    pub train_size: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Rows of a micro-batch.
    pub batch_size: u32,
    /// Micro-batches whose mean gradient makes one update.
    pub accumulate: u32,
    /// Share of the updates over which the rate climbs.
    pub warmup: f64,
    /// Dropout of hidden states and attention weights during training.
    pub dropout: f64,
    /// The schedule's name: `corrected` decays to zero, `upstream` is the seed's.
    pub schedule: &'static str,
}

/// What `--model demo` uses unless told otherwise: found by `tools/demo/simulate.py` to learn much in a few seconds a task.
pub const DEMO_SETTINGS: Settings = Settings {
    train_size: 1536,
    learning_rate: 5e-4,
    batch_size: 8,
    accumulate: 1,
    warmup: 0.1,
    dropout: 0.0,
    schedule: "corrected",
};

macro_rules! files {
    ($folder:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_bytes!(concat!("../assets/", $folder, "/", $path)))),+]
    };
}

/// The demo generator: a small T5 v1.1 in the layout of a hub model.
pub const GENERATOR_FILES: &[File] = files!("generator": "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");

/// The demo scorer: a small RoBERTa regressor in the layout of a hub model.
pub const SCORER_FILES: &[File] = files!("scorer": "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");

/// The demo benchmark: `<task>/task.json` in BIG-bench's format, one for each subset, by name.
pub const BENCHMARK_FILES: &[File] = files!("benchmark":
    "count_words/task.json",
    "list_functions/task.json",
    "past_tense/task.json",
    "small_arithmetic/task.json",
    "sort_words/task.json",
    "unscramble/task.json",
);
