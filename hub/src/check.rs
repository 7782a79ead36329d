//! Whether a directory holds a model that a backend can open: every file present, well-formed, and in agreement
//! with the others. Nothing is allocated from a claimed size before the claim has been checked.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::config::{Architecture, ModelConfig, read_config};
use crate::error::Problem;
use crate::header::{HeaderError, TensorInfo, read_header};
use crate::name::Role;
use crate::tokenizer;
use crate::weights::{WeightFiles, WeightFormat, find_weights};

/// A model directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file is not there.
    #[error("`{file}` is missing; {advice}")]
    Missing {
        /// Relative to the directory.
        file: String,
        /// What to do.
        advice: String,
    },
    /// A file is larger than any real one.
    #[error("`{file}` has {bytes} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Relative to the directory.
        file: String,
        /// Its size.
        bytes: u64,
        /// The cap.
        limit: u64,
    },
    /// A file cannot be read.
    #[error("`{file}` cannot be read: {reason}")]
    Unreadable {
        /// Relative to the directory.
        file: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The configuration is unusable.
    #[error("`config.json`: {reason}")]
    Config {
        /// What is wrong with it.
        reason: String,
    },
    /// The model is of another kind.
    #[error("its architecture `{architecture}` cannot be used as a {role} (these can: {known})")]
    Role {
        /// What it is.
        architecture: Architecture,
        /// What was asked for.
        role: Role,
        /// What would do.
        known: String,
    },
    /// The index of sharded weights is unusable.
    #[error("`{file}`: {reason}")]
    Index {
        /// Relative to the directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file is corrupt.
    #[error("`{file}`: {reason}")]
    Safetensors {
        /// Relative to the directory.
        file: String,
        /// What is wrong with it.
        reason: HeaderError,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{tensor}` is in both `{first}` and `{second}`")]
    TensorTwice {
        /// Which.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// There is nothing in the files.
    #[error("the weights hold no tensors: download the model again")]
    NoTensors,
    /// A cached file is not what its name in the cache says.
    #[error(
        "`{file}` is damaged: its SHA-256 is {found}, the hub announced {announced}; remove it from the cache and pull the model again"
    )]
    Damaged {
        /// Relative to the directory.
        file: String,
        /// Of its content.
        found: String,
        /// Its name in the cache.
        announced: String,
    },
    /// The embedding has another number of rows than the configuration says.
    #[error(
        "`config.json` says vocab_size {vocab_size}, the embedding `{tensor}` has {rows} rows: they belong to different models"
    )]
    Embedding {
        /// Name of the embedding.
        tensor: String,
        /// By the configuration.
        vocab_size: u64,
        /// By the weights.
        rows: u64,
    },
}

/// What a checked model consists of.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Its configuration.
    pub config: ModelConfig,
    /// Its safetensors files.
    pub weights: WeightFiles,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
}

/// Checks a directory that holds `config.json`, `tokenizer.json` and safetensors.
///
/// # Errors
/// The first thing that is wrong, by the name of its file.
pub fn check_ready(dir: &Path) -> Result<Checked, Problem> {
    let config = read_config(dir)?;
    let weights = find_weights(dir)?;
    debug_assert_eq!(weights.format, WeightFormat::Safetensors);
    let tensors = check_safetensors(dir, &weights)?;
    check_embedding(&config, &tensors)?;
    let largest_id = tokenizer::check(dir)?;
    tokenizer::check_ids(largest_id, config.vocab_size)?;
    let weight_bytes = tensors.iter().map(|tensor| tensor.data.end - tensor.data.start).sum();
    let parameters = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    Ok(Checked { config, weights, weight_bytes, parameters })
}

/// Checks the headers of all files, and that no tensor occurs twice.
pub(crate) fn check_safetensors(dir: &Path, weights: &WeightFiles) -> Result<Vec<TensorInfo>, CheckError> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut all = Vec::new();
    for file in &weights.files {
        let tensors = read_header(&dir.join(file))
            .map_err(|reason| CheckError::Safetensors { file: file.clone(), reason })?;
        for tensor in &tensors {
            if let Some(first) = seen.insert(tensor.name.clone(), file) {
                return Err(CheckError::TensorTwice {
                    tensor: tensor.name.clone(),
                    first: first.to_owned(),
                    second: file.clone(),
                });
            }
        }
        all.extend(tensors);
    }
    if all.is_empty() { Err(CheckError::NoTensors) } else { Ok(all) }
}

fn check_embedding(config: &ModelConfig, tensors: &[TensorInfo]) -> Result<(), CheckError> {
    let is_embedding = |name: &str| match config.architecture {
        Architecture::T5 => name == "shared.weight",
        Architecture::ModernBert => name.ends_with("embeddings.tok_embeddings.weight"),
        _ => name.ends_with("embeddings.word_embeddings.weight"),
    };
    match tensors.iter().find(|tensor| is_embedding(&tensor.name)) {
        Some(tensor) if tensor.shape.first() != Some(&config.vocab_size) => Err(CheckError::Embedding {
            tensor: tensor.name.clone(),
            vocab_size: config.vocab_size,
            rows: tensor.shape.first().copied().unwrap_or(0),
        }),
        _ => Ok(()),
    }
}

/// Reads a small file whole; larger than `limit` is refused before it is read.
pub(crate) fn read_capped(dir: &Path, file: &str, limit: u64, advice: &str) -> Result<Vec<u8>, CheckError> {
    let unreadable = |reason| CheckError::Unreadable { file: file.to_owned(), reason };
    let opened = match File::open(dir.join(file)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CheckError::Missing { file: file.to_owned(), advice: advice.to_owned() });
        }
        other => other.map_err(unreadable)?,
    };
    let bytes = opened.metadata().map_err(unreadable)?.len();
    if bytes > limit {
        return Err(CheckError::TooLarge { file: file.to_owned(), bytes, limit });
    }
    let mut content = Vec::new();
    opened.take(limit).read_to_end(&mut content).map_err(unreadable)?;
    Ok(content)
}
