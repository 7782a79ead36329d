//! Templates applied to examples.

use std::fmt;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use super::Template;
use super::python::{self, Scratch, text::strip};
use crate::keyed::Keyed;

/// Characters to which a text is cut in the truncating variant.
///
/// Source: `TEXT_VAR_LENGTH` of the promptsource package.
pub const TEXT_VAR_LENGTH: usize = 2048;

/// Whether long texts are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Every printed text is cut to [`TEXT_VAR_LENGTH`] characters, as the promptsource package does by default.
    #[default]
    Truncating,
    /// Texts are printed whole.
    Full,
}

/// Why a template gave nothing for an example, or for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    reason: String,
}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for RenderError {}

/// What a template made of an example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The parts between `|||`, blanks around them removed: instruction and target, usually. One part alone means that
    /// the template has nothing to ask about this example.
    pub parts: Vec<String>,
    /// The answer choices, if the template has any.
    pub choices: Option<Vec<String>>,
}

/// Which random numbers a template's `choice` draws.
///
/// The promptsource package draws anew on every run; here the same seed, dataset, template and example always give the
/// same draws, whatever else is rendered.
#[derive(Clone, Copy, Debug)]
pub struct DrawKey<'a> {
    /// Of the whole import.
    pub seed: u64,
    /// The dataset's name.
    pub dataset: &'a str,
    /// Position of the example within the dataset.
    pub example_idx: u64,
}

/// A template, compiled.
///
/// ```
/// use cappy_eval::promptsource::{CompiledTemplate, DrawKey, Template, Variant};
///
/// let template = Template {
///     name: "GPT-3 style".into(),
///     jinja: "{{premise}} Question: {{hypothesis}} True or False? ||| {{ answer_choices[label] }}".into(),
///     answer_choices: Some("True ||| False".into()),
///     ..Template::default()
/// };
/// let compiled = CompiledTemplate::new(template, Variant::Full).unwrap();
/// let example = serde_json::json!({"premise": "It rains.", "hypothesis": "It is wet.", "label": 0});
/// let key = DrawKey { seed: 0, dataset: "mine", example_idx: 0 };
/// let rendered = compiled.apply(example.as_object().unwrap(), key).unwrap();
/// assert_eq!(rendered.parts, ["It rains. Question: It is wet. True or False?", "True"]);
/// assert_eq!(rendered.choices.unwrap(), ["True", "False"]);
/// ```
pub struct CompiledTemplate {
    template: Template,
    environment: Environment<'static>,
}

const PROMPT: &str = "jinja";
const CHOICES: &str = "answer_choices";

impl CompiledTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// If its Jinja is not understood.
    pub fn new(template: Template, variant: Variant) -> Result<Self, RenderError> {
        let mut environment = python::environment();
        let mut add = |name: &'static str, source: &str| {
            environment
                .add_template_owned(name, python::translated(source))
                .map_err(|error| RenderError { reason: explain(&error, name) })
        };
        match variant {
            Variant::Full => add(PROMPT, &template.jinja)?,
            // The same replacement that the promptsource package makes, with what it breaks.
            Variant::Truncating => add(
                PROMPT,
                &template.jinja.replace("}}", &format!(" | string | truncate({TEXT_VAR_LENGTH}) }}}}")),
            )?,
        }
        if let Some(choices) = &template.answer_choices {
            add(CHOICES, choices)?;
        }
        Ok(Self { template, environment })
    }

    /// What was compiled.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Applies the template to one example, a JSON object of its columns.
    ///
    /// # Errors
    /// If the template asks for what the example does not have, or works too much for one example.
    pub fn apply(&self, example: &Map<String, Json>, key: DrawKey<'_>) -> Result<Rendered, RenderError> {
        if example.contains_key(CHOICES) {
            return Err(RenderError { reason: format!("the example has a column named `{CHOICES}`") });
        }
        let purpose = format!("promptsource/{}/{}/{}", key.dataset, self.template.name, key.example_idx);
        let scratch = Scratch::new(Keyed::new(key.seed, &purpose));
        let mut context = python::context_of(example, &scratch);
        let (name, value) = scratch.variable();
        context.push((name.to_owned(), value));
        let choices: Option<Vec<String>> = match &self.template.answer_choices {
            None => None,
            Some(_) => {
                let rendered = self.render(CHOICES, &context)?;
                Some(
                    rendered
                        .split(python::SEPARATOR)
                        .map(|choice| python::unprotect(strip(choice)))
                        .collect(),
                )
            }
        };
        let choices_value = choices.as_ref().map_or_else(
            || Value::from(()),
            |choices| scratch.list(choices.iter().map(|choice| Value::from(choice.as_str())).collect()),
        );
        context.push((CHOICES.to_owned(), choices_value));
        let rendered = self.render(PROMPT, &context)?;
        let parts = rendered
            .split(python::SEPARATOR)
            .map(|part| strip(&python::unprotect(part)).to_owned())
            .collect();
        Ok(Rendered { parts, choices })
    }

    fn render(&self, name: &str, context: &[(String, Value)]) -> Result<String, RenderError> {
        let context = Value::from_pairs(context.iter().map(|(name, value)| (name.as_str(), value.clone())));
        self.environment
            .get_template(name)
            .and_then(|template| template.render(context))
            .map_err(|error| RenderError { reason: explain(&error, name) })
    }
}

impl fmt::Debug for CompiledTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompiledTemplate").field(&self.template.name).finish()
    }
}

/// An error of the engine in one line, without its source dump.
fn explain(error: &Error, part: &str) -> String {
    let line = error.line().map(|line| format!(" (line {line} of its `{part}`)")).unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it loops or grows without end{line}"),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}{line}"),
            None => format!("{kind}{line}"),
        },
    }
}
