//! `choose`: the best candidate of every scored row. Rows stream through.

use cappy_eval::{
    rouge::RougeScorer,
    rows::{JsonStyle, write_json_line},
    selection,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ArtifactRef, LocalError, output, rows, text_output};
use crate::{artifacts::ArtifactStore, store::ShardOutput};

/// Rows without a choice that are named; more are only counted.
const NAMED: usize = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choose {
    /// What the rows are called, without `.jsonl`.
    pub(crate) name: String,
    /// Rows with candidates and `scores`.
    pub(crate) rows: Vec<ArtifactRef>,
    /// Order of the candidates in `flan_samples`; none: as in the row.
    pub(crate) decodings: Vec<String>,
}

/// `summary.json`. Means are over the rows with references.
#[derive(Debug, Default, Serialize)]
struct Summary {
    rows: u64,
    candidates: u64,
    rows_with_references: u64,
    /// Rows that have no candidate to choose: a generator that gave none.
    rows_without_candidates: u64,
    /// ROUGE-L of the chosen candidate.
    #[serde(rename = "rougeL", skip_serializing_if = "Option::is_none")]
    rouge_l: Option<f64>,
    /// Of each row's first candidate.
    #[serde(rename = "first_rougeL", skip_serializing_if = "Option::is_none")]
    first_rouge_l: Option<f64>,
    /// Of each row's best candidate.
    #[serde(rename = "oracle_rougeL", skip_serializing_if = "Option::is_none")]
    oracle_rouge_l: Option<f64>,
    /// Share of the way from the first candidate to the oracle that the choice covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_closed: Option<f64>,
    /// Rows where another than the first candidate was chosen.
    changed: u64,
}

/// Sums of ROUGE-L.
#[derive(Default)]
struct Sums {
    chosen: f64,
    first: f64,
    oracle: f64,
}

impl Choose {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<ShardOutput, LocalError> {
        let file = format!("{}.jsonl", self.name);
        let mut writer = artifacts.writer()?;
        let mut rouge = RougeScorer::new();
        let (mut summary, mut sums) = (Summary::default(), Sums::default());
        let mut named = Vec::new();
        for row in rows::lines::<Map<String, Value>>(artifacts, &file, &self.rows) {
            let row = self.chosen(row?, &mut rouge, &mut summary, &mut sums).map_err(|reason| {
                LocalError::Bad(format!("{file}: row {} of the scored rows: {reason}", summary.rows))
            })?;
            if !row.contains_key("best") && named.len() < NAMED {
                named.push((summary.rows, "there is no candidate to choose".to_owned()));
            }
            summary.rows += 1;
            write_json_line(&mut writer, &row, JsonStyle::Compact).map_err(std::io::Error::from)?;
        }
        if summary.rows_with_references > 0 {
            let mean = |sum: f64| sum / summary.rows_with_references as f64;
            let (chosen, first, oracle) = (mean(sums.chosen), mean(sums.first), mean(sums.oracle));
            summary.rouge_l = Some(chosen);
            summary.first_rouge_l = Some(first);
            summary.oracle_rouge_l = Some(oracle);
            summary.gap_closed = (oracle > first).then(|| (chosen - first) / (oracle - first));
        }
        let text =
            serde_json::to_string_pretty(&summary).map_err(|error| LocalError::Bad(error.to_string()))?;
        let summary_file = text_output(artifacts, "summary.json", &format!("{text}\n"))?;
        Ok(ShardOutput {
            artifacts: vec![output(writer, &file)?, summary_file],
            failed_rows: summary.rows_without_candidates,
            named_failures: named,
            ..Default::default()
        })
    }

    /// The row with `best`, `response` and its measures, without them where there is nothing to choose; or what is wrong
    /// with it.
    fn chosen(
        &self,
        mut row: Map<String, Value>,
        rouge: &mut RougeScorer,
        summary: &mut Summary,
        sums: &mut Sums,
    ) -> Result<Map<String, Value>, String> {
        let candidates = candidates(&row, &self.decodings)?;
        let scores = match row.remove("scores") {
            Some(scores @ Value::Array(_)) => scores,
            _ => return Err("`scores` is missing".into()),
        };
        // JSON has no NaN: a score that is not a number is null.
        let numbers: Vec<f32> = scores
            .as_array()
            .into_iter()
            .flatten()
            .map(|score| score.as_f64().map_or(f32::NAN, |score| score as f32))
            .collect();
        if numbers.len() != candidates.len() {
            return Err(format!("{} candidates but {} scores", candidates.len(), numbers.len()));
        }
        let best = selection::best(&numbers)
            .map_err(|at| format!("the score of candidate {at} is not a number; the scorer is broken"))?;
        let references = references(&row)?;
        let Some(best) = best else {
            row.insert("scores".into(), scores);
            summary.rows_without_candidates += 1;
            return Ok(row);
        };
        summary.candidates += candidates.len() as u64;
        summary.changed += u64::from(best != 0);
        row.insert("scores".into(), scores);
        row.insert("best".into(), best.into());
        row.insert("response".into(), candidates[best].as_str().into());
        if !references.is_empty() {
            let measured: Vec<f64> = candidates
                .iter()
                .map(|candidate| rouge.rouge_l(&references, candidate).expect("there are references"))
                .collect();
            let oracle = measured.iter().copied().fold(0.0, f64::max);
            row.insert("rougeL".into(), measured[best].into());
            row.insert("oracle_rougeL".into(), oracle.into());
            summary.rows_with_references += 1;
            sums.chosen += measured[best];
            sums.first += measured[0];
            sums.oracle += oracle;
        }
        Ok(row)
    }
}

/// The candidates in the order of their scores: `flan_samples` by decoding, else `responses`, else `response`; as
/// workers read them.
fn candidates(row: &Map<String, Value>, decodings: &[String]) -> Result<Vec<String>, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("a candidate is not text");
    if let Some(samples) = row.get("flan_samples") {
        let samples = samples.as_object().ok_or("`flan_samples` is not an object")?;
        let names: Vec<&String> =
            if decodings.is_empty() { samples.keys().collect() } else { decodings.iter().collect() };
        let mut all = Vec::new();
        for name in names {
            let list = samples.get(name).and_then(Value::as_array);
            for sample in list.ok_or_else(|| format!("`flan_samples` lacks `{name}`"))? {
                all.push(text(sample.get("response").unwrap_or(&Value::Null))?);
            }
        }
        return Ok(all);
    }
    match (row.get("responses"), row.get("response")) {
        (Some(Value::Array(list)), _) => Ok(list.iter().map(text).collect::<Result<_, _>>()?),
        (None, Some(response)) => Ok(vec![text(response)?]),
        _ => Err("there are neither `responses` nor `flan_samples`".into()),
    }
}

fn references(row: &Map<String, Value>) -> Result<Vec<String>, String> {
    let Some(references) = row.get("references").filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let list = references.as_array().ok_or("`references` is not a list")?;
    let texts = list.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>();
    texts.ok_or_else(|| "`references` holds something that is not text".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::Files, *};

    #[tokio::test]
    async fn the_best_is_chosen_and_measured_where_it_can_be() {
        let files = Files::new();
        let rows = [
            json!({"instruction": "a", "responses": ["no", "a red bird"], "references": ["a red bird"],
                   "id": 7, "scores": [0.25, 0.5]}),
            json!({"instruction": "b", "responses": ["x", "y"], "scores": [0.5, 0.5]}),
            json!({"instruction": "c", "flan_samples": {"s": [{"response": "p"}], "b": [{"response": "q"}]},
                   "references": ["p"], "scores": [1.0, 0.0]}),
        ];
        let parts = vec![files.lines(&rows[..1]).await, files.lines(&rows[1..]).await];
        let task = Choose { name: "mine".into(), rows: parts.clone(), decodings: vec![] };
        let made = files.run(move |store| task.run(store)).await.unwrap();
        assert_eq!(made.artifacts[0].name, "mine.jsonl");
        let text = files.text(&made.artifacts[0]).await;
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[0],
            json!({"instruction": "a", "responses": ["no", "a red bird"], "references": ["a red bird"],
                   "id": 7, "scores": [0.25, 0.5], "best": 1, "response": "a red bird", "rougeL": 1.0,
                   "oracle_rougeL": 1.0})
        );
        assert_eq!((&lines[1]["best"], lines[1].get("rougeL")), (&json!(0), None), "the first wins a tie");
        assert_eq!(lines[2]["response"], "p");
        let summary: Value = serde_json::from_str(&files.text(&made.artifacts[1]).await).unwrap();
        assert_eq!(
            summary,
            json!({"rows": 3, "candidates": 6, "rows_with_references": 2, "rows_without_candidates": 0, "rougeL": 1.0, "first_rougeL": 0.5,
                   "oracle_rougeL": 1.0, "gap_closed": 1.0, "changed": 1})
        );

        let task = Choose { name: "mine".into(), rows: parts, decodings: vec!["b".into(), "s".into()] };
        let made = files.run(move |store| task.run(store)).await.unwrap();
        assert!(files.text(&made.artifacts[0]).await.lines().last().unwrap().contains(r#""response":"q""#));
    }

    #[tokio::test]
    async fn a_row_without_candidates_is_counted_named_and_survived() {
        let files = Files::new();
        let rows = [
            json!({"responses": ["x"], "scores": [1]}),
            json!({"flan_samples": {"s": []}, "references": ["x"], "scores": []}),
        ];
        let task = Choose { name: "mine".into(), rows: vec![files.lines(&rows).await], decodings: vec![] };
        let made = files.run(move |store| task.run(store)).await.unwrap();
        assert_eq!(made.failed_rows, 1);
        assert_eq!(made.named_failures, [(1, "there is no candidate to choose".to_owned())]);
        let written = files.text(&made.artifacts[0]).await;
        assert_eq!(serde_json::from_str::<Value>(written.lines().nth(1).unwrap()).unwrap(), rows[1]);
    }

    #[tokio::test]
    async fn a_score_that_is_no_number_ends_the_choice_and_names_the_row() {
        let files = Files::new();
        for (row, words) in [
            (
                json!({"responses": ["x"], "scores": [null]}),
                "row 1 of the scored rows: the score of candidate 0",
            ),
            (json!({"responses": ["x"], "scores": [1, 2]}), "1 candidates but 2 scores"),
            (json!({"responses": ["x"], "scores": [1], "references": "x"}), "`references` is not a list"),
        ] {
            let good = json!({"responses": ["x"], "scores": [1]});
            let task = Choose {
                name: "mine".into(),
                rows: vec![files.lines(&[good, row]).await],
                decodings: vec![],
            };
            let error = files.run(move |store| task.run(store)).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
