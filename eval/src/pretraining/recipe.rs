//! What a recipe says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The reference implementation's seed.
const DEFAULT_SEED: u64 = 11111;

/// A mixture and how to train on it. Paths are relative to the recipe's own folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// What it is called in results.
    pub name: String,
    /// The scorer to start from; the command line may name another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scorer: Option<String>,
    /// Seed of draws, order and held-out share.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Share of the instructions, in `[0, 1)`, whose examples are held out for validation.
    pub validation_share: f64,
    /// At most this many examples in all, after shuffling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_examples: Option<u64>,
    /// Folder with `<dataset>/templates.yaml`, for datasets that name no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
    /// Folder with `<dataset>/*.{jsonl,csv,parquet}`, for datasets that name no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datasets: Option<PathBuf>,
    /// Datasets with templates.
    #[serde(rename = "dataset", skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<DatasetEntry>,
    /// Files of labelled rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowsEntry>,
    /// Prompts for generators.
    pub prompts: Prompts,
    /// How the scorer is trained on the mixture.
    pub training: Training,
    /// The recipe's folder.
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

/// One dataset of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetEntry {
    /// Its folder below templates and datasets (`glue/mrpc`).
    pub folder: String,
    /// Folder of templates, if not the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
    /// Folder of datasets, if not the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasets: Option<PathBuf>,
    /// Only this many examples of the dataset, from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// At most this many rows of the mixture, drawn from all that the dataset gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
    /// How often each row goes in: 0.5 keeps half of them, 2 repeats each.
    #[serde(default = "one")]
    pub weight: f64,
    /// Wrong responses drawn from other examples for each free-text answer.
    #[serde(default = "one_u32")]
    pub mismatched: u32,
    /// At most this many of its questions also go to the generators.
    #[serde(default)]
    pub prompts: u64,
    /// Whether only templates for the dataset's original task are used, where there are any.
    #[serde(default)]
    pub original_task: bool,
}

/// A file of `{"instruction", "response", "label"}`, labels in `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsEntry {
    /// `.jsonl`, `.jsonl.gz` or `.jsonl.zst`.
    pub file: PathBuf,
    /// As [`DatasetEntry::cap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
    /// As [`DatasetEntry::weight`].
    #[serde(default = "one")]
    pub weight: f64,
}

/// Who answers the prompts, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompts {
    /// Generators; without any, no prompts are written.
    pub models: Vec<String>,
    /// Decodings; empty for the default ones.
    pub decodings: Vec<String>,
    /// Samples a sampling decoding; unset for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_samples: Option<u32>,
}

/// Settings of the trainer; what is unset has the trainer's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Highest rate of AdamW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Examples a micro-batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Micro-batches an update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<u32>,
    /// Updates in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updates: Option<u32>,
    /// Share of the updates in which the rate climbs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// `upstream` or `corrected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Share of activations dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Updates between evaluations on the held-out examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<u32>,
    /// Evaluations without gain after which training stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file system refused.
    #[error("failed to read {path}")]
    Io {
        /// The recipe.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a key that no recipe has.
    #[error("{path} is not a recipe")]
    Format {
        /// The recipe.
        path: String,
        /// The reason, with its place in the file.
        #[source]
        source: toml::de::Error,
    },
    /// A value out of its range, or nothing to mix.
    #[error("{path}: {reason}")]
    Value {
        /// The recipe.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

const fn default_seed() -> u64 {
    DEFAULT_SEED
}

const fn one() -> f64 {
    1.0
}

const fn one_u32() -> u32 {
    1
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// If the file cannot be read, has a key that no recipe has, or a value out of its range.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| RecipeError::Io { path: name.clone(), source })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut recipe = Self::parse(&name, &text, folder)?;
        if recipe.name.is_empty() {
            recipe.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        Ok(recipe)
    }

    /// Reads the text of a recipe whose paths are relative to `folder`; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(name: &str, text: &str, folder: PathBuf) -> Result<Self, RecipeError> {
        let mut recipe: Self =
            toml::from_str(text).map_err(|source| RecipeError::Format { path: name.to_owned(), source })?;
        recipe.folder = folder;
        match recipe.fault() {
            None => Ok(recipe),
            Some(reason) => Err(RecipeError::Value { path: name.to_owned(), reason }),
        }
    }

    fn fault(&self) -> Option<String> {
        if !(0.0..1.0).contains(&self.validation_share) {
            return Some(format!("validation_share {} is not in [0, 1)", self.validation_share));
        }
        let sources = self.entries.iter().map(|entry| (entry.folder.clone(), entry.weight));
        let files = self.rows.iter().map(|entry| (entry.file.display().to_string(), entry.weight));
        for (name, weight) in sources.chain(files) {
            if !(weight > 0.0 && weight <= 1000.0) {
                return Some(format!("weight {weight} of `{name}` is not above 0 and at most 1000"));
            }
        }
        for entry in &self.entries {
            let needs = |own: &Option<PathBuf>, shared: &Option<PathBuf>| own.is_none() && shared.is_none();
            if needs(&entry.templates, &self.templates) || needs(&entry.datasets, &self.datasets) {
                return Some(format!(
                    "`{}` needs `templates` and `datasets`: give them at the top or with the dataset",
                    entry.folder
                ));
            }
        }
        (self.entries.is_empty() && self.rows.is_empty())
            .then(|| "it names neither a [[dataset]] nor [[rows]], so there is nothing to mix".to_owned())
    }

    /// A path of the recipe, from where the program runs.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}
