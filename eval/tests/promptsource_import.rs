//! Templates and datasets become test rows.

use std::fs;
use std::path::Path;

use cappy_eval::promptsource::{ImportError, ImportOptions, ImportReport, Note, PromptRow, import};
use cappy_eval::rows::{BadLinePolicy, load};

const ANLI: &str = "\
dataset: anli
templates:
  a: !Template
    answer_choices: Correct ||| Inconclusive ||| Incorrect
    jinja: '{{premise}} {{ [\"Really\", \"So\"] | choice }}: {{hypothesis}}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: which
  b: !Template
    answer_choices: Yes ||| No
    jinja: '{% if label != 1 %}{{premise}} {{hypothesis}}? ||| {{ answer_choices[label // 2] }}{% endif %}'
    metadata: !TemplateMetadata {original_task: false}
    name: sure
  c: !Template {name: free, answer_choices: null, jinja: 'Go on: {{premise}} ||| {{hypothesis}}'}
  d: !Template {name: endless, answer_choices: 'a ||| b', jinja: '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'}
  e: !Template {name: broken, answer_choices: 'a ||| b', jinja: '{{ premise'}
  f: !Template {name: which, answer_choices: 'a ||| b', jinja: 'x ||| a'}
";

struct Folders {
    scratch: tempfile::TempDir,
}

impl Folders {
    fn new(files: &[(&str, &str)]) -> Self {
        let folders = Self { scratch: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            let path = folders.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folders
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path().join(name)
    }

    fn import(&self, options: &ImportOptions) -> (Result<ImportReport, ImportError>, Vec<String>) {
        let mut told = Vec::new();
        let result =
            import(&self.path("t"), &self.path("d"), &self.path("out.jsonl.gz"), options, &mut |note| {
                let text = match note {
                    Note::Done(dataset) => format!("{}: {}", dataset.dataset_name, dataset.rows),
                    Note::Bad(bad) => bad.to_string(),
                    Note::Skipped { dataset, template } => {
                        format!("{dataset}: {}: {}", template.template, template.reason)
                    }
                };
                told.push(text.replace(&format!("{}/", self.scratch.path().display()), ""));
            });
        (result, told)
    }

    fn rows(&self) -> Vec<PromptRow> {
        load(&self.path("out.jsonl.gz"), BadLinePolicy::Strict).unwrap().rows
    }
}

#[test]
fn every_choice_of_every_template_is_a_row() {
    let folders = Folders::new(&[
        ("t/anli/templates.yaml", ANLI),
        ("t/other/templates.yaml", "templates: {}"),
        (
            "d/anli/r1_test.jsonl",
            "{\"premise\": \"It rains.\", \"hypothesis\": \"Wet\", \"label\": \"neutral\"}\n{\"premise\": 1\n",
        ),
        ("d/anli/r3.csv", "premise,hypothesis,label\nSun,Dry,0\nMoon,Old,2\nStar,Far,-1\n"),
    ]);
    let (report, told) = folders.import(&ImportOptions::default());
    let report = report.unwrap();
    let rows = folders.rows();
    let of = |row: &PromptRow| {
        let instruction = row.instruction.replace("Really:", "?:").replace("So:", "?:");
        format!(
            "{}|{}|{}|{instruction}|{}|{}",
            row.dataset_name, row.template_name, row.example_idx, row.response, row.label
        )
    };
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        [
            "ANLI R1|which|0|It rains. ?: Wet?|Correct|0",
            "ANLI R1|which|0|It rains. ?: Wet?|Inconclusive|1",
            "ANLI R1|which|0|It rains. ?: Wet?|Incorrect|0",
            "ANLI R3|which|0|Sun ?: Dry?|Correct|1",
            "ANLI R3|which|0|Sun ?: Dry?|Inconclusive|0",
            "ANLI R3|which|0|Sun ?: Dry?|Incorrect|0",
            "ANLI R3|sure|0|Sun Dry?|Yes|1",
            "ANLI R3|sure|0|Sun Dry?|No|0",
            "ANLI R3|which|1|Moon ?: Old?|Correct|0",
            "ANLI R3|which|1|Moon ?: Old?|Inconclusive|0",
            "ANLI R3|which|1|Moon ?: Old?|Incorrect|1",
            "ANLI R3|sure|1|Moon Old?|Yes|0",
            "ANLI R3|sure|1|Moon Old?|No|1",
            // Label -1 is Python's last.
            "ANLI R3|which|2|Star ?: Far?|Correct|0",
            "ANLI R3|which|2|Star ?: Far?|Inconclusive|0",
            "ANLI R3|which|2|Star ?: Far?|Incorrect|1",
            "ANLI R3|sure|2|Star Far?|Yes|0",
            "ANLI R3|sure|2|Star Far?|No|1",
        ]
    );
    assert_eq!(report.rows, 18);
    assert_eq!(report.skipped.len(), 1, "{:?}", report.skipped);
    assert_eq!(
        (report.skipped[0].name.as_str(), report.bad()),
        ("ANLI R2", 5),
        "an absent sibling is no fault"
    );
    assert_eq!((report.datasets[0].bad, report.datasets[0].without_answer), (2, 1));
    assert_eq!(
        told[0],
        "ANLI R1: broken: syntax error: unexpected end of input, expected end of variable block (line 1 of its `jinja`)"
    );
    assert_eq!(told[1], "ANLI R1: which: another template has its name");
    assert_eq!(
        told[2],
        "d/anli/r1_test.jsonl:1: template `endless`: it loops or grows without end (line 1 of its `jinja`)"
    );
    assert!(told[3].starts_with("d/anli/r1_test.jsonl:2: "), "{told:?}");
    assert_eq!(told[4], "ANLI R1: 3");
    // The same rows again, drawn words included.
    folders.import(&ImportOptions::default()).0.unwrap();
    assert_eq!(folders.rows(), rows);
}

#[test]
fn options_choose_what_is_imported() {
    let folders = Folders::new(&[
        ("t/anli/templates.yaml", ANLI),
        (
            "t/crows_pairs/templates.yaml",
            "templates: {a: !Template {name: a, answer_choices: A ||| B, jinja: '{{ text }} ||| {{ text }}', metadata: {original_task: false}}}",
        ),
        ("d/anli/r1.jsonl", "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 0}\n"),
        ("d/crows_pairs/all.jsonl", "{\"text\": \"A\"}\n{\"text\": \"C\"}\n{\"text\": \"B\"}\n"),
    ]);
    let (report, _) = folders.import(&ImportOptions {
        datasets: vec!["anli r1".into(), "crows_pairs".into()],
        original_tasks_only: true,
        limit: Some(2),
        ..ImportOptions::default()
    });
    let report = report.unwrap();
    let counts: Vec<_> = report
        .datasets
        .iter()
        .map(|d| (d.dataset_name.as_str(), d.examples, d.templates, d.rows, d.bad))
        .collect();
    // Crows-Pairs has no template for its original task, so it keeps them all.
    assert_eq!(counts, [("ANLI R1", 1, 1, 3, 0), ("Crows-Pairs", 2, 1, 2, 1)]);

    let strict =
        ImportOptions { datasets: vec!["Crows-Pairs".into()], strict: true, ..ImportOptions::default() };
    let error = folders.import(&strict).0.unwrap_err().to_string();
    assert!(
        error.ends_with("all.jsonl:2: template `a`: the answer `C` is none of the choices (A, B)"),
        "{error}"
    );

    let unknown = ImportOptions { datasets: vec!["RTE".into()], ..ImportOptions::default() };
    assert_eq!(
        folders.import(&unknown).0.unwrap_err().to_string(),
        "there is no dataset `RTE` with both templates and files; there are: ANLI R1, Crows-Pairs"
    );
    let nowhere = import(
        Path::new("nowhere"),
        Path::new("d"),
        Path::new("out"),
        &ImportOptions::default(),
        &mut |_| {},
    );
    assert_eq!(nowhere.unwrap_err().to_string(), "failed to read nowhere");
}
