//! `submit adapt`: a scorer, fine-tuned on own rows.

use std::path::{Path, PathBuf};

use cappy_proto::v1::{AdaptSpec, ExampleForm, job_spec::Kind};
use clap::Args;

use super::{
    fine_tuning::{FineTuningFlags, RunFlags, SEED_SETTINGS},
    row_store::{self, RowStore},
    submit::Submission,
};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::{self, GenerationFlags},
    endpoint::EndpointFlags,
    failure::{Failure, Outcome},
    groups::DataParallel,
    line_input::{Fields, text, texts},
    printer::Printer,
};

/// What `--help` says behind the options.
const HELP: &str = "\
     Rows are of one of two forms, which the first good row decides:\n\
     \n\
     \x20 {\"instruction\", \"response\", \"label\"}          labels in [0, 1]\n\
     \x20 {\"instruction\", \"references\", \"responses\"?}   labels are made\n\
     \n\
     Labels are made as the method makes them: references are 1, references of other rows 0, candidates as right as \
     their ROUGE-L with the references says.\n\
     \n\
     Candidates are the rows' own `responses` (or `flan_samples`), or, with --model, those of a generator.\n\
     \n\
     With --validation the state with the lowest validation loss is kept, and --patience ends a run that no longer \
     improves. The result is a new model, mdl_..., which `score`, `boost` and `submit` accept as --scorer; `models \
     pull mdl_... --to DIR` writes it as a directory that transformers loads. With --output json the result has \
     `model`, `updates`, `losses` (mean loss of each update), `learning_rates` and the validation figures.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit adapt --scorer cappy-large --train train.jsonl --validation held_out.jsonl --patience 3\n\
     \x20 cappy-client submit adapt --scorer demo --train questions.jsonl --model demo --updates 200";

/// Arguments of `submit adapt`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Adapt {
    /// Scorer to start from: a directory, a hub id, a short name (cappy-large, demo) or an adapted one (mdl_...);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    /// Rows to learn from, as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Rows of the same form that choose the state which is kept
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    fine_tuning: FineTuningFlags,
    /// Randomness key of training-set construction, data order, dropout and generated candidates
    #[arg(long, default_value_t = defaults::SEED)]
    seed: u64,
    /// Generator of the candidates, for rows that bring none: a directory, a hub id, a short name, or openai:NAME
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    endpoint: EndpointFlags,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    parallel: DataParallel,
    #[command(flatten)]
    submission: Submission,
}

impl Adapt {
    /// Uploads the rows, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let endpoint = self.endpoint.resolve(self.model.as_deref(), global)?;
        let generation =
            self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let stdin = |path: &Path| path.as_os_str() == "-";
        if stdin(&self.train) && self.validation.as_deref().is_some_and(stdin) {
            return Err(Failure::usage("only one of --train and --validation can be standard input"));
        }
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let data_parallel = self.parallel.on(&cluster)?;
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let mut examples = Examples { generated: self.model.is_some(), ..Examples::default() };
        let train = store.rows(&self.train, |fields| examples.check(fields)).await?;
        examples.settle()?;
        let validation = match &self.validation {
            None => None,
            Some(path) => Some(store.rows(path, |fields| examples.check(fields)).await?),
        };
        let bad = store.bad();
        let fine_tuning = self.run.apply(self.fine_tuning.settings(&SEED_SETTINGS, self.seed));
        let spec = AdaptSpec {
            scorer: self.scorer,
            train: Some(train),
            validation,
            form: examples.form().into(),
            generation: self.model.is_some().then_some(generation),
            model: self.model.unwrap_or_default(),
            endpoint,
            fine_tuning: Some(fine_tuning),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            data_parallel,
        };
        self.submission.hand_in(Kind::Adapt(spec), bad, cluster, global, printer).await
    }
}

/// What the rows seen so far bring.
#[derive(Debug, Default)]
struct Examples {
    /// A generator makes the candidates.
    generated: bool,
    labelled: Option<bool>,
    with_candidates: bool,
}

impl Examples {
    fn form(&self) -> ExampleForm {
        match self.labelled {
            None => ExampleForm::Unspecified,
            Some(true) => ExampleForm::Labelled,
            Some(false) => ExampleForm::References,
        }
    }

    fn check(&mut self, fields: &Fields) -> Result<(), String> {
        let labelled = self.labelled.unwrap_or_else(|| fields.contains_key("label"));
        text(fields, "instruction")?;
        if labelled {
            if !fields.contains_key("label") && fields.contains_key("references") {
                return Err("there is no `label`, and the rows before brought labels".to_owned());
            }
            text(fields, "response")?;
            row_store::label(fields)?;
        } else {
            if !fields.contains_key("references") {
                return Err("there is neither a `label` nor `references`".to_owned());
            }
            if texts(fields, "references")?.is_empty() {
                return Err("`references` is empty".to_owned());
            }
            if fields.contains_key("responses") || fields.contains_key("flan_samples") {
                row_store::candidates(fields)?;
                self.with_candidates = true;
            }
        }
        self.labelled = Some(labelled);
        Ok(())
    }

    /// Whether the rows and the generator go together.
    fn settle(&self) -> Outcome<()> {
        match (self.form(), self.generated) {
            (ExampleForm::Labelled, true) => {
                Err(Failure::usage("--model: the rows bring labelled responses; nothing is left to generate"))
            }
            (ExampleForm::References, false) if !self.with_candidates => Err(Failure::usage(
                "the rows bring no `responses`: give --model MODEL, whose answers are labelled by the references",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_first_good_row_decides_the_form() {
        let fields = |value: &Value| value.as_object().cloned().unwrap();
        let labelled = json!({ "instruction": "i", "response": "r", "label": 0.5 });
        let references = json!({ "instruction": "i", "references": ["r"] });
        let candidates = json!({ "instruction": "i", "references": ["r"], "responses": ["a", ""] });
        for (rows, form, bad) in [
            (vec![&labelled, &references], ExampleForm::Labelled, 1),
            (vec![&references, &candidates], ExampleForm::References, 0),
            (vec![&references, &labelled], ExampleForm::References, 1),
            (vec![&json!({}), &json!({ "instruction": "i" }), &labelled], ExampleForm::Labelled, 2),
            (vec![&json!({ "instruction": "i", "references": [] })], ExampleForm::Unspecified, 1),
        ] {
            let mut examples = Examples::default();
            let wrong = rows.iter().filter(|row| examples.check(&fields(row)).is_err()).count();
            assert_eq!((examples.form(), wrong), (form, bad), "{rows:?}");
        }
        let of = |row: &Value, generated| {
            let mut examples = Examples { generated, ..Examples::default() };
            examples.check(&fields(row)).unwrap();
            examples.settle().is_ok()
        };
        assert_eq!([of(&labelled, false), of(&labelled, true)], [true, false]);
        assert_eq!([of(&references, false), of(&references, true)], [false, true]);
        assert!(of(&candidates, false) && of(&candidates, true));
    }
}
