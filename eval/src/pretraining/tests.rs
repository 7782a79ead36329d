use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use super::*;
use crate::rows::{BadLinePolicy, TrainingExample, load};

const TEMPLATES: &str = "\
templates:
  a: !Template {name: choose, answer_choices: Yes ||| No, jinja: 'Is {{n}} even? ||| {{ answer_choices[n % 2] }}'}
  b: !Template {name: write, jinja: 'Write {{n}} in words. ||| {{ word }}'}
";
const WORDS: [&str; 8] = ["nought", "one", "two", "three", "four", "five", "six", "seven"];

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("templates/numbers/templates.yaml", TEMPLATES.into());
    let examples = (0..8).map(|n| format!("{{\"n\": {n}, \"word\": \"{}\"}}\n", WORDS[n])).collect();
    write("data/numbers/all.jsonl", examples);
    write(
        "rows.jsonl",
        "{\"instruction\": \"Is 2 even?\", \"response\": \"Yes\", \"label\": 0.25}\n\
         {\"instruction\": \"Is 2 even?\", \"response\": \"Maybe\", \"label\": 0.5}\n\
         {\"instruction\": \"Is 2 even?\", \"response\": \"Never\", \"label\": 1.5}\n\
         {\"instruction\": 2}\n"
            .into(),
    );
    folder
}

fn recipe(folder: &Path, more: &str, dataset: &str) -> Recipe {
    let text = format!(
        "templates = 'templates'\ndatasets = 'data'\n{more}\n[[dataset]]\nfolder = 'numbers'\n{dataset}\n\
         [[rows]]\nfile = 'rows.jsonl'\n[prompts]\nmodels = ['demo']\n"
    );
    fs::write(folder.join("recipe.toml"), text).unwrap();
    Recipe::read(&folder.join("recipe.toml")).unwrap()
}

fn write(recipe: &Recipe, output: &Path) -> (Mixture, Vec<String>) {
    let mut bad = Vec::new();
    let mixture = recipe.write(output, &mut |note| {
        if let Note::Bad(line) = note {
            bad.push(line.reason);
        }
    });
    (mixture.unwrap(), bad)
}

fn examples(path: &Path) -> Vec<TrainingExample> {
    load(path, BadLinePolicy::Strict).unwrap().rows
}

#[test]
fn every_source_is_labelled_as_it_should_be() {
    let folder = folder();
    let recipe = recipe(folder.path(), "", "prompts = 5");
    let (mixture, bad) = write(&recipe, &folder.path().join("out"));
    let rows = examples(&mixture.examples);
    assert_eq!(rows.len() as u64, mixture.example_rows);
    let labels: BTreeMap<(&str, &str), f64> =
        rows.iter().map(|row| ((row.instruction.as_str(), row.response.as_str()), row.label)).collect();
    assert_eq!(labels.len(), rows.len(), "each pair once");
    for n in 0..8 {
        let (question, task) = (format!("Is {n} even?"), format!("Write {n} in words."));
        assert_eq!(labels[&(question.as_str(), ["Yes", "No"][n % 2])], 1.0, "a right answer wins over a row");
        assert_eq!(labels[&(question.as_str(), ["No", "Yes"][n % 2])], 0.0);
        assert_eq!(labels[&(task.as_str(), WORDS[n])], 1.0);
        let wrong: Vec<_> = labels.iter().filter(|((i, r), _)| *i == task && *r != WORDS[n]).collect();
        assert!(wrong.iter().all(|((_, response), label)| **label == 0.0 && WORDS.contains(response)));
        assert!(wrong.len() <= 1);
    }
    assert_eq!(labels[&("Is 2 even?", "Maybe")], 0.5);
    assert_eq!(mixture.duplicates, 1);
    assert_eq!(
        bad,
        ["label 1.5 is not in [0, 1]", "invalid type: integer `2`, expected a string (column 17)"]
    );
    let counts = &mixture.sources[0];
    assert_eq!((counts.right, counts.wrong_choices, counts.prompts), (16, 8, 16));
    assert!(counts.mismatched >= 4, "{counts:?}");
    assert_eq!((mixture.sources[1].labelled, mixture.bad), (2, 2));
    // Five of the sixteen questions, each with what is right.
    let prompts = fs::read_to_string(mixture.prompts.unwrap()).unwrap();
    assert_eq!((prompts.lines().count(), mixture.prompt_rows), (5, 5));
    assert!(prompts.lines().all(|line| line.contains("\"references\": [")), "{prompts}");
}

#[test]
fn the_same_recipe_gives_the_same_bytes_and_another_seed_another_order() {
    let folder = folder();
    let bytes = |more: &str, output: &str| {
        let (mixture, _) = write(&recipe(folder.path(), more, ""), &folder.path().join(output));
        fs::read_to_string(mixture.examples).unwrap()
    };
    let first = bytes("", "a");
    assert_eq!(bytes("", "b"), first);
    let other = bytes("seed = 2", "c");
    assert_ne!(other, first);
    let right = |text: &str| {
        text.lines().filter(|line| line.ends_with("1.0}")).map(str::to_owned).collect::<HashSet<_>>()
    };
    assert_eq!(right(&other), right(&first));
    assert!(first.lines().take(12).any(|line| line.contains("Write")), "shuffled");
}

#[test]
fn caps_weights_and_held_out_shares_hold() {
    let folder = folder();
    let output = folder.path().join("out");
    let (capped, _) = write(&recipe(folder.path(), "", "cap = 10\nmismatched = 0"), &output);
    assert!((8..=12).contains(&capped.example_rows), "{capped:?}");
    let (twice, _) = write(&recipe(folder.path(), "", "weight = 2.0\nmismatched = 0"), &output);
    assert_eq!(twice.example_rows, 24 * 2 + 1);
    let (half, _) = write(&recipe(folder.path(), "", "weight = 0.5\nmismatched = 0"), &output);
    assert!((6..=20).contains(&half.example_rows), "{half:?}");
    let (limited, _) = write(&recipe(folder.path(), "max_examples = 7", "limit = 4"), &output);
    assert_eq!((limited.example_rows, limited.sources[0].right), (7, 8));

    let (split, _) = write(&recipe(folder.path(), "validation_share = 0.4", "prompts = 99"), &output);
    let instructions =
        |path: &Path| -> HashSet<String> { examples(path).into_iter().map(|row| row.instruction).collect() };
    let (train, held_out) = (instructions(&split.examples), instructions(split.validation.as_ref().unwrap()));
    assert!(train.is_disjoint(&held_out));
    assert_eq!(train.len() + held_out.len(), 16);
    let prompts = fs::read_to_string(split.prompts.unwrap()).unwrap();
    assert!(held_out.iter().all(|instruction| !prompts.contains(instruction)));
}

#[test]
fn what_is_no_recipe_says_why() {
    for (text, reason) in [
        ("", "r: it names neither a [[dataset]] nor [[rows]], so there is nothing to mix"),
        ("nonsense = 1", "r is not a recipe"),
        ("validation_share = 1.0", "r: validation_share 1 is not in [0, 1)"),
        ("[[rows]]\nfile = 'a'\nweight = 0", "r: weight 0 of `a` is not above 0 and at most 1000"),
        (
            "[[dataset]]\nfolder = 'a'",
            "r: `a` needs `templates` and `datasets`: give them at the top or with the dataset",
        ),
        ("[[rows]]", "r is not a recipe"),
    ] {
        assert_eq!(Recipe::parse("r", text, ".".into()).unwrap_err().to_string(), reason, "{text}");
    }
    let folder = folder();
    let mut recipe = recipe(folder.path(), "", "");
    recipe.entries[0].folder = "missing".into();
    let error = recipe.write(&folder.path().join("out"), &mut |_| {}).unwrap_err().to_string();
    assert_eq!(error, "there is no dataset `missing` with both templates and files; there are: numbers");
    recipe.entries.clear();
    recipe.rows[0].file = "nowhere.jsonl".into();
    assert!(matches!(recipe.write(&folder.path().join("out"), &mut |_| {}), Err(MixtureError::Empty)));
}

#[test]
fn the_recipes_that_travel_with_the_project_are_whole() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let paper = Recipe::read(&recipes.join("cappy.toml")).unwrap();
    assert_eq!((paper.name.as_str(), paper.entries.len()), ("cappy", 38));
    let folders: HashSet<&str> = paper.entries.iter().map(|entry| entry.folder.as_str()).collect();
    assert_eq!(folders.len(), 38);

    let small = Recipe::read(&recipes.join("small.toml")).unwrap();
    let output = tempfile::tempdir().unwrap();
    let (mixture, bad) = write(&small, output.path());
    assert_eq!(bad, Vec::<String>::new());
    let counts: Vec<_> =
        mixture.sources.iter().map(|s| (s.source.as_str(), s.right, s.wrong_choices)).collect();
    assert_eq!(counts, [("comparisons", 1200, 1200), ("plurals", 266, 0)]);
    assert!(mixture.example_rows > 2500 && mixture.validation_rows > 200, "{mixture:?}");
    assert!((80..=120).contains(&mixture.prompt_rows), "{mixture:?}");
}
