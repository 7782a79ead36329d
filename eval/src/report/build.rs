//! From results to tables.

use indexmap::IndexSet;

use super::published::{self, CAPPY, ORACLE};
use super::{Cell, ModelResults, Table, TableRow};
use crate::selection::statistics::bootstrap_mean;
use crate::selection::{BEAM, DEFAULT_RESAMPLES, SELF_SCORE_MEAN, SELF_SCORE_SUM, SubsetResult};

/// The methods that every table names the same way, in the published order; the others keep the name of their
/// decoding and come before the self-scores.
const LABELS: [(&str, &str); 9] = [
    (BEAM, "Beam Search (beam=4)"),
    ("sampling", "Sampling"),
    ("temp0.9", "Temperature (t=0.9)"),
    ("topk40", "Topk (k=40)"),
    ("topp0.95", "Nucleus (p=0.95)"),
    (SELF_SCORE_SUM, "Self-Score (sum)"),
    (SELF_SCORE_MEAN, "Self-Score (mean)"),
    (CAPPY, "Cappy"),
    (ORACLE, "Oracle (best candidate)"),
];

/// One row a subset and their mean; for each model Cappy's ROUGE-L and, where known, the published one, times 100.
pub fn scores_table(models: &[ModelResults]) -> Table {
    let subsets: IndexSet<&str> = models.iter().flat_map(|m| m.subsets.keys().map(String::as_str)).collect();
    let is_known = |model: &ModelResults| subsets.iter().any(|s| published::score(&model.model, s).is_some());
    let mut columns = vec!["subset".to_owned()];
    for model in models {
        columns.push(model.model.clone());
        if is_known(model) {
            columns.push(format!("{} published", model.model));
        }
    }
    let mut rows: Vec<TableRow> = subsets
        .iter()
        .map(|subset| {
            let mut cells = vec![Cell::Text((*subset).to_owned())];
            for model in models {
                cells.push(Cell::percent(model.subsets.get(*subset).map(|result| result.rouge_l)));
                if is_known(model) {
                    cells.push(Cell::percent(published::score(&model.model, subset)));
                }
            }
            TableRow { cells, emphasis: false }
        })
        .collect();
    let mut cells = vec![Cell::Text(format!("mean over {}", counted(subsets.len(), "subset")))];
    for model in models {
        cells.push(Cell::percent(mean(model.subsets.values().map(|result| Some(result.rouge_l)))));
        if is_known(model) {
            // Over the same subsets as ours, so that the two can be compared.
            cells.push(Cell::percent(mean(
                model.subsets.keys().map(|subset| published::score(&model.model, subset)),
            )));
        }
    }
    rows.push(TableRow { cells, emphasis: true });
    let notes = models.iter().filter_map(incomplete_note(subsets.len())).collect();
    Table { title: "ROUGE-L of Cappy per subset, x100".into(), columns, rows, notes }
}

/// One row a method (decodings, self-scores, Cappy, oracle), one column a model: means over the model's subsets, times
/// 100, the published mean over the 45 subsets beside it where known.
pub fn methods_table(models: &[ModelResults]) -> Table {
    let mut columns = vec!["method".to_owned()];
    for model in models {
        columns.push(model.model.clone());
        if published::mean(&model.model, CAPPY).is_some() {
            columns.push(format!("{} published", model.model));
        }
    }
    let rows = methods(models)
        .into_iter()
        .map(|method| {
            let label = LABELS.iter().find(|(name, _)| *name == method).map_or(method, |(_, label)| label);
            let mut cells = vec![Cell::Text(label.to_owned())];
            for model in models {
                cells.push(Cell::percent(mean(model.subsets.values().map(|result| measure(result, method)))));
                if published::mean(&model.model, CAPPY).is_some() {
                    cells.push(published::mean(&model.model, method).map_or(Cell::Empty, Cell::Number));
                }
            }
            TableRow { cells, emphasis: method == CAPPY }
        })
        .filter(|row| row.cells.iter().any(|cell| matches!(cell, Cell::Number(_))))
        .collect();
    let mut notes = Vec::new();
    for model in models {
        notes.extend(model_notes(model));
    }
    if columns.iter().any(|column| column.ends_with(" published")) {
        notes.push("published: means over all 45 subsets".into());
    }
    Table { title: "Mean ROUGE-L over subsets, x100".into(), columns, rows, notes }
}

/// The 95% bootstrap interval, over rows, of the mean over subsets of Cappy's ROUGE-L, in `[0, 1]`; `None` unless every
/// subset kept its rows.
pub fn overall_interval(model: &ModelResults, seed: u64) -> Option<[f64; 2]> {
    let groups: Vec<&[f64]> = model
        .subsets
        .values()
        .map(|result| {
            result.per_row.as_ref().map(|rows| rows.rouge_l.as_slice()).filter(|rows| !rows.is_empty())
        })
        .collect::<Option<_>>()?;
    (!groups.is_empty()).then(|| bootstrap_mean(&groups, DEFAULT_RESAMPLES, seed))
}

/// Every method that some result has, in the order of the table.
fn methods(models: &[ModelResults]) -> IndexSet<&str> {
    let found: IndexSet<&str> = models
        .iter()
        .flat_map(|model| model.subsets.values())
        .flat_map(|result| result.baselines.keys().map(String::as_str))
        .collect();
    let known = LABELS.map(|(name, _)| name);
    let (decodings, choices) = known.split_at(5);
    let others = found.iter().copied().filter(|name| !known.contains(name));
    decodings.iter().copied().chain(others).chain(choices.iter().copied()).collect()
}

fn measure(result: &SubsetResult, method: &str) -> Option<f64> {
    match method {
        CAPPY => Some(result.rouge_l),
        ORACLE => result.oracle,
        baseline => result.baselines.get(baseline).copied(),
    }
}

/// The mean, unless some subset lacks the measure: means over different subsets must not stand side by side.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty())
        .then(|| values.iter().sum::<f64>() / values.len() as f64)
        .filter(|mean| mean.is_finite())
}

fn model_notes(model: &ModelResults) -> Vec<String> {
    let results = || model.subsets.values();
    let mut facts = Vec::new();
    let rows = results().map(|result| result.rows).sum::<Option<u64>>();
    facts.push(match rows {
        Some(rows) => format!("{}, {} validation rows", counted(model.subsets.len(), "subset"), rows),
        None => counted(model.subsets.len(), "subset"),
    });
    if let Some([low, high]) = overall_interval(model, INTERVAL_SEED) {
        facts.push(format!("Cappy 95% interval {:.4} to {:.4}", 100.0 * low, 100.0 * high));
    }
    let cappy = mean(results().map(|result| Some(result.rouge_l)));
    let beam = mean(results().map(|result| measure(result, BEAM)));
    let oracle = mean(results().map(|result| result.oracle));
    if let (Some(cappy), Some(beam), Some(oracle)) = (cappy, beam, oracle)
        && oracle > beam
    {
        let share = 100.0 * (cappy - beam) / (oracle - beam);
        facts.push(format!("{share:.1}% of the gap from beam search to the oracle closed"));
    }
    // A subset where nothing varies has no correlation; the others still have theirs.
    let correlations = results().filter_map(|result| result.spearman).map(Some);
    if let Some(spearman) = mean(correlations) {
        facts.push(format!("mean Spearman correlation of scores with ROUGE-L {spearman:.3}"));
    }
    let mut notes = vec![format!("{}: {}", model.model, facts.join("; "))];
    let truncated: Vec<String> = model
        .subsets
        .iter()
        .filter_map(|(subset, result)| Some((subset, result.truncated_share.filter(|share| *share >= 0.05)?)))
        .map(|(subset, share)| format!("{subset} {:.0}%", 100.0 * share))
        .collect();
    if !truncated.is_empty() {
        notes.push(format!("{}: rows cut to fit the model: {}", model.model, truncated.join(", ")));
    }
    notes
}

/// Every report of the same results shows the same interval.
const INTERVAL_SEED: u64 = 11111;

fn incomplete_note(wanted: usize) -> impl Fn(&ModelResults) -> Option<String> {
    move |model| {
        let have = model.subsets.len();
        (have < wanted).then(|| format!("{}: the mean is over its {}", model.model, counted(have, "subset")))
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Cell {
    /// A share of one, times 100.
    pub(super) fn percent(share: Option<f64>) -> Self {
        share.filter(|share| share.is_finite()).map_or(Self::Empty, |share| Self::Number(100.0 * share))
    }
}
