//! What this process computes with: its backends, its device, the models in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cappy_plugin_abi::{Backend, Descriptor, Generator, LoadRequest, Scorer, Trainer, TrainerOptions};
use cappy_plugin_host::{Registry, Want};
use cappy_proto::v1;

use crate::{
    checkpoint::CheckpointStore,
    compute::Budgets,
    endpoint::Endpoints,
    execution::{Attempt, ExecutionError},
    models::{LocalModel, Models, known_fingerprint},
    residency::{Loaded, ModelKey, Residency, Resident, Role},
};

/// Trainers compute in this, whatever a job says for scoring and generating.
const TRAINER_DTYPE: &str = "f32";

/// How long a name is taken to mean the model that it meant before.
const NAME_TTL: Duration = Duration::from_secs(30);

/// Which backend and number format a caller wants.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Empty: any that can.
    pub backend: &'a str,
    /// Empty or `auto`: the worker's.
    pub dtype: &'a str,
}

/// Everything that a computation needs.
pub struct Engine {
    /// Backends, linked in or opened, in order of preference.
    pub registry: Mutex<Registry>,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Where a caller says `auto`.
    pub dtype: String,
    /// Finds models.
    pub models: Models,
    /// Holds them.
    pub residency: Residency,
    /// Of training runs.
    pub checkpoints: CheckpointStore,
    /// Sizes of batches.
    pub budgets: Budgets,
    /// Generators elsewhere.
    pub endpoints: Endpoints,
    /// What names meant lately: checking a model's files at each online call would cost more than the call.
    pub names: RecentNames,
}

/// What names meant lately.
#[derive(Default)]
pub struct RecentNames(Mutex<HashMap<(String, Role), Remembered>>);

struct Remembered {
    since: Instant,
    model: Arc<LocalModel>,
}

impl RecentNames {
    fn get_or<E>(
        &self,
        name: &str,
        role: Role,
        find: impl FnOnce() -> Result<LocalModel, E>,
    ) -> Result<Arc<LocalModel>, E> {
        let names = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), role);
        let recent = {
            let mut names = names();
            names.retain(|_, name| name.since.elapsed() < NAME_TTL);
            names.get(&key).map(|name| Arc::clone(&name.model))
        };
        if let Some(model) = recent {
            return Ok(model);
        }
        let model = Arc::new(find()?);
        names().insert(key, Remembered { since: Instant::now(), model: Arc::clone(&model) });
        Ok(model)
    }
}

impl Engine {
    /// The scorer of a task, in memory.
    ///
    /// # Errors
    /// When it cannot be found or loaded.
    pub fn scorer(
        &self,
        model: Option<&v1::ModelRef>,
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
    ) -> Result<Arc<Resident<dyn Scorer>>, ExecutionError> {
        match self.by_reference(model, Role::Scorer, choice, attempt)? {
            Loaded::Scorer(scorer) => Ok(scorer),
            Loaded::Generator(_) => Err(ExecutionError::internal("a generator was loaded as a scorer")),
        }
    }

    /// The generator of a task, in memory.
    ///
    /// # Errors
    /// When it cannot be found or loaded.
    pub fn generator(
        &self,
        model: Option<&v1::ModelRef>,
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
    ) -> Result<Arc<Resident<dyn Generator>>, ExecutionError> {
        match self.by_reference(model, Role::Generator, choice, attempt)? {
            Loaded::Generator(generator) => Ok(generator),
            Loaded::Scorer(_) => Err(ExecutionError::internal("a scorer was loaded as a generator")),
        }
    }

    /// A model by its name alone, in memory.
    ///
    /// # Errors
    /// When it cannot be found or loaded.
    pub fn by_name(&self, name: &str, role: Role, choice: Choice<'_>) -> Result<Loaded, ExecutionError> {
        let model = self.names.get_or(name, role, || self.models.by_name(name, role))?;
        self.load(&model, role, choice)
    }

    /// The files of the scorer that a task fine-tunes.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn locate_scorer(
        &self,
        model: Option<&v1::ModelRef>,
        attempt: &Attempt<'_>,
    ) -> Result<LocalModel, ExecutionError> {
        self.models.by_reference(model.ok_or_else(no_model)?, Role::Scorer, attempt)
    }

    /// Loads a scorer for fine-tuning; not kept in memory afterwards. The label names the backend.
    ///
    /// # Errors
    /// When no backend trains it, or loading fails.
    pub fn load_trainer(
        &self,
        model: &LocalModel,
        choice: Choice<'_>,
        options: &TrainerOptions,
    ) -> Result<(String, Box<dyn Trainer>), ExecutionError> {
        let wanted = cappy_plugin_host::Role::Trainer;
        let (backend, descriptor) = self.select(choice.backend, wanted, &model.model_type, TRAINER_DTYPE)?;
        let mut request = self.request(model, TRAINER_DTYPE);
        request.options_json = serde_json::to_string(options)
            .map_err(|error| ExecutionError::internal(format!("cannot write the options: {error}")))?;
        let trainer = backend.load_trainer(&request)?;
        Ok((self.label(&descriptor, &trainer.info().dtype), trainer))
    }

    fn by_reference(
        &self,
        model: Option<&v1::ModelRef>,
        role: Role,
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
    ) -> Result<Loaded, ExecutionError> {
        let model = model.ok_or_else(no_model)?;
        if let Some(fingerprint) = known_fingerprint(model)
            && let Some(loaded) =
                self.residency.find(&fingerprint, role, choice.backend, self.dtype_of(choice))
        {
            return Ok(loaded);
        }
        let located = self.models.by_reference(model, role, attempt)?;
        self.load(&located, role, choice)
    }

    fn load(&self, model: &LocalModel, role: Role, choice: Choice<'_>) -> Result<Loaded, ExecutionError> {
        let wanted = match role {
            Role::Scorer => cappy_plugin_host::Role::Scorer,
            Role::Generator => cappy_plugin_host::Role::Generator,
        };
        let dtype = self.dtype_of(choice);
        let (backend, descriptor) = self.select(choice.backend, wanted, &model.model_type, dtype)?;
        let key = ModelKey {
            fingerprint: model.fingerprint.clone(),
            role,
            backend: descriptor.name.clone(),
            dtype: dtype.to_owned(),
        };
        self.residency.get_or_load(&key, model.weight_bytes, || {
            tracing::info!(model = %model.fingerprint, ?role, backend = %descriptor.name, dtype, "loading");
            let request = self.request(model, dtype);
            let tokenizer = model.tokenizer()?;
            let known = tokenizer.id_limit();
            let checked = |vocab_size: u32| {
                if known <= vocab_size {
                    return Ok(());
                }
                Err(ExecutionError::permanent(
                    "bad_model",
                    format!("tokenizer.json has ids up to {}, the model's embedding ends at {vocab_size}: use the tokenizer that belongs to the model", known - 1),
                ))
            };
            match role {
                Role::Scorer => {
                    let scorer = backend.load_scorer(&request)?;
                    let info = scorer.info();
                    checked(info.vocab_size)?;
                    let label = self.label(&descriptor, &info.dtype);
                    let resident = Resident::new(model.fingerprint.clone(), label, info, tokenizer, scorer);
                    Ok(Loaded::Scorer(Arc::new(resident)))
                }
                Role::Generator => {
                    let generator = backend.load_generator(&request)?;
                    let info = generator.info();
                    checked(info.vocab_size)?;
                    let label = self.label(&descriptor, &info.dtype);
                    let resident = Resident::new(model.fingerprint.clone(), label, info, tokenizer, generator);
                    Ok(Loaded::Generator(Arc::new(resident)))
                }
            }
        })
    }

    fn request(&self, model: &LocalModel, dtype: &str) -> LoadRequest {
        LoadRequest {
            model_dir: model.dir.to_string_lossy().into_owned(),
            config_json: model.config_json.clone(),
            device: self.device.clone(),
            dtype: dtype.to_owned(),
            options_json: "{}".to_owned(),
        }
    }

    fn dtype_of<'a>(&'a self, choice: Choice<'a>) -> &'a str {
        match choice.dtype {
            "" | "auto" => &self.dtype,
            dtype => dtype,
        }
    }

    fn label(&self, descriptor: &Descriptor, dtype: &str) -> String {
        format!("{} {} {dtype} {}", descriptor.name, descriptor.version, self.device)
    }

    fn select(
        &self,
        wanted: &str,
        role: cappy_plugin_host::Role,
        architecture: &str,
        dtype: &str,
    ) -> Result<(Arc<dyn Backend>, Descriptor), ExecutionError> {
        let want = Want {
            name: Some(wanted).filter(|name| !name.is_empty()),
            architecture: Some(architecture),
            dtype: Some(dtype),
            device: Some(&self.device),
            ..Want::new(role)
        };
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = registry
            .choose(&want)
            .map_err(|error| ExecutionError::permanent("unsupported", error.to_string()))?;
        let descriptor = backend.describe();
        Ok((backend, descriptor))
    }
}

fn no_model() -> ExecutionError {
    ExecutionError::permanent("invalid_argument", "the task names no model")
}
