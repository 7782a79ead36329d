//! From generated rows to results files to tables, and the file forms on the way.

use std::fs;
use std::path::Path;

use cappy_eval::bigbench::GENERATIVE_SUBSETS;
use cappy_eval::report::{
    Cell, LoadReportError, ModelResults, baselines_from_generations, details_table, load_results,
    methods_table, overall_interval, plot, published, render, scores_table,
};
use cappy_eval::rows::{
    BadLinePolicy, GeneratedRow, JsonLines, JsonLinesWriter, JsonStyle, ReadError, Row, load, write_json_line,
};
use cappy_eval::selection::{SelectionError, SelectionOptions, SubsetResult, best, select};
use tempfile::TempDir;

/// As the reference implementation writes them, but for a field of a stranger's and a likelihood that overflowed.
const GENERATED: &str = r#"{"dataset": "tense", "example_idx": 0, "instruction": "past of go", "references": ["he went"], "split": "v", "flan_samples": {"beam4": [{"response": "he goes", "log_likelihood_sum": -1.0, "log_likelihood_mean": -0.5}], "sampling": [{"response": "he went", "log_likelihood_sum": -3.5, "log_likelihood_mean": -0.25, "note": 1}, {"response": "caf\u00e9", "log_likelihood_sum": -Infinity, "log_likelihood_mean": NaN}]}}
{"dataset": "tense", "example_idx": 1, "instruction": "past of see", "references": ["NaN", "she saw"], "split": "v", "flan_samples": {"beam4": [{"response": "she saw it", "log_likelihood_sum": -1.0, "log_likelihood_mean": -0.5}], "sampling": [{"response": "x", "log_likelihood_sum": -1.0, "log_likelihood_mean": -0.75}, {"response": "she saw", "log_likelihood_sum": -9.0, "log_likelihood_mean": -1.0}]}}
"#;

fn generated() -> Vec<GeneratedRow> {
    JsonLines::new("generated", GENERATED.as_bytes()).map(|row| row.unwrap().value).collect()
}

fn scores() -> Vec<Vec<f32>> {
    vec![vec![0.1, 0.9, 0.2], vec![0.4, 0.3, 0.4]]
}

#[test]
fn generations_keep_their_fields_and_their_text() {
    let rows = generated();
    assert_eq!(rows[0].row.extra["split"], "v");
    let texts: Vec<_> =
        rows[0].candidates().map(|c| (c.decoding, c.index, c.sample.response.as_str())).collect();
    assert_eq!(texts, [("beam4", 0, "he goes"), ("sampling", 0, "he went"), ("sampling", 1, "café")]);
    assert_eq!(rows[0].flan_samples["sampling"][1].log_likelihood_sum, Some(f64::NEG_INFINITY));
    assert_eq!(rows[1].row.references[0], "NaN", "only bare names are numbers");

    let mut written = Vec::new();
    for row in &rows {
        write_json_line(&mut written, row, JsonStyle::Python).unwrap();
    }
    let expected = GENERATED.replace("-Infinity", "\"-Infinity\"").replacen(": NaN", ": \"NaN\"", 1);
    assert_eq!(String::from_utf8(written).unwrap(), expected);
}

#[test]
fn every_packing_reads_back_and_bad_lines_are_named() {
    let folder = TempDir::new().unwrap();
    for name in ["r.jsonl", "sub/r.jsonl.gz", "r.jsonl.zst"] {
        let path = folder.path().join(name);
        let mut writer = JsonLinesWriter::create(&path, JsonStyle::Compact).unwrap();
        for row in generated() {
            writer.write(&row).unwrap();
        }
        assert!(!path.exists(), "half a file is no file");
        assert_eq!(writer.finish().unwrap(), 2);
        // Rows compare by text: a likelihood that is no number equals nothing.
        let loaded = load::<GeneratedRow>(&path, BadLinePolicy::Strict).unwrap();
        assert_eq!(format!("{:?}", loaded.rows), format!("{:?}", generated()), "{name}");
    }

    let path = folder.path().join("bad.jsonl");
    let good = r#"{"instruction": "i", "references": []}"#;
    fs::write(
        &path,
        [b"\xef\xbb\xbf", good.as_bytes(), b"\r\n\n{\"instruction\": 1}\n\xff\n[]\n", good.as_bytes()]
            .concat(),
    )
    .unwrap();
    let loaded = load::<Row>(&path, BadLinePolicy::Collect).unwrap();
    assert_eq!(loaded.rows.len(), 2);
    let bad: Vec<_> = loaded.bad.iter().map(|bad| (bad.line, bad.reason.as_str())).collect();
    assert_eq!(bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(bad[0].1.contains("expected a string") && bad[1].1 == "not UTF-8 at byte 1", "{bad:?}");
    assert!(loaded.bad[0].to_string().contains("bad.jsonl:3: "));
    let Err(ReadError::Bad(first)) = load::<Row>(&path, BadLinePolicy::Strict) else { panic!("strict") };
    assert_eq!(first.line, 3);
    assert!(matches!(
        load::<Row>(&folder.path().join("absent"), BadLinePolicy::Strict),
        Err(ReadError::Io { .. })
    ));
    assert!(load::<Row>(folder.path(), BadLinePolicy::Strict).is_err());
}

#[test]
fn the_choice_is_measured_beside_what_else_could_be_chosen() {
    let options = SelectionOptions { seed: 1, truncated_rows: Some(1), ..Default::default() };
    let result = select(&generated(), &scores(), options).unwrap();
    // Row 0: "he goes" 0.5, "he went" 1, "café" 0. Row 1: "she saw it" 0.8, "x" 0, "she saw" 1.
    assert_eq!(result.per_row.as_ref().unwrap().chosen, [1, 0], "the first of equal scores");
    assert_eq!(result.rouge_l, (1.0 + 0.8) / 2.0);
    assert_eq!(result.oracle, Some(1.0));
    let baselines: Vec<_> = result.baselines.iter().map(|(name, f)| (name.as_str(), *f)).collect();
    let expected = [
        ("beam4", (0.5 + 0.8) / 2.0),
        ("sampling", 0.5),
        ("self_score_sum", (0.5 + 0.8) / 2.0),
        ("self_score_mean", (1.0 + 0.8) / 2.0),
    ];
    assert_eq!(baselines, expected);
    assert!((result.gap_closed.unwrap() - (0.9 - 0.65) / (1.0 - 0.65)).abs() < 1e-12);
    let [low, high] = result.confidence_95.unwrap();
    assert!((0.8..=1.0).contains(&low) && low < high && high <= 1.0);
    assert_eq!(result.truncated_share, Some(0.5));
    // By hand: 0.5 in row 0, the square root of 3/4 in row 1.
    assert!((result.spearman_within_rows.unwrap() - 0.6830127018922194).abs() < 1e-12);

    assert_eq!(best(&[1.0, f32::NAN]), Err(1));
    assert_eq!(best(&[]), Ok(None));
    let mut broken = scores();
    broken[1][2] = f32::NAN;
    let failed = |scores: &[Vec<f32>]| select(&generated(), scores, SelectionOptions::default()).unwrap_err();
    assert_eq!(failed(&broken), SelectionError::NotANumber { row: 1, candidate: 2 });
    broken[1].pop();
    assert_eq!(failed(&broken), SelectionError::ScoreCount { row: 1, candidates: 3, scores: 2 });
    assert_eq!(failed(&broken[..1]), SelectionError::RowCount { rows: 2, scored: 1 });
}

#[test]
fn rows_without_references_count_in_no_mean() {
    let mut rows = generated();
    rows[0].row.references.clear();
    let result = select(&rows, &scores(), SelectionOptions::default()).unwrap();
    assert_eq!((result.rouge_l, result.rows, result.rows_without_references), (0.8, Some(2), 1));
    let per_row = result.per_row.unwrap();
    assert_eq!((per_row.chosen.len(), per_row.rouge_l.len()), (2, 1));
    rows[1].row.references.clear();
    let error = select(&rows, &scores(), SelectionOptions::default()).unwrap_err();
    assert_eq!(error, SelectionError::NoReferences);
}

fn number(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Number(x) => Some((x * 1e4).round() / 1e4),
        _ => None,
    }
}

#[test]
fn results_of_ours_and_of_the_reference_make_one_table() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("flan-t5-xxl");
    let ours = select(&generated(), &scores(), SelectionOptions::default()).unwrap();
    ours.save(&model.join("tense.json")).unwrap();
    assert_eq!(SubsetResult::load(&model.join("tense.json")).unwrap(), ours);
    fs::write(model.join("auto_categorization.json"), r#"{"rougeL": 0.6}"#).unwrap();
    fs::write(model.join("rephrase.json"), "running...").unwrap();
    fs::write(model.join("report.json"), "{}").unwrap();

    let loaded = load_results(folder.path()).unwrap();
    assert_eq!(loaded.models.len(), 1);
    assert!(loaded.skipped[0].path.ends_with("rephrase.json") && loaded.skipped.len() == 1);
    assert_eq!(load_results(&model).unwrap(), loaded, "one model's folder is enough");
    assert!(matches!(load_results(&folder.path().join("absent")), Err(LoadReportError::Io { .. })));

    let scores = scores_table(&loaded.models);
    assert_eq!(scores.columns, ["subset", "flan-t5-xxl", "flan-t5-xxl published"]);
    assert_eq!(number(&scores.rows[0].cells[2]), Some(61.2101));
    assert_eq!(number(&scores.rows[2].cells[1]), Some(75.0), "the mean row");
    let methods = methods_table(&loaded.models);
    let row = |label: &str| {
        let found = methods.rows.iter().find(|row| row.cells[0] == Cell::Text(label.into()));
        found.map(|row| (number(&row.cells[1]), number(&row.cells[2])))
    };
    assert_eq!(row("Cappy"), Some((Some(75.0), Some(37.1678))));
    // The reference's file has no baselines, and a mean over fewer subsets would not be comparable.
    assert_eq!(row("Beam Search (beam=4)"), Some((None, Some(29.6608))));
    assert_eq!(row("Oracle (best candidate)"), None);
    assert_eq!(overall_interval(&loaded.models[0], 1), None, "a subset without rows has no interval");

    let full = ModelResults { model: "demo".into(), subsets: [("tense".to_owned(), ours.clone())].into() };
    let [low, high] = overall_interval(&full, 1).unwrap();
    assert!(low <= ours.rouge_l && ours.rouge_l <= high);
    let text = render::text(&methods_table(&[full]));
    for line in
        ["Beam Search (beam=4)     65.0", "Cappy                    90.0", "Oracle (best candidate)  100.0"]
    {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(text.lines().any(|found| words(found) == words(line)), "{line} in\n{text}");
    }
    assert!(text.contains("1 subset, 2 validation rows; Cappy 95% interval 80.0"), "{text}");
    assert!(text.contains("71.4% of the gap from beam search to the oracle closed"), "{text}");
}

#[test]
fn the_reference_files_give_the_published_means_by_size() {
    let folder = TempDir::new().unwrap();
    for model in ["flan-t5-xxl", "flan-t5-small", "flan-t5-xl", "flan-t5-base", "flan-t5-large", "a-model"] {
        for subset in GENERATIVE_SUBSETS {
            let rouge_l = published::score(model, subset).unwrap_or(0.5);
            let path = folder.path().join(model).join(format!("{subset}.json"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{{\"rougeL\": {rouge_l}}}")).unwrap();
        }
    }
    let loaded = load_results(folder.path()).unwrap();
    let names: Vec<_> = loaded.models.iter().map(|model| model.model.as_str()).collect();
    assert_eq!(names[..5], published::MODELS);
    let text = render::text(&scores_table(&loaded.models));
    let mean = text.lines().find(|line| line.starts_with("mean over 45 subsets")).unwrap();
    let figures: Vec<&str> = mean.split_whitespace().skip(4).collect();
    let published = ["23.6543", "27.6178", "30.3802", "33.2775", "37.1678"];
    let doubled: Vec<&str> = published.iter().flat_map(|x| [*x, *x]).collect();
    assert_eq!(figures[..10], doubled, "ours, then the published one");
    assert!(loaded.models.iter().all(|model| details_table(model).is_none()));
    let plot = plot::gains(&loaded.models).unwrap();
    assert_eq!((plot.rows.len(), plot.models.len()), (45, 6));
}

#[test]
fn baselines_need_generations_only() {
    let folder = TempDir::new().unwrap();
    let (generations, data) = (folder.path().join("g/demo"), folder.path().join("d"));
    for path in [&generations, &data] {
        fs::create_dir_all(path).unwrap();
    }
    let without = GENERATED.replace(r#"["he went"]"#, "[]");
    fs::write(generations.join("tense_validation.jsonl"), &without).unwrap();
    fs::write(generations.join("bad_validation.jsonl"), "{").unwrap();
    fs::write(data.join("tense_validation.jsonl"), GENERATED).unwrap();

    let beam = |data: Option<&Path>| {
        let loaded = baselines_from_generations(&folder.path().join("g"), data).unwrap();
        assert!(loaded.skipped[0].reason.contains("bad_validation.jsonl:1: "), "{:?}", loaded.skipped);
        loaded.models[0].subsets["tense"].baselines["beam4"]
    };
    assert_eq!(beam(None), 0.8);
    assert_eq!(beam(Some(&data)), 0.65);
    let table = methods_table(&baselines_from_generations(&generations, Some(&data)).unwrap().models);
    assert!(table.rows.iter().all(|row| row.cells[0] != Cell::Text("Cappy".into())), "nobody scored");
    fs::remove_file(generations.join("tense_validation.jsonl")).unwrap();
    let error = baselines_from_generations(&generations, None).unwrap_err().to_string();
    assert!(error.contains("holds no generations") && error.contains("bad_validation.jsonl:1: "), "{error}");
}
