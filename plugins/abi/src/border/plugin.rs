//! The plugin's side: C functions around a backend's own objects.
//!
//! No panic leaves a function here. A panic inside a model leaves that model in an unknown state, so it refuses all
//! further calls with `FailedPrecondition` until it is loaded anew: half an optimizer step must not be trained on.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::control::Remote;
use super::tables::{
    BackendObject, BackendTable, GenerateRecord, GeneratorObject, GeneratorTable, ScorerObject, ScorerTable,
    TrainerObject, TrainerTable,
};
use super::values::{
    ControlRecord, DecodingRecord, GeneratedRecord, Given, Lent, LoadRecord, RaggedRecord, Reply,
};
use crate::{Backend, Decoding, EncodingId, Failure, Generated, Generator, Scorer, Trainer};

/// A model behind the border.
struct Held<T: ?Sized> {
    model: Box<T>,
    /// The message of the panic that broke it.
    broken: Option<String>,
}

/// Runs `body`; a panic becomes an `Internal` failure with its message.
fn caught<R>(call: &str, body: impl FnOnce() -> Result<R, Failure>) -> Result<R, Panicked<Failure>> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(Panicked::No),
        Err(payload) => {
            let message = message_of(payload.as_ref());
            dispose(payload);
            Err(Panicked::Yes(Failure::internal(format!("the backend panicked in {call}: {message}"))))
        }
    }
}

enum Panicked<T> {
    Yes(T),
    No(T),
}

impl<T> Panicked<T> {
    fn into_inner(self) -> T {
        match self {
            Self::Yes(inner) | Self::No(inner) => inner,
        }
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.map_or_else(|| "(no message)".into(), |text| text.replace('\n', " "))
}

/// Drops what may panic while it is dropped; the panic hook has told, nothing else can be done.
fn dispose<T>(value: T) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(move || drop(value))) else { return };
    // The payload may do the same. Its own payload is let go, lest this go on for ever.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(payload);
    }
}

/// # Safety
/// `this` came from [`hold`] with the same `T`, is not released, and no other call on it is running.
unsafe fn with<T: ?Sized, R>(
    this: *mut c_void,
    call: &str,
    body: impl FnOnce(&mut T) -> Result<R, Failure>,
) -> Reply<R> {
    // SAFETY: as the caller promises.
    let held = unsafe { &mut *this.cast::<Held<T>>() };
    if let Some(message) = &held.broken {
        let message = format!("{message} (earlier; load the model again)");
        return Err(Failure::failed_precondition(message)).into();
    }
    let result = caught(call, || body(&mut held.model));
    if let Err(Panicked::Yes(failure)) = &result {
        held.broken = Some(failure.message.clone());
    }
    result.map_err(Panicked::into_inner).into()
}

fn hold<T: ?Sized>(model: Box<T>) -> *mut c_void {
    Box::into_raw(Box::new(Held { model, broken: None })).cast()
}

unsafe extern "C" fn release<T: ?Sized>(this: *mut c_void) {
    // SAFETY: from `hold` with the same `T`; the holder calls this once and nothing afterwards.
    dispose(unsafe { Box::from_raw(this.cast::<Held<T>>()) });
}

fn json(value: &impl serde::Serialize) -> Result<Given<u8>, Failure> {
    serde_json::to_string(value).map(Given::from).map_err(|error| Failure::internal(error.to_string()))
}

/// Wraps a backend for the other side.
pub(super) fn backend_object(backend: Box<dyn Backend>) -> BackendObject {
    BackendObject { this: hold(backend), table: &BACKEND }
}

/// Body of a plugin's factory.
#[doc(hidden)]
pub fn make<B: Backend + 'static>(new: impl FnOnce() -> B) -> Reply<BackendObject> {
    caught("its factory", || Ok(backend_object(Box::new(new())))).map_err(Panicked::into_inner).into()
}

static BACKEND: BackendTable = BackendTable {
    release: release::<dyn Backend>,
    describe: backend_describe,
    load_scorer: backend_load_scorer,
    load_generator: backend_load_generator,
    load_trainer: backend_load_trainer,
};

/// A backend is shared between threads and loading changes nothing in it, so no panic marks it broken.
///
/// # Safety
/// `this` came from [`backend_object`] and is not released.
unsafe fn with_backend<R>(
    this: *const c_void,
    call: &str,
    body: impl FnOnce(&dyn Backend) -> Result<R, Failure>,
) -> Reply<R> {
    // SAFETY: as the caller promises; only shared references to it are ever made.
    let held = unsafe { &*this.cast::<Held<dyn Backend>>() };
    caught(call, || body(held.model.as_ref())).map_err(Panicked::into_inner).into()
}

// SAFETY of the functions below: the host passes the `this` that came with the table, unreleased and, for models,
// from one thread at a time; what it lends is alive until the function returns.

unsafe extern "C" fn backend_describe(this: *const c_void) -> Reply<Given<u8>> {
    // SAFETY: see above.
    unsafe { with_backend(this, "describe", |backend| json(&backend.describe())) }
}

unsafe extern "C" fn backend_load_scorer(this: *const c_void, request: LoadRecord) -> Reply<ScorerObject> {
    // SAFETY: see above.
    unsafe {
        with_backend(this, "load_scorer", |backend| {
            let model = backend.load_scorer(&request.get()?)?;
            Ok(ScorerObject { this: hold(model), table: &SCORER })
        })
    }
}

unsafe extern "C" fn backend_load_generator(
    this: *const c_void,
    request: LoadRecord,
) -> Reply<GeneratorObject> {
    // SAFETY: see above.
    unsafe {
        with_backend(this, "load_generator", |backend| {
            let model = backend.load_generator(&request.get()?)?;
            Ok(GeneratorObject { this: hold(model), table: &GENERATOR })
        })
    }
}

unsafe extern "C" fn backend_load_trainer(this: *const c_void, request: LoadRecord) -> Reply<TrainerObject> {
    // SAFETY: see above.
    unsafe {
        with_backend(this, "load_trainer", |backend| {
            let model = backend.load_trainer(&request.get()?)?;
            Ok(TrainerObject { this: hold(model), table: &TRAINER })
        })
    }
}

static SCORER: ScorerTable =
    ScorerTable { release: release::<dyn Scorer>, info: scorer_info, score: scorer_score };

unsafe extern "C" fn scorer_info(this: *mut c_void) -> Reply<Given<u8>> {
    // SAFETY: see above.
    unsafe { with::<dyn Scorer, _>(this, "info", |model| json(&model.info())) }
}

unsafe extern "C" fn scorer_score(
    this: *mut c_void,
    batch: RaggedRecord,
    control: ControlRecord,
) -> Reply<Given<f32>> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Scorer, _>(this, "score", |model| {
            model.score(batch.get(), &Remote::new(control)).map(Given::from)
        })
    }
}

static GENERATOR: GeneratorTable = GeneratorTable {
    release: release::<dyn Generator>,
    info: generator_info,
    encode: generator_encode,
    generate: generator_generate,
    log_likelihood: generator_log_likelihood,
    forget: generator_forget,
};

unsafe extern "C" fn generator_info(this: *mut c_void) -> Reply<Given<u8>> {
    // SAFETY: see above.
    unsafe { with::<dyn Generator, _>(this, "info", |model| json(&model.info())) }
}

unsafe extern "C" fn generator_encode(
    this: *mut c_void,
    sources: RaggedRecord,
    control: ControlRecord,
) -> Reply<u64> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Generator, _>(this, "encode", |model| {
            model.encode(sources.get(), &Remote::new(control)).map(|id| id.0)
        })
    }
}

unsafe extern "C" fn generator_generate(
    this: *mut c_void,
    arguments: GenerateRecord,
    control: ControlRecord,
) -> Reply<GeneratedRecord> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Generator, _>(this, "generate", |model| {
            let GenerateRecord { encoding, decodings, seed, row_keys } = arguments;
            let records: &[DecodingRecord] = decodings.get();
            let decodings =
                records.iter().map(|&record| record.try_into()).collect::<Result<Vec<Decoding>, _>>()?;
            let control = Remote::new(control);
            let generated =
                model.generate(EncodingId(encoding), &decodings, seed, row_keys.get(), &control)?;
            let Generated { tokens, offsets, log_probs } = generated;
            Ok(GeneratedRecord {
                tokens: tokens.into(),
                offsets: offsets.into(),
                log_probs: log_probs.into(),
            })
        })
    }
}

unsafe extern "C" fn generator_log_likelihood(
    this: *mut c_void,
    encoding: u64,
    targets: RaggedRecord,
    rows: Lent<u32>,
    control: ControlRecord,
) -> Reply<Given<f32>> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Generator, _>(this, "log_likelihood", |model| {
            let control = Remote::new(control);
            model.log_likelihood(EncodingId(encoding), targets.get(), rows.get(), &control).map(Given::from)
        })
    }
}

unsafe extern "C" fn generator_forget(this: *mut c_void, encoding: u64) -> Reply<u8> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Generator, _>(this, "forget", |model| {
            model.forget(EncodingId(encoding));
            Ok(0)
        })
    }
}

static TRAINER: TrainerTable = TrainerTable {
    release: release::<dyn Trainer>,
    info: trainer_info,
    accumulate: trainer_accumulate,
    update: trainer_update,
    score: trainer_score,
    save_model: trainer_save_model,
    save_checkpoint: trainer_save_checkpoint,
    load_checkpoint: trainer_load_checkpoint,
};

unsafe extern "C" fn trainer_info(this: *mut c_void) -> Reply<Given<u8>> {
    // SAFETY: see above.
    unsafe { with::<dyn Trainer, _>(this, "info", |model| json(&model.info())) }
}

unsafe extern "C" fn trainer_accumulate(
    this: *mut c_void,
    batch: RaggedRecord,
    labels: Lent<f32>,
    step: u64,
    control: ControlRecord,
) -> Reply<f32> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Trainer, _>(this, "accumulate", |model| {
            model.accumulate(batch.get(), labels.get(), step, &Remote::new(control))
        })
    }
}

unsafe extern "C" fn trainer_update(this: *mut c_void, learning_rate: f64) -> Reply<f64> {
    // SAFETY: see above.
    unsafe { with::<dyn Trainer, _>(this, "update", |model| model.update(learning_rate)) }
}

unsafe extern "C" fn trainer_score(
    this: *mut c_void,
    batch: RaggedRecord,
    control: ControlRecord,
) -> Reply<Given<f32>> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Trainer, _>(this, "score", |model| {
            model.score(batch.get(), &Remote::new(control)).map(Given::from)
        })
    }
}

unsafe extern "C" fn trainer_save_model(this: *mut c_void, dir: Lent<u8>) -> Reply<u8> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Trainer, _>(this, "save_model", |model| {
            model.save_model(&dir.text("the directory")?).map(|()| 0)
        })
    }
}

unsafe extern "C" fn trainer_save_checkpoint(this: *mut c_void, dir: Lent<u8>) -> Reply<u8> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Trainer, _>(this, "save_checkpoint", |model| {
            model.save_checkpoint(&dir.text("the directory")?).map(|()| 0)
        })
    }
}

unsafe extern "C" fn trainer_load_checkpoint(this: *mut c_void, dir: Lent<u8>) -> Reply<u8> {
    // SAFETY: see above.
    unsafe {
        with::<dyn Trainer, _>(this, "load_checkpoint", |model| {
            model.load_checkpoint(&dir.text("the directory")?).map(|()| 0)
        })
    }
}
