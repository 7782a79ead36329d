//! Template files: `templates.yaml` as the promptsource package writes it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use yaml_serde::{Mapping, Value};

/// A larger file is refused; the largest of the repository has 100 KiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The templates of one dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateFile {
    /// The dataset, as the hub calls it; empty if the file does not say.
    pub dataset: String,
    /// Its configuration on the hub, if it has several.
    pub subset: Option<String>,
    /// In the order of the file.
    pub templates: Vec<Template>,
    /// Entries that are no templates.
    pub skipped: Vec<SkippedTemplate>,
}

/// A prompt for one dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// Unique over all datasets.
    pub id: String,
    /// Unique within the dataset.
    pub name: String,
    /// Jinja; rendered, it splits at `|||` into instruction and target.
    pub jinja: String,
    /// Jinja; rendered, it splits at `|||` into the choices. `None`: the answer is free text.
    pub answer_choices: Option<String>,
    /// Whether the template asks for what the dataset was made for; `None` if the file does not say.
    pub original_task: Option<bool>,
}

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedTemplate {
    /// Its name, or its id if it has none.
    pub template: String,
    /// Why.
    pub reason: String,
}

/// Why there are no templates.
#[derive(Debug, thiserror::Error)]
pub enum TemplateFileError {
    /// The file system refused.
    #[error("failed to read {path}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{path} is not a template file")]
    Yaml {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: yaml_serde::Error,
    },
    /// YAML of another shape.
    #[error("{path} is not a template file: {reason}")]
    Shape {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl TemplateFile {
    /// Reads `templates.yaml`.
    ///
    /// # Errors
    /// If the file cannot be read, is no YAML or has no `templates`; an entry that is no template is
    /// [skipped](Self::skipped).
    pub fn load(path: &Path) -> Result<Self, TemplateFileError> {
        let name = path.display().to_string();
        let io_error = |source| TemplateFileError::Io { path: name.clone(), source };
        let mut text = String::new();
        File::open(path)
            .map_err(io_error)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io_error)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            let reason = format!("larger than {} MiB", MAX_FILE_BYTES >> 20);
            return Err(TemplateFileError::Shape { path: name, reason });
        }
        Self::parse(&name, &text)
    }

    /// Reads the text of a template file; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, TemplateFileError> {
        let document: Value = yaml_serde::from_str(text)
            .map_err(|source| TemplateFileError::Yaml { path: name.to_owned(), source })?;
        let shape =
            |reason: &str| TemplateFileError::Shape { path: name.to_owned(), reason: reason.to_owned() };
        let document =
            untagged(&document).as_mapping().ok_or_else(|| shape("expected a mapping at the top"))?;
        let entries = document.get("templates").ok_or_else(|| shape("it has no `templates`"))?;
        let entries = untagged(entries).as_mapping().ok_or_else(|| shape("`templates` is not a mapping"))?;
        let mut file = Self {
            dataset: scalar(document, "dataset").unwrap_or_default(),
            subset: scalar(document, "subset"),
            ..Self::default()
        };
        for (id, entry) in entries {
            let id = scalar_text(id).unwrap_or_default();
            match template(&id, entry) {
                Ok(template) => file.templates.push(template),
                Err(skipped) => file.skipped.push(skipped),
            }
        }
        Ok(file)
    }
}

fn template(id: &str, entry: &Value) -> Result<Template, SkippedTemplate> {
    let skipped = |template: &str, reason: &str| SkippedTemplate {
        template: template.to_owned(),
        reason: reason.to_owned(),
    };
    let entry = untagged(entry).as_mapping().ok_or_else(|| skipped(id, "not a mapping"))?;
    let name = scalar(entry, "name").ok_or_else(|| skipped(id, "it has no `name`"))?;
    let jinja = scalar(entry, "jinja").ok_or_else(|| skipped(&name, "it has no `jinja`"))?;
    let metadata = entry.get("metadata").map(untagged).and_then(Value::as_mapping);
    Ok(Template {
        id: scalar(entry, "id").unwrap_or_else(|| id.to_owned()),
        answer_choices: scalar(entry, "answer_choices"),
        original_task: metadata.and_then(|metadata| metadata.get("original_task")).and_then(Value::as_bool),
        name,
        jinja,
    })
}

/// The value behind `!Template` or `!TemplateMetadata`.
fn untagged(value: &Value) -> &Value {
    match value {
        Value::Tagged(tagged) => untagged(&tagged.value),
        value => value,
    }
}

fn scalar(mapping: &Mapping, key: &str) -> Option<String> {
    mapping.get(key).and_then(scalar_text)
}

/// A text; a number or flag, as it would be written.
fn scalar_text(value: &Value) -> Option<String> {
    match untagged(value) {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(if *flag { "True" } else { "False" }.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "\
dataset: super_glue
subset: cb
templates:
  2e76: !Template
    answer_choices: Yes ||| No
    id: 2e76
    jinja: 'Suppose {{premise}}

      Really? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      original_task: false
    name: 12
    reference: ''
  3f43: !Template
    jinja: '{{ a }}'
  4a: nothing
  5b: !Template {name: free, jinja: '{{ premise }}', answer_choices: null}
";

    #[test]
    fn templates_load_and_others_are_named() {
        let file = TemplateFile::parse("f", FILE).unwrap();
        assert_eq!((file.dataset.as_str(), file.subset.as_deref()), ("super_glue", Some("cb")));
        let expected = Template {
            id: "2e76".into(),
            name: "12".into(),
            jinja: "Suppose {{premise}}\nReally? ||| {{ answer_choices[label] }}".into(),
            answer_choices: Some("Yes ||| No".into()),
            original_task: Some(false),
        };
        assert_eq!(file.templates[0], expected);
        assert_eq!((file.templates[1].name.as_str(), &file.templates[1].answer_choices), ("free", &None));
        let skipped: Vec<_> = file.skipped.iter().map(|s| (s.template.as_str(), s.reason.as_str())).collect();
        assert_eq!(skipped, [("3f43", "it has no `name`"), ("4a", "not a mapping")]);
    }

    #[test]
    fn what_is_no_template_file_is_named() {
        for (text, reason) in [
            ("", "f is not a template file: expected a mapping at the top"),
            ("a: 1", "f is not a template file: it has no `templates`"),
            ("templates: [1]", "f is not a template file: `templates` is not a mapping"),
            ("templates: {a: !Template {jinja: 'x'", "f is not a template file"),
        ] {
            assert_eq!(TemplateFile::parse("f", text).unwrap_err().to_string(), reason);
        }
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(at in 0..FILE.len(), with in "[!:&*{}\\[\\]|>'\"\\-\n a0]{0,4}", cut in 0usize..12) {
            let end = (at + cut).min(FILE.len());
            let damaged = format!("{}{with}{}", &FILE[..at], &FILE[end..]);
            let _ = TemplateFile::parse("f", &damaged);
        }
    }
}
