//! Templates render as Jinja2 renders them: stored renderings of the promptsource package.
//!
//! `fixtures/promptsource_golden.jsonl` is made by `fixtures/make_promptsource_golden.py`; where the larger shared set
//! exists, all of it is compared too.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use cappy_eval::promptsource::{CompiledTemplate, DrawKey, TemplateFile, Variant};
use cappy_eval::rows::open_source;
use serde::Deserialize;
use serde_json::{Map, Value};

/// One rendering: folder of the template file, template name, example, choices, parts with and without truncation.
#[derive(Deserialize)]
struct Golden {
    key: String,
    name: String,
    ex: Map<String, Value>,
    ac: Option<Vec<String>>,
    trunc: Vec<String>,
    full: Vec<String>,
}

fn compare(golden: &Path, templates: &Path) -> usize {
    let mut compiled: HashMap<(String, String), [CompiledTemplate; 2]> = HashMap::new();
    let mut rows = 0;
    for line in BufReader::new(open_source(golden).unwrap()).lines() {
        let row: Golden = serde_json::from_str(&line.unwrap()).unwrap();
        let variants = compiled.entry((row.key.clone(), row.name.clone())).or_insert_with(|| {
            let file = TemplateFile::load(&templates.join(&row.key).join("templates.yaml")).unwrap();
            assert_eq!(file.skipped, []);
            let template = file.templates.into_iter().find(|template| template.name == row.name).unwrap();
            [Variant::Truncating, Variant::Full]
                .map(|variant| CompiledTemplate::new(template.clone(), variant).unwrap())
        });
        for (compiled, parts) in variants.iter().zip([&row.trunc, &row.full]) {
            let rendered =
                compiled.apply(&row.ex, DrawKey { seed: 0, dataset: &row.key, example_idx: 0 }).unwrap();
            assert_eq!((&rendered.parts, &rendered.choices), (parts, &row.ac), "{} {}", row.key, row.name);
        }
        rows += 1;
    }
    rows
}

#[test]
fn our_own_fixture_renders_exactly() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    assert!(compare(&fixtures.join("promptsource_golden.jsonl"), &fixtures.join("promptsource")) >= 20);
}

#[test]
fn the_shared_golden_set_renders_exactly() {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference"));
    let golden = shared.join("promptsource_render_golden.jsonl.gz");
    if !golden.exists() {
        return eprintln!("skipped: no shared golden renderings here");
    }
    assert!(compare(&golden, &shared.join("promptsource_templates")) > 500);
}
