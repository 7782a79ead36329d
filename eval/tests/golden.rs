//! Outputs of the Python packages, met to the last bit: a small fixture always, the large files where they are at hand.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use cappy_eval::rouge::{RougeScorer, porter};

fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The lines of each file that exists.
fn lines_of(fixture: &str, golden: &str) -> Vec<String> {
    let mut text = String::new();
    File::open(here(fixture)).unwrap().read_to_string(&mut text).unwrap();
    match File::open(here("../../shared/reference").join(golden)) {
        Ok(file) => {
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        }
        Err(_) => eprintln!("{golden} is not here: only the fixture is checked"),
    }
    text.lines().map(str::to_owned).collect()
}

/// Words and NLTK 3.10's stems.
#[test]
fn stems_are_nltks() {
    let lines = lines_of("tests/fixtures/porter.tsv", "porter_golden.tsv.gz");
    let wrong: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let (word, expected) = line.split_once('\t').unwrap();
            let stem = porter::stem(word);
            (stem != expected).then(|| format!("{word}: {stem}, not {expected}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} are wrong: {:?}",
        wrong.len(),
        lines.len(),
        &wrong[..wrong.len().min(9)]
    );
}

/// References, prediction and F1 of rouge_score 0.1.2 with stemming.
#[test]
fn rouge_l_is_the_packages_to_the_last_bit() {
    let lines = lines_of("tests/fixtures/rouge.tsv", "rouge_golden.tsv.gz");
    let mut scorer = RougeScorer::new();
    for line in &lines {
        let mut fields = line.split('\t');
        let mut field = || fields.next().unwrap();
        let references: Vec<String> = serde_json::from_str(field()).unwrap();
        let prediction: String = serde_json::from_str(field()).unwrap();
        let expected: f64 = field().parse().unwrap();
        let f = scorer.rouge_l(&references, &prediction).unwrap();
        assert_eq!(f.to_bits(), expected.to_bits(), "{f} for {line}");
    }
}

/// The same through the file path, whose output must read back as the same number.
#[test]
fn scored_files_keep_every_bit_and_field() {
    let lines = lines_of("tests/fixtures/rouge.tsv", "rouge_golden.tsv.gz");
    let (mut rows, mut expected) = (Vec::new(), Vec::new());
    for (id, line) in lines.iter().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        rows.extend_from_slice(
            format!(
                "{{\"id\": {id}, \"references\": {}, \"response\": {} , \"u\": [1.50]}}\r\n",
                fields[0], fields[1]
            )
            .as_bytes(),
        );
        expected.push(fields[2].parse::<f64>().unwrap());
    }
    let mut out = Vec::new();
    let done = cappy_eval::rouge::rows::score_rows("rows", &rows[..], &mut out, Default::default(), |bad| {
        panic!("{bad}")
    })
    .unwrap();
    assert_eq!(done.rows, lines.len() as u64);
    for ((id, line), expected) in BufReader::new(&out[..]).lines().enumerate().zip(expected) {
        let line = line.unwrap();
        assert!(line.contains(" , \"u\": [1.50], \"rougeL\": "), "{line}");
        let row: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((row["id"].as_u64(), row["rougeL"].as_f64()), (Some(id as u64), Some(expected)));
    }
}
