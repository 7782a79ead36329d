//! `report`: the tables over all subsets that have a result.

use std::io::Read as _;

use cappy_eval::{
    report::{ModelResults, Table, methods_table, overall_interval, render, scores_table},
    selection::SubsetResult,
};
use serde::{Deserialize, Serialize};

use super::{ArtifactRef, LocalError, text_output};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

/// Largest result file that is read; row-by-row figures of a large subset are far below it.
const MAX_RESULT_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Serialize)]
struct ReportFile<'a> {
    model: &'a str,
    subsets: Vec<&'a str>,
    /// Bootstrap interval of Cappy's mean over subsets, in `[0, 1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence_95: Option<[f64; 2]>,
    /// One row a method, means over subsets, times 100.
    methods: &'a Table,
    /// One row a subset, times 100.
    scores: &'a Table,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    /// By subset.
    pub(crate) results: Vec<(String, ArtifactRef)>,
    pub(crate) seed: u64,
}

impl Report {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let mut subsets = Vec::new();
        for (subset, artifact) in &self.results {
            let mut text = Vec::new();
            artifacts
                .reader([(artifact.id.clone(), artifact.size_bytes)])
                .take(MAX_RESULT_BYTES)
                .read_to_end(&mut text)?;
            let result: SubsetResult = serde_json::from_slice(&text)
                .map_err(|error| LocalError::Bad(format!("{subset}.json is not a result: {error}")))?;
            subsets.push((subset.clone(), result));
        }
        let results = ModelResults { model: self.model.clone(), subsets: subsets.into_iter().collect() };
        let models = std::slice::from_ref(&results);
        let (methods, scores) = (methods_table(models), scores_table(models));
        let report = ReportFile {
            model: &self.model,
            subsets: results.subsets.keys().map(String::as_str).collect(),
            confidence_95: overall_interval(&results, self.seed),
            methods: &methods,
            scores: &scores,
        };
        let json =
            serde_json::to_string_pretty(&report).map_err(|error| LocalError::Bad(error.to_string()))?;
        let text = format!("{}\n{}", render::text(&methods), render::text(&scores));
        Ok(vec![
            text_output(artifacts, "report.json", &format!("{json}\n"))?,
            text_output(artifacts, "report.txt", &text)?,
        ])
    }
}
