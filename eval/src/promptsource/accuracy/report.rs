//! Accuracies as figures, as JSON and as a table.

use serde::Serialize;

use super::super::published;
use crate::keyed::Keyed;
use crate::report::{Cell, Table, TableRow, render};
use crate::selection::DEFAULT_RESAMPLES;
use crate::selection::statistics::percentile_interval;

/// Every report of the same results shows the same intervals.
const INTERVAL_SEED: u64 = 11111;

/// For each template the outcome of each example, by `example_idx`; `None` where no response is right.
type Outcomes = Vec<(String, Vec<(u64, Option<bool>)>)>;

/// What [`super::Accuracy`] found. Accuracies are shares in `[0, 1]`, published figures are in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccuracyReport {
    /// In the order of the published table, others behind in the order in which they came.
    pub datasets: Vec<DatasetAccuracy>,
    /// The plain mean over datasets; `None` if there are none.
    pub average: Option<f64>,
    /// The 95% interval of the mean, the datasets' examples drawn again independently.
    pub average_confidence_95: Option<[f64; 2]>,
    /// How the intervals were made.
    pub interval: &'static str,
    /// The systems that published figures stand for.
    pub published_systems: [&'static str; 6],
    /// Their means over the same datasets, in percent; `None` unless every dataset has a published figure.
    pub published_average: Option<[f64; 6]>,
}

/// The accuracy on one dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatasetAccuracy {
    /// As in the rows.
    pub dataset_name: String,
    /// Right choices over `groups`; `None` if no group can be judged.
    pub accuracy: Option<f64>,
    /// Bootstrap interval over examples: all templates of a drawn example are drawn together.
    pub confidence_95: Option<[f64; 2]>,
    /// Groups whose chosen response was right.
    pub correct: u64,
    /// Examples under templates that could be judged.
    pub groups: u64,
    /// Different examples among them.
    pub examples: u64,
    /// Groups left out because no response was labelled 1.
    pub without_answer: u64,
    /// By template, in the order in which they came.
    pub templates: Vec<TemplateAccuracy>,
    /// The published accuracies in percent, where there are any.
    pub published: Option<[f64; 6]>,
}

/// The accuracy under one template.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TemplateAccuracy {
    /// As in the rows.
    pub template_name: String,
    /// Right choices over `examples`; `None` if no example can be judged.
    pub accuracy: Option<f64>,
    /// Examples whose chosen response was right.
    pub correct: u64,
    /// Examples that could be judged.
    pub examples: u64,
}

/// Right choices and judged choices of one example, over all templates.
#[derive(Clone, Copy, Default)]
struct Judged {
    correct: u32,
    groups: u32,
}

impl AccuracyReport {
    pub(super) fn new(mut datasets: Vec<(String, Outcomes)>) -> Self {
        datasets.sort_by_key(|(name, _)| published::place(name));
        let mut resampled_sum = vec![0.0; DEFAULT_RESAMPLES];
        let mut counted = 0;
        let datasets: Vec<DatasetAccuracy> = datasets
            .into_iter()
            .map(|(name, outcomes)| {
                let (examples, without_answer) = by_example(&outcomes);
                let resampled = resample(&examples, &name);
                if !resampled.is_empty() {
                    counted += 1;
                    resampled_sum.iter_mut().zip(&resampled).for_each(|(sum, x)| *sum += x);
                }
                dataset_accuracy(name, &outcomes, &examples, without_answer, resampled)
            })
            .collect();
        let accuracies: Vec<f64> = datasets.iter().filter_map(|dataset| dataset.accuracy).collect();
        let average = (counted > 0).then(|| accuracies.iter().sum::<f64>() / f64::from(counted));
        let average_confidence_95 = (counted > 0).then(|| {
            resampled_sum.iter_mut().for_each(|sum| *sum /= f64::from(counted));
            percentile_interval(resampled_sum)
        });
        let judged: Vec<&str> = datasets
            .iter()
            .filter(|dataset| dataset.accuracy.is_some())
            .map(|dataset| dataset.dataset_name.as_str())
            .collect();
        Self {
            average,
            average_confidence_95,
            interval: "95% bootstrap percentile interval over examples, 1000 resamples",
            published_systems: published::SYSTEMS,
            published_average: published::averages(&judged),
            datasets,
        }
    }

    /// One row a dataset and their mean: our accuracy with its interval, then the published ones, all in percent.
    pub fn table(&self) -> Table {
        let known = self.datasets.iter().any(|dataset| dataset.published.is_some());
        let mut columns: Vec<String> =
            ["dataset", "accuracy", "95% low", "95% high", "examples", "templates"].map(Into::into).into();
        if known {
            columns.extend(published::SYSTEMS.iter().rev().map(|system| format!("{system} published")));
        }
        let percent = |share: Option<f64>| share.map_or(Cell::Empty, |share| Cell::Number(100.0 * share));
        let figures = |accuracy, interval: Option<[f64; 2]>| {
            let [low, high] = interval.map_or([None, None], |bounds| bounds.map(Some));
            [percent(accuracy), percent(low), percent(high)]
        };
        let theirs = |published: Option<[f64; 6]>| {
            let figures =
                published.map_or_else(|| std::array::from_fn(|_| Cell::Empty), |row| row.map(Cell::Number));
            figures.into_iter().rev().take(if known { 6 } else { 0 })
        };
        let mut rows: Vec<TableRow> = self
            .datasets
            .iter()
            .map(|dataset| {
                let mut cells = vec![Cell::Text(dataset.dataset_name.clone())];
                cells.extend(figures(dataset.accuracy, dataset.confidence_95));
                cells.push(Cell::Number(dataset.examples as f64));
                cells.push(Cell::Number(dataset.templates.len() as f64));
                cells.extend(theirs(dataset.published));
                TableRow { cells, emphasis: false }
            })
            .collect();
        let mut cells = vec![Cell::Text("Average".into())];
        cells.extend(figures(self.average, self.average_confidence_95));
        cells.extend([Cell::Empty, Cell::Empty]);
        cells.extend(theirs(self.published_average));
        rows.push(TableRow { cells, emphasis: true });
        Table {
            title: "Zero-shot accuracy on PromptSource, percent".into(),
            columns,
            rows,
            notes: self.notes(),
        }
    }

    /// The table as aligned text, for a terminal.
    pub fn to_text(&self) -> String {
        render::text(&self.table())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "accuracy: over all templates and examples of a dataset; Average: plain mean over datasets"
                .to_owned(),
            format!("intervals: {}", self.interval),
        ];
        for dataset in &self.datasets {
            if dataset.without_answer > 0 {
                notes.push(format!(
                    "{}: {} left out because no response is labelled 1",
                    dataset.dataset_name, dataset.without_answer
                ));
            }
            let shares = || dataset.templates.iter().filter_map(|template| template.accuracy);
            let (low, high) = (shares().fold(1.0, f64::min), shares().fold(0.0, f64::max));
            if shares().count() > 1 {
                notes.push(format!(
                    "{}: {:.1} to {:.1} between templates",
                    dataset.dataset_name,
                    100.0 * low,
                    100.0 * high
                ));
            }
        }
        notes
    }
}

/// The judged choices of each example, by `example_idx`, and the number of groups without an answer.
fn by_example(outcomes: &Outcomes) -> (Vec<Judged>, u64) {
    let mut all: Vec<(u64, Option<bool>)> = outcomes.iter().flat_map(|(_, of)| of.iter().copied()).collect();
    all.sort_by_key(|(example, _)| *example);
    let without_answer = all.iter().filter(|(_, right)| right.is_none()).count() as u64;
    let mut examples = Vec::new();
    for of_example in all.chunk_by(|a, b| a.0 == b.0) {
        let judged =
            of_example.iter().filter_map(|(_, right)| *right).fold(Judged::default(), |judged, right| {
                Judged { correct: judged.correct + u32::from(right), groups: judged.groups + 1 }
            });
        if judged.groups > 0 {
            examples.push(judged);
        }
    }
    (examples, without_answer)
}

/// The accuracy of each resample of the examples.
///
/// Templates of one example agree or fail together, so examples are drawn, not groups.
fn resample(examples: &[Judged], dataset: &str) -> Vec<f64> {
    if examples.is_empty() {
        return Vec::new();
    }
    let mut draws = Keyed::new(INTERVAL_SEED, dataset);
    let one = |_| {
        let (mut correct, mut groups) = (0u64, 0u64);
        for _ in 0..examples.len() {
            let judged = examples[draws.below(examples.len())];
            correct += u64::from(judged.correct);
            groups += u64::from(judged.groups);
        }
        correct as f64 / groups as f64
    };
    (0..DEFAULT_RESAMPLES).map(one).collect()
}

fn dataset_accuracy(
    dataset_name: String,
    outcomes: &Outcomes,
    examples: &[Judged],
    without_answer: u64,
    resampled: Vec<f64>,
) -> DatasetAccuracy {
    let share = |correct: u64, of: u64| (of > 0).then(|| correct as f64 / of as f64);
    let templates: Vec<TemplateAccuracy> = outcomes
        .iter()
        .map(|(name, of_template)| {
            let judged = || of_template.iter().filter_map(|(_, right)| *right);
            let (correct, examples) =
                (judged().filter(|right| *right).count() as u64, judged().count() as u64);
            TemplateAccuracy {
                template_name: name.clone(),
                accuracy: share(correct, examples),
                correct,
                examples,
            }
        })
        .collect();
    let correct = templates.iter().map(|template| template.correct).sum();
    let groups = templates.iter().map(|template| template.examples).sum();
    DatasetAccuracy {
        accuracy: share(correct, groups),
        confidence_95: (!resampled.is_empty()).then(|| percentile_interval(resampled)),
        correct,
        groups,
        examples: examples.len() as u64,
        without_answer,
        templates,
        published: published::accuracies(&dataset_name).copied(),
        dataset_name,
    }
}
