//! One generator in detail: what a mean over subsets hides.

use super::{Cell, ModelResults, Table, TableRow};
use crate::selection::BEAM;

/// One row a subset: beam search, Cappy with its interval, the oracle, the share of the gap between beam and oracle that
/// was closed, and the share of rows that were cut to fit a model; figures times 100. `None` if the results have nothing
/// beyond Cappy's own figure, as those of the reference implementation.
pub fn details_table(model: &ModelResults) -> Option<Table> {
    let columns = [
        "subset",
        "beam",
        "Cappy",
        "95% low",
        "95% high",
        "gain",
        "oracle",
        "gap closed",
        "truncated",
        "rows",
    ];
    let mut rows: Vec<TableRow> = model
        .subsets
        .iter()
        .map(|(subset, result)| {
            let beam = result.baselines.get(BEAM).copied();
            let interval = result.confidence_95;
            let mut cells = vec![Cell::Text(subset.clone())];
            cells.extend(
                [
                    beam,
                    Some(result.rouge_l),
                    interval.map(|bounds| bounds[0]),
                    interval.map(|bounds| bounds[1]),
                    beam.map(|beam| result.rouge_l - beam),
                    result.oracle,
                    share_of_gap(beam, Some(result.rouge_l), result.oracle),
                    result.truncated_share,
                ]
                .map(Cell::percent),
            );
            cells.push(result.rows.map_or(Cell::Empty, |rows| Cell::Number(rows as f64)));
            TableRow { cells, emphasis: false }
        })
        .collect();
    let has_more = |row: &TableRow| {
        row.cells.iter().enumerate().any(|(at, cell)| at != 2 && matches!(cell, Cell::Number(_)))
    };
    if !rows.iter().any(has_more) {
        return None;
    }
    let mut cells = vec![Cell::Text("mean".into())];
    let means: Vec<Option<f64>> = (1..columns.len()).map(|at| mean_of(&rows, at)).collect();
    for (at, mean) in means.iter().enumerate() {
        cells.push(match at + 1 {
            // A mean of bounds is no bound, and a mean of shares not the share of the means.
            3 | 4 => Cell::Empty,
            7 => share_of_gap(means[0], means[1], means[5]).map_or(Cell::Empty, |x| Cell::Number(100.0 * x)),
            _ => mean.map_or(Cell::Empty, Cell::Number),
        });
    }
    rows.push(TableRow { cells, emphasis: true });
    Some(Table {
        title: format!("{} per subset, x100", model.model),
        columns: columns.map(Into::into).into(),
        rows,
        notes: vec!["gap closed: share of the way from beam search to the oracle, in percent".into()],
    })
}

fn share_of_gap(beam: Option<f64>, cappy: Option<f64>, oracle: Option<f64>) -> Option<f64> {
    let (beam, cappy, oracle) = (beam?, cappy?, oracle?);
    (oracle > beam).then(|| (cappy - beam) / (oracle - beam))
}

/// The mean of a column, unless a row lacks it.
fn mean_of(rows: &[TableRow], column: usize) -> Option<f64> {
    let values: Vec<f64> = rows
        .iter()
        .map(|row| match row.cells[column] {
            Cell::Number(x) => Some(x),
            _ => None,
        })
        .collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::SubsetResult;

    fn model(results: &[(&str, SubsetResult)]) -> ModelResults {
        let subsets = results.iter().map(|(name, result)| ((*name).to_owned(), result.clone())).collect();
        ModelResults { model: "m".into(), subsets }
    }

    #[test]
    fn a_subset_shows_what_its_file_has() {
        let bare = SubsetResult { rouge_l: 0.5, ..SubsetResult::default() };
        assert_eq!(details_table(&model(&[("a", bare.clone())])), None);
        let rich = SubsetResult {
            rouge_l: 0.5,
            baselines: [(BEAM.to_owned(), 0.25)].into(),
            oracle: Some(0.75),
            confidence_95: Some([0.375, 0.625]),
            truncated_share: Some(0.125),
            rows: Some(8),
            ..SubsetResult::default()
        };
        let table = details_table(&model(&[("a", rich.clone()), ("b", rich.clone())])).unwrap();
        let figures = |row: &TableRow| -> Vec<Option<f64>> {
            row.cells[1..]
                .iter()
                .map(|cell| if let Cell::Number(x) = cell { Some(*x) } else { None })
                .collect()
        };
        let whole = [25.0, 50.0, 37.5, 62.5, 25.0, 75.0, 50.0, 12.5, 8.0].map(Some);
        assert_eq!(figures(&table.rows[0]), whole);
        let mean =
            [Some(25.0), Some(50.0), None, None, Some(25.0), Some(75.0), Some(50.0), Some(12.5), Some(8.0)];
        assert_eq!(figures(&table.rows[2]), mean);
        let mixed = details_table(&model(&[("a", rich), ("b", bare)])).unwrap();
        assert_eq!(figures(&mixed.rows[2])[..2], [None, Some(50.0)]);
    }
}
