//! Scores of a slice of rows: as a list by row, or on the rows themselves.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
};

use cappy_proto::v1;
use serde::Serialize;
use serde_json::Value;

use super::{
    Attempt, ExecutionError, Outcome,
    rows::{Row, RowReader, responses, text},
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

    let name = if task.carry_rows { "rows.jsonl" } else { "scores.jsonl" };
    let path = attempt.scratch.join(name);
    let written = |error| ExecutionError::disk("write the scores", &error);
    let mut output = BufWriter::new(File::create(&path).map_err(written)?);
    let mut reader = RowReader::from_row(attempt.files(&task.input)?, task.row_start, &engine.row_index)?;
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
        stats.rows += pairs.len() as u64;
        for ((row, mut fields), scores) in (first_row..).zip(rows).zip(&scored.scores) {
            let line = if task.carry_rows {
                put_scores(&mut fields, scores);
                serde_json::to_writer(&mut output, &fields)
            } else {
                serde_json::to_writer(&mut output, &Line { row, scores })
            };
            line.map_err(|error| written(error.into()))?;
            output.write_all(b"\n").map_err(written)?;
        }
        stats.tokens += scored.tokens;
        stats.truncated_rows += scored.truncated;
    }
    output.flush().map_err(written)?;
    Ok(Outcome { outputs: vec![(name.to_owned(), path)], stats, ..Outcome::default() })
}

/// A row with a single `response` gets a `score`, any other `scores`. An f32 is written as the f64 that equals it, as
/// Python's `.item()` has it.
fn put_scores(row: &mut Row, scores: &[f32]) {
    match scores {
        [score] if !row.contains_key("responses") && !row.contains_key("flan_samples") => {
            row.insert("score".to_owned(), Value::from(*score))
        }
        scores => row.insert("scores".to_owned(), scores.into()),
    };
}
