//! Rows and scores from artifacts.

use std::io::BufReader;

use cappy_eval::rows::{GeneratedRow, JsonLines, ReadError};
use serde::{Deserialize, de::DeserializeOwned};

use super::{ArtifactRef, LocalError};
use crate::artifacts::ArtifactStore;

/// Rows of one file in several artifacts; the first bad line ends it.
pub(super) fn lines<T: DeserializeOwned>(
    artifacts: &ArtifactStore,
    name: &str,
    parts: &[ArtifactRef],
) -> impl Iterator<Item = Result<T, LocalError>> {
    let reader = artifacts.reader(parts.iter().map(|part| (part.id.clone(), part.size_bytes)));
    JsonLines::<T, _>::new(name, BufReader::with_capacity(256 * 1024, reader)).map(|line| match line {
        Ok(line) => Ok(line.value),
        Err(ReadError::Bad(bad)) => Err(LocalError::Bad(bad.to_string())),
        Err(ReadError::Io { source, .. }) => Err(LocalError::Io(source)),
    })
}

/// Generated rows with their candidates in the order of `decodings`, which is the order of the scores; candidates of
/// other decodings are left out. No decodings: as in the file.
pub(super) fn generated(
    artifacts: &ArtifactStore,
    name: &str,
    parts: &[ArtifactRef],
    decodings: &[String],
) -> Result<Vec<GeneratedRow>, LocalError> {
    let mut rows = Vec::new();
    for row in lines::<GeneratedRow>(artifacts, name, parts) {
        rows.push(in_order(row?, decodings));
    }
    Ok(rows)
}

/// The row with its candidates in the order of `decodings` and without others; no decodings: as it is.
pub(super) fn in_order(mut row: GeneratedRow, decodings: &[String]) -> GeneratedRow {
    if !decodings.is_empty() {
        let mut samples = std::mem::take(&mut row.flan_samples);
        for decoding in decodings {
            if let Some(found) = samples.swap_remove(decoding) {
                row.flan_samples.insert(decoding.clone(), found);
            }
        }
    }
    row
}

#[derive(Deserialize)]
struct ScoreLine {
    row: u64,
    /// JSON has no NaN: a score that is not a number is null.
    scores: Vec<Option<f32>>,
}

/// Scores by row; every row of the input once and in order.
pub(super) fn scores(
    artifacts: &ArtifactStore,
    name: &str,
    parts: &[ArtifactRef],
) -> Result<Vec<Vec<f32>>, LocalError> {
    let mut scores: Vec<Vec<f32>> = Vec::new();
    for line in lines::<ScoreLine>(artifacts, name, parts) {
        let line = line?;
        if line.row != scores.len() as u64 {
            return Err(LocalError::Bad(format!(
                "{name}: expected the scores of row {}, found row {}",
                scores.len(),
                line.row
            )));
        }
        scores.push(line.scores.into_iter().map(|score| score.unwrap_or(f32::NAN)).collect());
    }
    Ok(scores)
}
