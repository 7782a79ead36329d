//! What the embedded files promise to those that read them.

use std::collections::{BTreeMap, BTreeSet};

use cappy_demo::{BENCHMARK_FILES, DEMO_SETTINGS, File, GENERATOR_FILES, SCORER_FILES};
use serde_json::Value;

const SIZE_LIMIT_BYTES: usize = 12 * 1000 * 1000;

fn content(files: &[File], path: &str) -> &'static [u8] {
    let found = files.iter().find(|(name, _)| *name == path);
    found.unwrap_or_else(|| panic!("the demo has no `{path}`")).1
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("a demo file that should be JSON is JSON")
}

/// Tensor name -> (dtype, shape) from the header of a safetensors file, whose data length is checked on the way.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (String, Vec<u64>)> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = json(&bytes[8..8 + length]);
    let entries =
        header.as_object().expect("the header is an object").iter().filter(|(n, _)| *n != "__metadata__");
    let mut end = 0;
    let found = entries
        .map(|(name, entry)| {
            end = end.max(entry["data_offsets"][1].as_u64().expect("an offset") as usize);
            let shape =
                entry["shape"].as_array().expect("a shape").iter().map(|n| n.as_u64().expect("a size"));
            (name.clone(), (entry["dtype"].as_str().expect("a dtype").to_owned(), shape.collect()))
        })
        .collect();
    assert_eq!(8 + length + end, bytes.len(), "data ends where the header says");
    found
}

/// Every piece of a Unigram `tokenizer.json`, by id.
fn pieces(files: &[File]) -> Vec<String> {
    let tokenizer = json(content(files, "tokenizer.json"));
    assert_eq!(tokenizer["model"]["type"], "Unigram");
    let vocabulary = tokenizer["model"]["vocab"].as_array().expect("a vocabulary");
    vocabulary.iter().map(|entry| entry[0].as_str().expect("a piece").to_owned()).collect()
}

#[test]
fn everything_fits_the_size_limit() {
    let all = [GENERATOR_FILES, SCORER_FILES, BENCHMARK_FILES].concat();
    let total: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total <= SIZE_LIMIT_BYTES, "{total} bytes");
    assert!(
        all.iter().all(|(path, bytes)| !bytes.is_empty() && !path.starts_with('/') && !path.contains(".."))
    );
}

#[test]
fn models_agree_with_their_configs_and_tokenizers() {
    let cases = [
        (
            GENERATOR_FILES,
            "T5ForConditionalGeneration",
            "shared.weight",
            ["<pad>", "</s>", "<unk>"].as_slice(),
        ),
        (
            SCORER_FILES,
            "RobertaForSequenceClassification",
            "roberta.embeddings.word_embeddings.weight",
            ["<s>", "<pad>", "</s>", "<unk>"].as_slice(),
        ),
    ];
    for (files, architecture, embedding, special) in cases {
        let config = json(content(files, "config.json"));
        assert_eq!(config["architectures"][0], architecture);
        let pieces = pieces(files);
        assert_eq!(&pieces[..special.len()], special, "{architecture}");
        let distinct: BTreeSet<_> = pieces.iter().collect();
        assert_eq!(distinct.len(), pieces.len(), "{architecture}: a piece occurs twice");
        assert_eq!(config["vocab_size"], pieces.len());

        let tensors = tensors(content(files, "model.safetensors"));
        let width =
            config.get("d_model").or(config.get("hidden_size")).and_then(Value::as_u64).expect("a width");
        assert_eq!(tensors[embedding], ("F16".to_owned(), vec![pieces.len() as u64, width]));
        assert!(content(files, "README.md").starts_with(b"---\nlicense: apache-2.0\n"));
    }
    let generator = tensors(content(GENERATOR_FILES, "model.safetensors"));
    assert!(generator.contains_key("lm_head.weight"), "T5 v1.1 has its own output embedding");
    let scorer = tensors(content(SCORER_FILES, "model.safetensors"));
    assert_eq!(scorer["classifier.out_proj.weight"].1[0], 1, "one label");
}

#[test]
fn benchmark_is_in_big_bench_format() {
    assert!(BENCHMARK_FILES.len() >= 6);
    assert!(BENCHMARK_FILES.is_sorted());
    for (path, bytes) in BENCHMARK_FILES {
        let (name, rest) = path.split_once('/').expect("a task has a folder");
        assert_eq!(rest, "task.json");
        let task = json(bytes);
        assert_eq!(task["name"], name);
        for text in ["description", "preferred_score", "task_prefix"] {
            assert!(task[text].as_str().is_some_and(|text| !text.is_empty()), "{name}: {text}");
        }
        for list in ["keywords", "metrics"] {
            assert!(task[list].as_array().is_some_and(|list| !list.is_empty()), "{name}: {list}");
        }
        let examples = task["examples"].as_array().expect("examples");
        assert!(examples.len() >= 100, "{name}: enough rows for both splits");
        let inputs: BTreeSet<_> = examples.iter().map(|e| e["input"].as_str().expect("an input")).collect();
        assert_eq!(inputs.len(), examples.len(), "{name}: an input occurs twice, so splits could share it");
        assert!(examples.iter().all(|e| e["target"].as_str().is_some_and(|target| !target.is_empty())));
    }
}

/// The right answer to `input`, found again here so that the benchmark does not rest on its own generator.
fn answer(task: &str, input: &str) -> Option<String> {
    const NUMBERS: &str = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
                           fifteen sixteen seventeen eighteen nineteen twenty";
    let numbers: Vec<&str> = NUMBERS.split_whitespace().collect();
    let mut words: Vec<&str> = input.split(' ').collect();
    match task {
        "sort_words" => words.sort_unstable(),
        "list_functions" => match words.remove(0) {
            "reverse:" => words.reverse(),
            _ => words = first_occurrences(&words),
        },
        "count_words" => {
            let counted = first_occurrences(&words).into_iter().map(|kind| {
                let count = words.iter().filter(|word| **word == kind).count();
                format!("{} {kind}", numbers[count])
            });
            return Some(counted.collect::<Vec<_>>().join(" "));
        }
        "small_arithmetic" => {
            let value = |word: &str| numbers.iter().position(|number| *number == word).expect("a number");
            let step = value(words[1]);
            words = words[3..].iter().map(|word| numbers[value(word) + step]).collect();
        }
        _ => return None,
    }
    Some(words.join(" "))
}

fn first_occurrences<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    words.iter().copied().filter(|word| seen.insert(*word)).collect()
}

#[test]
fn computable_targets_are_right() {
    let mut checked = BTreeSet::new();
    for (path, bytes) in BENCHMARK_FILES {
        let name = path.split('/').next().expect("a folder");
        for example in json(bytes)["examples"].as_array().expect("examples") {
            let (input, target) =
                (example["input"].as_str().expect("text"), example["target"].as_str().expect("text"));
            let Some(expected) = answer(name, input) else { break };
            assert_eq!(target, expected, "{name}: {input}");
            checked.insert(name);
        }
    }
    assert_eq!(checked.len(), 4);
}

#[test]
fn words_of_the_benchmark_are_pieces_of_both_tokenizers() {
    for files in [GENERATOR_FILES, SCORER_FILES] {
        let pieces: BTreeSet<String> = pieces(files).into_iter().collect();
        for (path, bytes) in BENCHMARK_FILES {
            let task = json(bytes);
            for example in task["examples"].as_array().expect("examples") {
                let texts = [&example["input"], &example["target"]].map(|text| text.as_str().expect("text"));
                for word in texts.iter().flat_map(|text| text.split(' ')) {
                    let name = word.trim_end_matches(':');
                    assert!(
                        pieces.contains(&format!("▁{name}")) || pieces.contains(&format!("▁{word}")),
                        "{path}: {word}"
                    );
                }
            }
        }
    }
}

#[test]
fn settings_make_whole_updates() {
    let rows_of_an_update = u64::from(DEMO_SETTINGS.batch_size * DEMO_SETTINGS.accumulate);
    assert_eq!(DEMO_SETTINGS.train_size % rows_of_an_update, 0);
    assert!(DEMO_SETTINGS.train_size / rows_of_an_update >= 30, "enough updates to learn from");
    assert_eq!(DEMO_SETTINGS.schedule, "corrected");
}
