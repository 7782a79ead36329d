//! One-shot calls on the embedded cluster, with the demo's models.

use cappy_tests::{Client, Sandbox, json_lines};
use serde_json::{Value, json};

use crate::job;

/// Validation rows that the embedded job generated.
fn generated(count: usize) -> Vec<Value> {
    let mut rows = json_lines(&job::embedded().files["demo/past_tense_validation.jsonl"]);
    rows.truncate(count);
    rows
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[track_caller]
fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("no `{field}` in {row}"))
}

#[test]
fn a_score_is_the_same_alone_and_in_a_batch() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let rows: Vec<Value> = generated(12)
        .iter()
        .map(|row| json!({ "instruction": row["instruction"], "response": row["flan_samples"]["beam4"][0]["response"], "id": row["example_idx"] }))
        .collect();
    let input = sandbox.file("rows.jsonl", lines(&rows));
    let input = input.to_str().expect("UTF-8");
    let batch = client.run(["score", "--scorer", "demo", "--input", input]).expect(0).json_lines();
    assert_eq!(batch.len(), rows.len());
    for (row, scored) in rows.iter().zip(&batch) {
        assert_eq!(
            (&row["id"], &row["response"]),
            (&scored["id"], &scored["response"]),
            "fields are carried through"
        );
        assert!(number(scored, "score").is_finite());
    }
    let distinct: std::collections::BTreeSet<String> =
        batch.iter().map(|row| row["score"].to_string()).collect();
    assert!(distinct.len() > 1, "{distinct:?}");
    for index in [0, rows.len() - 1] {
        let text = |field: &str| rows[index][field].as_str().expect("a text");
        let args = [
            "score",
            "--scorer",
            "demo",
            "--instruction",
            text("instruction"),
            "--response",
            text("response"),
        ];
        let alone = client.run(args).expect(0).json();
        let (alone, batched) = (number(&alone, "score"), number(&batch[index], "score"));
        assert!((alone - batched).abs() < 1e-5, "{alone} alone, {batched} in a batch");
    }
    // Several responses to one instruction are one row.
    let several = json!({ "instruction": rows[0]["instruction"], "responses": [rows[0]["response"], "x"] });
    let scored = client
        .run_with_input(["score", "--scorer", "demo", "--input", "-"], &lines(&[several]))
        .expect(0)
        .json();
    let first = scored["scores"][0].as_f64().expect("scores");
    assert!((first - number(&batch[0], "score")).abs() < 1e-5, "{first} of {}", batch[0]);
    assert!(scored["scores"][1].is_number() && scored.get("score").is_none());
}

#[test]
fn bad_rows_of_an_input_are_named_by_line() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let input = "{\"instruction\": \"a\", \"response\": \"b\"}\nnot JSON\n\n{\"instruction\": \"a\"}\n{\"instruction\": \"a\", \
                 \"response\": \"c\"}\n{\"instruction\": 7, \"response\": \"b\"}\n";
    let args = ["score", "--scorer", "demo", "--input", "-"];
    let ended = client.run_with_input(args, input).expect(4);
    let answered: Vec<Value> = ended.json_lines().into_iter().map(|row| row["response"].clone()).collect();
    assert_eq!(answered, ["b", "c"]);
    for told in
        ["line 2: ", "line 4: there is no `response`", "line 6: `instruction` is not a text", "3 bad rows"]
    {
        assert!(ended.stderr.contains(told), "`{told}` is not in {ended}");
    }
    let strict = client.run_with_input(args.iter().chain(&["--strict"]), input).expect(1);
    assert!(strict.stderr.contains("error: line 2: "), "{strict}");
}

/// The same seed gives the same text; beam search gives what the job's generations have.
#[test]
fn generated_text_depends_on_nothing_but_its_request() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let rows = generated(6);
    let instructions: Vec<Value> =
        rows.iter().map(|row| json!({ "instruction": row["instruction"] })).collect();
    let generate = |flags: &[&'static str], input: &[Value]| {
        let args =
            ["generate", "--model", "demo", "--decoding", "beam4", "--decoding", "sampling", "--input", "-"];
        client.run_with_input(args.iter().chain(flags), &lines(input)).expect(0)
    };
    let first = generate(&["--num-samples", "3"], &instructions);
    assert_eq!(first.stdout, generate(&["--num-samples", "3"], &instructions).stdout);
    let other_seed = generate(&["--num-samples", "3", "--seed", "7"], &instructions);
    assert_ne!(first.stdout, other_seed.stdout, "the seed matters");
    let beam = |row: &Value| row["flan_samples"]["beam4"][0]["response"].clone();
    for ((row, out), other) in rows.iter().zip(first.json_lines()).zip(other_seed.json_lines()) {
        assert_eq!(out["flan_samples"]["sampling"].as_array().map(Vec::len), Some(3));
        assert_eq!((beam(&out), beam(&other)), (beam(row), beam(row)));
    }
}

#[test]
fn likelihoods_are_those_of_the_generations() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let mut rows = Vec::new();
    let mut expected = Vec::new();
    for row in generated(8) {
        for sample in
            row["flan_samples"].as_object().expect("samples").values().filter_map(|list| list.get(0))
        {
            rows.push(json!({ "instruction": row["instruction"], "response": sample["response"] }));
            expected.push(sample.clone());
        }
    }
    let out =
        client.run_with_input(["log-likelihood", "--model", "demo", "--input", "-"], &lines(&rows)).expect(0);
    let out = out.json_lines();
    assert_eq!(out.len(), expected.len());
    for (expected, found) in expected.iter().zip(&out) {
        for field in ["log_likelihood_sum", "log_likelihood_mean"] {
            let (expected, found) = (number(expected, field), number(found, field));
            assert!(
                (expected - found).abs() <= 1e-4 * expected.abs().max(1e-2),
                "{field}: {expected} and {found}"
            );
        }
    }
}

#[test]
fn boost_chooses_the_highest_score_among_given_or_generated_responses() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let row = &generated(1)[0];
    let mut responses: Vec<Value> = row["references"].as_array().expect("references").clone();
    responses.extend([json!("no idea"), json!("")]);
    let given =
        json!({ "instruction": row["instruction"], "responses": responses, "references": row["references"] });
    let boosted = client
        .run_with_input(["boost", "--scorer", "demo", "--input", "-"], &lines(&[given]))
        .expect(0)
        .json();
    let best = check_choice(&boosted);
    assert_eq!(boosted["responses"], Value::from(responses), "given responses stay");
    assert_eq!(number(&boosted, "oracle_rougeL"), 1.0, "a reference is among them");
    assert!(best > 0 || number(&boosted, "rougeL") == 1.0);

    let instruction = row["instruction"].as_str().expect("a text");
    let args =
        ["boost", "--scorer", "demo", "--model", "demo", "--num-samples", "2", "--instruction", instruction];
    let boosted = client.run(args).expect(0).json();
    check_choice(&boosted);
    assert_eq!(boosted["responses"].as_array().map(Vec::len), Some(1 + 4 * 2));
    // What was generated is what the job generated, as far as nothing is random.
    assert_eq!(boosted["responses"][0], row["flan_samples"]["beam4"][0]["response"]);

    // Candidates that a row brings stand before the generated ones; `best` counts all of them.
    let given = json!({ "instruction": instruction, "responses": ["no idea"] });
    let flags = ["boost", "--scorer", "demo", "--model", "demo", "--decoding", "beam4", "--input", "-"];
    let boosted = client.run_with_input(flags, &lines(&[given])).expect(0).json();
    check_choice(&boosted);
    assert_eq!(boosted["responses"], json!(["no idea", row["flan_samples"]["beam4"][0]["response"]]));
}

/// Fails unless `best` is the first of the highest scores and `response` the candidate there; returns it.
#[track_caller]
fn check_choice(boosted: &Value) -> usize {
    let scores: Vec<f64> =
        boosted["scores"].as_array().expect("scores").iter().filter_map(Value::as_f64).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best = boosted["best"].as_u64().expect("an index") as usize;
    assert_eq!(Some(best), scores.iter().position(|&score| score == highest), "{boosted}");
    assert_eq!(boosted["response"], boosted["responses"][best]);
    best
}
