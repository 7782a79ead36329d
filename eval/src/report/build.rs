//! Under construction.
use super::{ModelResults, Table};
/// One row a subset and the mean; for each model our ROUGE-L and, where known, the published one, times 100.
pub fn scores_table(models: &[ModelResults]) -> Table {
    let _ = models;
    unimplemented!()
}
/// One row a method (baselines, self-scores, Cappy, oracle), one column a model: means over subsets, times 100.
pub fn methods_table(models: &[ModelResults]) -> Table {
    let _ = models;
    unimplemented!()
}
/// The 95% bootstrap interval of the mean over subsets; `None` unless every subset has its rows.
pub fn overall_interval(model: &ModelResults, seed: u64) -> Option<[f64; 2]> {
    let _ = (model, seed);
    unimplemented!()
}
