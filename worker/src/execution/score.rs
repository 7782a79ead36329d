//! Scores of a slice of rows.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
};

use cappy_proto::v1;
use serde::Serialize;

use super::{
    Attempt, ExecutionError, Outcome,
    rows::{RowReader, responses, text},
};
use crate::{
    compute::{self, ScoreInput},
    engine::{Choice, Engine},
};

/// Rows that are tokenized and sorted together.
const WINDOW_ROWS: usize = 512;

#[derive(Serialize)]
struct Line<'a> {
    row: u64,
    scores: &'a [f32],
}

pub fn run(
    engine: &Engine,
    task: &v1::ScoreTask,
    choice: Choice<'_>,
    attempt: &Attempt<'_>,
) -> Result<Outcome, ExecutionError> {
    let total = task.row_end.saturating_sub(task.row_start);
    attempt.progress.set(0, total, "loading the scorer");
    let scorer = engine.scorer(task.scorer.as_ref(), choice, attempt)?;
    attempt.progress.set(0, total, "scoring");

    let path = attempt.scratch.join("scores.jsonl");
    let written = |error| ExecutionError::disk("write the scores", &error);
    let mut output = BufWriter::new(File::create(&path).map_err(written)?);
    let mut reader = RowReader::new(attempt.files(&task.input)?);
    reader.skip_to(task.row_start)?;
    let mut stats = v1::ShardStats::default();
    while stats.rows < total {
        let (first_row, rows) = reader.window(WINDOW_ROWS, task.row_end)?;
        let pairs: Vec<(String, Vec<String>)> = (first_row..)
            .zip(&rows)
            .map(|(index, row)| {
                Ok((text(index, row, "instruction")?.to_owned(), responses(index, row, &task.decodings)?))
            })
            .collect::<Result<_, ExecutionError>>()?;
        let window = attempt.progress.window(stats.rows, pairs.len() as u64, total);
        let input = ScoreInput { rows: &pairs, first_row, max_tokens: task.max_tokens };
        let scored = compute::score(&scorer, input, engine.budgets.score, &window)?;
        for (row, scores) in (first_row..).zip(&scored.scores) {
            serde_json::to_writer(&mut output, &Line { row, scores })
                .map_err(|error| written(error.into()))?;
            output.write_all(b"\n").map_err(written)?;
        }
        stats.rows += pairs.len() as u64;
        stats.tokens += scored.tokens;
        stats.truncated_rows += scored.truncated;
    }
    output.flush().map_err(written)?;
    Ok(Outcome { outputs: vec![("scores.jsonl".to_owned(), path)], stats, ..Outcome::default() })
}
