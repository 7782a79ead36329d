//! What this process computes with: its backends, its device, the models in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cappy_plugin_abi::{
    Backend, DATA_PARALLEL, Descriptor, Generator, LoadRequest, ModelOptions, Scorer, TENSOR_PARALLEL,
    Trainer, TrainerOptions,
};
use cappy_plugin_host::{Registry, Want};
use cappy_proto::v1;

use crate::{
    checkpoint::CheckpointStore,
    compute::Budgets,
    endpoint::Endpoints,
    execution::{Attempt, ExecutionError, RowIndex},
    group::{Gang, GroupPlace, Introduction, Seat, Slice},
    models::{LocalModel, Models, known_fingerprint},
    residency::{Loaded, ModelKey, Residency, Resident, Role},
    tokenization::ModelTokenizer,
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
    /// Where the rows of shards' inputs start.
    pub row_index: RowIndex,
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

    /// This worker's slice of the generator of a task, and its place in the group that holds it. The ranks meet first;
    /// where all of them still hold the slices of an earlier shard, these are used as they are.
    ///
    /// # Errors
    /// When it cannot be found or loaded, or the ranks do not come together.
    pub fn generator_slice(
        &self,
        model: Option<&v1::ModelRef>,
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
        gang: Gang<'_>,
    ) -> Result<(GroupPlace, Arc<Resident<dyn Generator>>), ExecutionError> {
        let model = self.models.by_reference(model.ok_or_else(no_model)?, Role::Generator, attempt)?;
        let dtype = self.dtype_of(choice);
        let wanted = cappy_plugin_host::Role::Generator;
        let (backend, descriptor) =
            self.select_for(Some(TENSOR_PARALLEL), choice.backend, wanted, &model.model_type, dtype)?;
        let find = || self.residency.find_slice(&model.fingerprint, &descriptor.name, dtype);
        attempt.progress.say("meeting the other workers");
        let met = gang.meet.meet(&Introduction {
            model_fingerprint: model.fingerprint.clone(),
            backend: format!("{} {} {dtype}", descriptor.name, descriptor.version),
            checkpoint: None,
            resident: find().map(|(place, _)| place),
        })?;
        let place = GroupPlace { id: met.id, rank: met.seat.rank() };
        if met.resident {
            return match find() {
                Some((held, Loaded::Generator(slice))) if held == place => Ok((place, slice)),
                _ => Err(ExecutionError::infrastructure("peer_lost", "the group was dissolved meanwhile")),
            };
        }
        // What is left of earlier groups is of no use any more.
        self.residency.forget_slices();
        attempt.progress.say("loading a slice of the generator");
        let world = u64::from(met.seat.world().max(1));
        let key = ModelKey {
            fingerprint: model.fingerprint.clone(),
            role: Role::Generator,
            backend: descriptor.name.clone(),
            dtype: dtype.to_owned(),
            group: Some(place.clone()),
        };
        let loaded = self.residency.get_or_load(&key, model.bytes_in(dtype) / world, || {
            let mut request = self.request(&model, dtype);
            let tokenizer = model.tokenizer()?;
            request.options_json = options_json(&ModelOptions { group: Some(met.seat.hand_over()) })?;
            let generator = backend.load_generator(&request)?;
            let info = generator.info();
            check_vocabulary(&tokenizer, info.vocab_size)?;
            let label = self.label(&descriptor, &info.dtype);
            let slice: Box<dyn Generator> = Box::new(Slice(generator));
            let resident = Resident::new(model.fingerprint.clone(), label, info, tokenizer, slice);
            Ok::<_, ExecutionError>(Loaded::Generator(Arc::new(resident)))
        })?;
        match loaded {
            Loaded::Generator(slice) => Ok((place, slice)),
            Loaded::Scorer(_) => Err(ExecutionError::internal("a scorer was loaded as a generator")),
        }
    }

    /// What will train a model in a group, before it is loaded: its name for other ranks, and as [`Self::load_trainer`]
    /// labels it.
    ///
    /// # Errors
    /// When no backend trains it so.
    pub fn group_trainer(
        &self,
        model: &LocalModel,
        choice: Choice<'_>,
    ) -> Result<(String, String), ExecutionError> {
        let wanted = cappy_plugin_host::Role::Trainer;
        let (_, it) =
            self.select_for(Some(DATA_PARALLEL), choice.backend, wanted, &model.model_type, TRAINER_DTYPE)?;
        let name = format!("{} {} {TRAINER_DTYPE}", it.name, it.version);
        Ok((name, self.label(&it, TRAINER_DTYPE)))
    }

    /// Loads a scorer for fine-tuning, in a group where there is a seat in one; not kept in memory afterwards. The
    /// label names the backend.
    ///
    /// # Errors
    /// When no backend trains it, or loading fails.
    pub fn load_trainer(
        &self,
        model: &LocalModel,
        choice: Choice<'_>,
        options: TrainerOptions,
        seat: Option<Seat>,
    ) -> Result<(String, Box<dyn Trainer>), ExecutionError> {
        let wanted = cappy_plugin_host::Role::Trainer;
        let feature = seat.as_ref().map(|_| DATA_PARALLEL);
        let (backend, descriptor) =
            self.select_for(feature, choice.backend, wanted, &model.model_type, TRAINER_DTYPE)?;
        let mut request = self.request(model, TRAINER_DTYPE);
        request.options_json = options_json(&TrainerOptions { group: seat.map(Seat::hand_over), ..options })?;
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
            group: None,
        };
        self.residency.get_or_load(&key, model.weight_bytes, || {
            tracing::info!(model = %model.fingerprint, ?role, backend = %descriptor.name, dtype, "loading");
            let request = self.request(model, dtype);
            let tokenizer = model.tokenizer()?;
            match role {
                Role::Scorer => {
                    let scorer = backend.load_scorer(&request)?;
                    let info = scorer.info();
                    check_vocabulary(&tokenizer, info.vocab_size)?;
                    let label = self.label(&descriptor, &info.dtype);
                    let resident = Resident::new(model.fingerprint.clone(), label, info, tokenizer, scorer);
                    Ok(Loaded::Scorer(Arc::new(resident)))
                }
                Role::Generator => {
                    let generator = backend.load_generator(&request)?;
                    let info = generator.info();
                    check_vocabulary(&tokenizer, info.vocab_size)?;
                    let label = self.label(&descriptor, &info.dtype);
                    let resident =
                        Resident::new(model.fingerprint.clone(), label, info, tokenizer, generator);
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

    /// The number format that a caller wants.
    pub(crate) fn dtype_of<'a>(&'a self, choice: Choice<'a>) -> &'a str {
        match choice.dtype {
            "" | "auto" => &self.dtype,
            dtype => dtype,
        }
    }

    fn label(&self, descriptor: &Descriptor, dtype: &str) -> String {
        format!("{} {} {dtype} {}", descriptor.name, descriptor.version, self.device)
    }

    /// As [`Self::select`], of backends with a feature.
    fn select_for(
        &self,
        feature: Option<&str>,
        wanted: &str,
        role: cappy_plugin_host::Role,
        architecture: &str,
        dtype: &str,
    ) -> Result<(Arc<dyn Backend>, Descriptor), ExecutionError> {
        let Some(feature) = feature else { return self.select(wanted, role, architecture, dtype) };
        let able: Vec<String> = {
            let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            let all = registry.ready().map(|backend| backend.describe());
            all.filter(|it| it.features.iter().any(|found| found == feature)).map(|it| it.name).collect()
        };
        match able.iter().find(|name| wanted.is_empty() || *name == wanted) {
            Some(name) => self.select(name, role, architecture, dtype),
            None => Err(ExecutionError::permanent(
                "unsupported",
                format!("no backend of this worker is {feature}; start it with the libtorch plugin"),
            )),
        }
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

fn options_json(options: &impl serde::Serialize) -> Result<String, ExecutionError> {
    serde_json::to_string(options)
        .map_err(|error| ExecutionError::internal(format!("cannot write the options: {error}")))
}

fn check_vocabulary(tokenizer: &ModelTokenizer, vocab_size: u32) -> Result<(), ExecutionError> {
    let known = tokenizer.id_limit();
    if known <= vocab_size {
        return Ok(());
    }
    Err(ExecutionError::permanent(
        "bad_model",
        format!(
            "tokenizer.json has ids up to {}, the model's embedding ends at {vocab_size}: use the tokenizer that belongs \
             to the model",
            known - 1
        ),
    ))
}

fn no_model() -> ExecutionError {
    ExecutionError::permanent("invalid_argument", "the task names no model")
}
