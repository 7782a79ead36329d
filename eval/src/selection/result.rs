//! What one subset came to, as it lies in `<subset>.json`.

use std::io::Write as _;
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::python_json;
use crate::rows::{persist, temporary_beside};

/// The result of one subset. Only `rougeL` is certain: a file with nothing else, as the reference implementation
/// writes it, loads.
///
/// All measures are means over the validation rows that have references, in `[0, 1]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SubsetResult {
    /// Mean ROUGE-L F1 of the chosen candidates; not a number where nobody chose.
    #[serde(rename = "rougeL", serialize_with = "number_out", deserialize_with = "number_in")]
    pub rouge_l: f64,
    /// Mean ROUGE-L of each baseline's choice: a decoding's first sample, or the generator's own favourite
    /// ([`super::SELF_SCORE_SUM`], [`super::SELF_SCORE_MEAN`]). One that some row lacks is absent.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub baselines: IndexMap<String, f64>,
    /// Mean ROUGE-L of the best candidate of each row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oracle: Option<f64>,
    /// Share of the way from beam search to the oracle; negative if worse than beam search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_closed: Option<f64>,
    /// Bootstrap interval of `rougeL` over rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence_95: Option<[f64; 2]>,
    /// Spearman correlation of scores with ROUGE-L over all candidates of the subset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spearman: Option<f64>,
    /// The same within each row, averaged over the rows where both vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spearman_within_rows: Option<f64>,
    /// Validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Those that count in no mean because there is nothing to compare with.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows_without_references: u64,
    /// Share of rows whose instruction was cut to fit a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated_share: Option<f64>,
    /// How the result came about: schedule, train size, seed, models ...
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// Row by row, for intervals over several subsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_row: Option<PerRow>,
}

/// The choice of each row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerRow {
    /// `[rows]` position of the chosen candidate.
    pub chosen: Vec<u32>,
    /// `[rows with references]` its ROUGE-L.
    #[serde(rename = "rougeL")]
    pub rouge_l: Vec<f64>,
}

/// Why a result could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum ResultFileError {
    /// The file system refused.
    #[error("failed to access {path}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Not a result.
    #[error("{path} is not a result file")]
    Format {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}

impl SubsetResult {
    /// Reads `<subset>.json`.
    ///
    /// # Errors
    /// If the file cannot be read or holds no `rougeL`.
    pub fn load(path: &Path) -> Result<Self, ResultFileError> {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| ResultFileError::Io { path: name(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| ResultFileError::Format { path: name(), source })
    }

    /// Writes `<subset>.json`, whole or not at all.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn save(&self, path: &Path) -> Result<(), ResultFileError> {
        let name = || path.display().to_string();
        let text = self.to_json().map_err(|source| ResultFileError::Format { path: name(), source })?;
        let write = || {
            let mut file = temporary_beside(path)?;
            file.write_all(text.as_bytes())?;
            persist(file, path)
        };
        write().map_err(|source| ResultFileError::Io { path: name(), source })
    }

    /// The file's text, as Python's `json.dumps` would write it.
    ///
    /// # Errors
    /// Never for results made here; settings with unserialisable values cannot be built.
    pub fn to_json(&self) -> serde_json::Result<String> {
        python_json::to_string(self)
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn number_out<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if x.is_nan() { serializer.serialize_none() } else { serializer.serialize_f64(*x) }
}

fn number_in<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
