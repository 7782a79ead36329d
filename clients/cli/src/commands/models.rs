//! `models ls|pull|convert|verify`: the models on this machine, and those that jobs have trained.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use cappy_hub::{Hub, HubSettings, Progress, ResolvedModel, Role, VerifiedFile};
use cappy_process::exit::Code;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::registered_models;
use crate::{
    arguments::Global,
    failure::{Context as _, Failure, Outcome},
    printer::Printer,
};

/// Arguments of `models`.
#[derive(Debug, Args)]
pub struct Models {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models in the hub's cache, and the scorers that jobs have trained (the default)
    Ls,
    /// Download a model (or bring it up to date), convert its weights, check it; or write a trained scorer (mdl_...)
    /// as a directory that transformers loads
    Pull {
        #[command(flatten)]
        model: Named,
        /// Write the model's files into this folder [default: only into the hub's cache; ./mdl_... for a trained scorer]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Convert a model's pytorch_model.bin or flax_model.msgpack to safetensors
    Convert(Named),
    /// Check a model's files, their headers and shapes, and print its content fingerprint
    Verify(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// A directory, a hub id or a short name; of a classifier with several labels, NAME#LABEL ranks by one
    model: String,
    /// What it is for; needed only for `demo`, which means a different model in each role
    #[arg(long, value_enum)]
    role: Option<RoleName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleName {
    Scorer,
    Generator,
}

impl Models {
    /// Lists, downloads, converts or checks.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let registered = match self.action {
            Some(Action::Pull { model, to }) if registered_models::is_id(&model.model) => {
                return registered_models::pull(&model.model, to, global, printer).await;
            }
            None | Some(Action::Ls) => match registered_models::list(global, printer).await {
                Ok(models) => models,
                Err(failure) => {
                    printer.warning(format!("trained scorers are not listed: {failure}"));
                    Vec::new()
                }
            },
            Some(_) => Vec::new(),
        };
        let mut settings = HubSettings::from_env().map_err(Failure::usage)?;
        if let Some(directory) = &global.data_dir {
            settings.data_dir = directory.clone();
        }
        let hub = Hub::new(settings);
        let printer = *printer;
        // Downloads block.
        tokio::task::spawn_blocking(move || self.act(&hub, registered, &printer))
            .await
            .map_err(Failure::failed)?
    }

    fn act(self, hub: &Hub, registered: Vec<Value>, printer: &Printer) -> Outcome {
        let shown = Shown { printer: *printer, bar: Mutex::new(None) };
        let (model, files) = match self.action {
            None | Some(Action::Ls) => return list(hub, registered, printer),
            Some(Action::Pull { model, to }) => {
                let pulled = hub.pull(&model.model, model.role(), &shown);
                if let (Ok(model), Some(to)) = (&pulled, to) {
                    copy_files(&model.dir, &to).context(format!("cannot write into `{}`", to.display()))?;
                }
                (pulled, Vec::new())
            }
            Some(Action::Convert(named)) => match named.role() {
                Some(role) => (hub.resolve(&named.model, role, &shown), Vec::new()),
                None => (hub.convert(&named.model, &shown), Vec::new()),
            },
            Some(Action::Verify(named)) => match hub.verify(&named.model, named.role(), &shown) {
                Ok((model, files)) => (Ok(model), files),
                Err(error) => (Err(error), Vec::new()),
            },
        };
        shown.clear();
        let model = model.map_err(Failure::failed)?;
        printer.value(&view(&model, &files), || text(&model, &files))?;
        Ok(Code::Done)
    }
}

impl Named {
    fn role(&self) -> Option<Role> {
        self.role.map(|role| match role {
            RoleName::Scorer => Role::Scorer,
            RoleName::Generator => Role::Generator,
        })
    }
}

fn view(model: &ResolvedModel, files: &[VerifiedFile]) -> Value {
    let file = |file: &VerifiedFile| json!({ "name": file.name, "bytes": file.bytes, "sha256": file.sha256 });
    json!({
        "name": model.name,
        "architecture": model.architecture.to_string(),
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "labels": model.labels,
        "ranking_label": model.ranking_label.as_ref().map(|label| &label.name),
        "fingerprint": model.fingerprint,
        "directory": model.dir,
        "files": files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn text(model: &ResolvedModel, files: &[VerifiedFile]) -> String {
    let mut out = format!(
        "{}\n  architecture  {}\n  parameters    {}\n  fingerprint   {}\n  directory     {}\n",
        model.name,
        model.architecture,
        model.parameters,
        model.fingerprint,
        model.dir.display()
    );
    if model.labels.len() > 1 {
        let ranks = match &model.ranking_label {
            Some(label) => format!("ranks by {}", label.name),
            None => "NAME#LABEL says which one ranks".to_owned(),
        };
        let _ = writeln!(out, "  labels        {} ({ranks})", model.labels.join(", "));
    }
    if !files.is_empty() {
        out.push_str("  checked       configuration, tensor headers and shapes, tokenizer, its largest id, and the content of\n");
    }
    for file in files {
        let _ = writeln!(out, "  {}  {} ({} bytes)", file.sha256, file.name, file.bytes);
    }
    out
}

/// The files of a model's directory, with what links there lead to.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn list(hub: &Hub, registered: Vec<Value>, printer: &Printer) -> Outcome {
    let cached = hub.list_cached().into_iter().map(|model| {
        json!({
            "model": model.repo,
            "kind": "cached",
            "bytes": model.bytes,
            "what": model.dir,
            "commit": model.commit,
            "directory": model.dir,
        })
    });
    let trained = registered.into_iter().map(|mut model| {
        model["kind"] = "trained".into();
        model["what"] = model["title"].clone();
        model
    });
    let items: Vec<Value> = trained.chain(cached).collect();
    if items.is_empty() {
        printer.note(format!("no trained scorers, and no models in {}", hub.settings().cache_dir.display()));
    }
    printer.list(&items, &[("MODEL", "model"), ("KIND", "kind"), ("BYTES", "bytes"), ("WHAT", "what")])?;
    Ok(Code::Done)
}

/// Downloads on stderr: a bar a file on a terminal, a line a file elsewhere.
struct Shown {
    printer: Printer,
    bar: Mutex<Option<ProgressBar>>,
}

impl Shown {
    fn clear(&self) {
        if let Some(bar) = self.bar.lock().expect("no holder panics").take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Shown {
    fn started(&self, file: &str, have: u64, total: u64) {
        self.clear();
        if !self.printer.draws() {
            self.printer.note(format!("downloading {file} ({total} bytes, {have} there already)"));
            return;
        }
        let style = ProgressStyle::with_template(
            "{msg}  {bar:24.cyan/blue}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
        );
        let bar = ProgressBar::new(total).with_style(style.expect("the template is valid"));
        bar.set_message(file.to_owned());
        bar.set_position(have);
        *self.bar.lock().expect("no holder panics") = Some(bar);
    }

    fn advanced(&self, _file: &str, done: u64, _total: u64) {
        if let Some(bar) = &*self.bar.lock().expect("no holder panics") {
            bar.set_position(done);
        }
    }

    fn note(&self, text: &str) {
        self.clear();
        self.printer.note(text);
    }
}
