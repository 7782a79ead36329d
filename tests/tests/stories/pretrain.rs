//! From a recipe to a scorer.

use std::{fs, path::Path};

use cappy_tests::{Client, Sandbox, json_lines};
use serde_json::Value;

#[test]
fn a_recipe_becomes_a_scorer_and_the_same_recipe_the_same_one() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/small.toml");
    let recipe = recipe.to_str().expect("UTF-8");
    let pretrain = |results: &str| {
        let args = ["submit", "pretrain", "--recipe", recipe, "--mixture", "mixture", "--output", "json"];
        client.run(args.iter().chain(&["--results", results])).expect(0)
    };
    let first = pretrain("first").json();
    let mixture = |name: &str| json_lines(&fs::read(sandbox.path("mixture").join(name)).expect("a part"));
    let (examples, held_out) = (mixture("examples.jsonl"), mixture("validation.jsonl"));
    let label = |row: &Value| row["label"].as_f64().expect("a label");
    assert!(examples.iter().any(|row| label(row) == 1.0) && examples.iter().any(|row| label(row) == 0.0));
    assert!(!held_out.is_empty() && !mixture("prompts.jsonl").is_empty());

    let model = first["model"].as_str().expect("a model id");
    assert!(model.starts_with("mdl_"), "{model}");
    assert_eq!((&first["updates"], &first["losses"].as_array().map(Vec::len)), (&80.into(), &Some(80)));
    let evaluations = first["evaluations"].as_array().expect("evaluations");
    let updates: Vec<&Value> = evaluations.iter().map(|evaluation| &evaluation["update"]).collect();
    assert_eq!(updates, [20, 40, 60, 80]);
    // The generator's answers are trained on, too.
    assert!(
        first["examples"].as_u64() > Some(examples.len() as u64),
        "{} {}",
        first["examples"],
        examples.len()
    );
    let row = ["--instruction", "Is 3 larger than 2?", "--response", "yes"];
    client.run(["score", "--scorer", model].iter().chain(&row)).expect(0);

    let again = pretrain("again");
    assert!(again.stderr.contains("stages reused"), "{again}");
    assert_eq!(again.json()["losses"], first["losses"]);
}

#[test]
fn a_recipe_that_is_none_is_named() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    for (name, text, code, words) in [
        ("unknown.toml", "scorer = \"demo\"\nflavour = 7\n", 1, "flavour"),
        ("empty.toml", "scorer = \"demo\"\n", 1, "nothing to mix"),
        ("scorer.toml", "[[rows]]\nfile = \"rows.jsonl\"\n", 2, "--scorer"),
        (
            "training.toml",
            "scorer = \"demo\"\n[[rows]]\nfile = \"rows.jsonl\"\n[training]\ndropout = 7\n",
            2,
            "dropout",
        ),
    ] {
        sandbox.file(name, text);
        let ended = client.run(["submit", "pretrain", "--recipe", name]).expect(code);
        assert!(ended.stderr.contains(words), "{name}: {ended}");
    }
    let missing = client.run(["submit", "pretrain", "--recipe", "nowhere.toml"]).expect(1);
    assert!(missing.stderr.contains("nowhere.toml"), "{missing}");
}
