//! The host's side: safe objects around what a plugin handed over.
//!
//! Arguments are checked before they cross and results when they come back, so that no backend sees a malformed
//! batch and no caller a NaN.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use super::control::lend;
use super::tables::{
    BackendObject, BackendTable, GenerateRecord, GeneratorObject, GeneratorTable, ScorerObject, ScorerTable,
    TrainerObject, TrainerTable,
};
use super::values::{DecodingRecord, Given, Lent, LoadRecord, RaggedRecord, Reply};
use crate::checks;
use crate::{
    Backend, Control, Decoding, Descriptor, EncodingId, Failure, Generated, Generator, LoadRequest,
    ModelInfo, RaggedTokens, Scorer, Trainer,
};

/// A table that knows how to destroy its object.
trait Table: 'static {
    fn release(&self) -> unsafe extern "C" fn(*mut c_void);
}

macro_rules! tables {
    ($($table:ident),*) => { $(
        impl Table for $table {
            fn release(&self) -> unsafe extern "C" fn(*mut c_void) {
                self.release
            }
        }
    )* };
}
tables!(BackendTable, ScorerTable, GeneratorTable, TrainerTable);

/// An object of the other side, destroyed by the other side.
struct Handle<T: Table> {
    this: *mut c_void,
    table: &'static T,
}

impl<T: Table> Handle<T> {
    /// # Safety
    /// The two belong together, are handed over here, and the table is never unmapped.
    unsafe fn new(this: *mut c_void, table: *const T) -> Self {
        // SAFETY: as the caller promises.
        Self { this, table: unsafe { &*table } }
    }
}

impl<T: Table> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: the object's own function, once, at the end.
        unsafe { (self.table.release())(self.this) }
    }
}

// SAFETY: `Backend`, `Scorer`, `Generator` and `Trainer`, which the handles stand for, are `Send`.
unsafe impl<T: Table> Send for Handle<T> {}
// SAFETY: `Backend` is `Sync`; its functions take a shared object.
unsafe impl Sync for Handle<BackendTable> {}

fn parse<T: serde::de::DeserializeOwned>(reply: Reply<Given<u8>>, what: &str) -> Result<T, Failure> {
    let text = Result::from(reply)?;
    serde_json::from_slice(text.as_slice())
        .map_err(|error| Failure::internal(format!("the backend's {what} cannot be read: {error}")))
}

/// A backend across the border.
struct RemoteBackend {
    handle: Handle<BackendTable>,
    /// The last description that succeeded.
    described: Descriptor,
}

/// Takes over what a factory returned, and asks it to describe itself.
///
/// # Errors
/// The factory's failure, or the description's.
///
/// # Safety
/// `reply` came from the factory of a library with this ABI fingerprint that stays mapped until exit.
pub(super) unsafe fn adopt(reply: Reply<BackendObject>) -> Result<Arc<dyn Backend>, Failure> {
    let BackendObject { this, table } = Result::from(reply)?;
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::new(this, table) };
    let described = describe(&handle)?;
    Ok(Arc::new(RemoteBackend { handle, described }))
}

fn describe(handle: &Handle<BackendTable>) -> Result<Descriptor, Failure> {
    // SAFETY: the object goes with its table.
    parse(unsafe { (handle.table.describe)(handle.this) }, "descriptor")
}

impl Backend for RemoteBackend {
    fn describe(&self) -> Descriptor {
        describe(&self.handle).unwrap_or_else(|_| self.described.clone())
    }

    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        // SAFETY: the object goes with its table; the request is lent for the call. What comes back belongs together.
        let handle = unsafe {
            let reply = (self.handle.table.load_scorer)(self.handle.this, LoadRecord::new(request));
            let ScorerObject { this, table } = Result::from(reply)?;
            Handle::new(this, table)
        };
        // SAFETY: the object goes with its table.
        let info = labelled(parse(unsafe { (handle.table.info)(handle.this) }, "model info")?)?;
        Ok(Box::new(RemoteScorer { handle, info }))
    }

    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        // SAFETY: as in `load_scorer`.
        let handle = unsafe {
            let reply = (self.handle.table.load_generator)(self.handle.this, LoadRecord::new(request));
            let GeneratorObject { this, table } = Result::from(reply)?;
            Handle::new(this, table)
        };
        // SAFETY: the object goes with its table.
        let info = parse(unsafe { (handle.table.info)(handle.this) }, "model info")?;
        Ok(Box::new(RemoteGenerator { handle, info, rows: HashMap::new() }))
    }

    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        // SAFETY: as in `load_scorer`.
        let handle = unsafe {
            let reply = (self.handle.table.load_trainer)(self.handle.this, LoadRecord::new(request));
            let TrainerObject { this, table } = Result::from(reply)?;
            Handle::new(this, table)
        };
        // SAFETY: the object goes with its table.
        let info = labelled(parse(unsafe { (handle.table.info)(handle.this) }, "model info")?)?;
        Ok(Box::new(RemoteTrainer { handle, info }))
    }
}

fn labelled(info: ModelInfo) -> Result<ModelInfo, Failure> {
    if info.labels == 0 {
        Err(Failure::internal("the backend loaded a scorer without labels"))
    } else {
        Ok(info)
    }
}

struct RemoteScorer {
    handle: Handle<ScorerTable>,
    info: ModelInfo,
}

impl Scorer for RemoteScorer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        checked_scores(batch, &self.info, || {
            // SAFETY: the object goes with its table; `&mut self`: no other call runs; all is lent for the call.
            lend(control, |control| unsafe {
                (self.handle.table.score)(self.handle.this, RaggedRecord::new(batch), control)
            })
        })
    }
}

/// No rows have no scores: nothing crosses.
fn checked_scores(
    batch: RaggedTokens<'_>,
    info: &ModelInfo,
    call: impl FnOnce() -> Reply<Given<f32>>,
) -> Result<Vec<f32>, Failure> {
    checks::batch(batch, info)?;
    if batch.rows() == 0 {
        return Ok(Vec::new());
    }
    let scores = Result::from(call())?;
    checks::matrix(scores.as_slice(), batch.rows(), info.labels as usize, "scores")?;
    Ok(scores.as_slice().to_vec())
}

struct RemoteGenerator {
    handle: Handle<GeneratorTable>,
    info: ModelInfo,
    /// Rows of each live encoding.
    rows: HashMap<EncodingId, usize>,
}

impl RemoteGenerator {
    fn rows_of(&self, encoding: EncodingId) -> Result<usize, Failure> {
        let unknown = || Failure::invalid_argument(format!("unknown encoding {}", encoding.0));
        self.rows.get(&encoding).copied().ok_or_else(unknown)
    }
}

impl Generator for RemoteGenerator {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        checks::filled_batch(sources, &self.info)?;
        // SAFETY: the object goes with its table; `&mut self`: no other call runs; all is lent for the call.
        let reply = lend(control, |control| unsafe {
            (self.handle.table.encode)(self.handle.this, RaggedRecord::new(sources), control)
        });
        let encoding = EncodingId(Result::from(reply)?);
        if self.rows.insert(encoding, sources.rows()).is_some() {
            return Err(Failure::internal(format!("the backend used encoding {} twice", encoding.0)));
        }
        Ok(encoding)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        let rows = self.rows_of(encoding)?;
        if row_keys.len() != rows {
            let message = format!("{} row keys for an encoding of {rows} rows", row_keys.len());
            return Err(Failure::invalid_argument(message));
        }
        checks::decodings(decodings)?;
        let records: Vec<DecodingRecord> = decodings.iter().map(|&decoding| decoding.into()).collect();
        let arguments = GenerateRecord {
            encoding: encoding.0,
            decodings: Lent::new(&records),
            seed,
            row_keys: Lent::new(row_keys),
        };
        // SAFETY: as in `encode`.
        let reply = lend(control, |control| unsafe {
            (self.handle.table.generate)(self.handle.this, arguments, control)
        });
        let record = Result::from(reply)?;
        let generated = Generated {
            tokens: record.tokens.as_slice().to_vec(),
            offsets: record.offsets.as_slice().to_vec(),
            log_probs: record.log_probs.as_slice().to_vec(),
        };
        checks::generated(&generated, rows, decodings, self.info.vocab_size)?;
        Ok(generated)
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        let encoded = self.rows_of(encoding)?;
        // The length limit is the encoder's; targets have none.
        targets.check(self.info.vocab_size)?;
        if rows.len() != targets.rows() {
            let message = format!("{} row numbers for {} targets", rows.len(), targets.rows());
            return Err(Failure::invalid_argument(message));
        }
        if let Some(row) = rows.iter().find(|&&row| row as usize >= encoded) {
            let message = format!("a target belongs to row {row}, the encoding has {encoded}");
            return Err(Failure::invalid_argument(message));
        }
        if targets.rows() == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: as in `encode`.
        let reply = lend(control, |control| unsafe {
            let (this, targets) = (self.handle.this, RaggedRecord::new(targets));
            (self.handle.table.log_likelihood)(this, encoding.0, targets, Lent::new(rows), control)
        });
        let values = Result::from(reply)?;
        checks::log_likelihoods(values.as_slice(), targets)?;
        Ok(values.as_slice().to_vec())
    }

    fn forget(&mut self, encoding: EncodingId) {
        if self.rows.remove(&encoding).is_some() {
            // SAFETY: the object goes with its table; `&mut self`: no other call runs.
            // A failure is a panic inside, which all further calls report.
            drop(unsafe { (self.handle.table.forget)(self.handle.this, encoding.0) });
        }
    }
}

struct RemoteTrainer {
    handle: Handle<TrainerTable>,
    info: ModelInfo,
}

impl RemoteTrainer {
    fn with_dir(
        &mut self,
        dir: &str,
        function: unsafe extern "C" fn(*mut c_void, Lent<u8>) -> Reply<u8>,
    ) -> Result<(), Failure> {
        // SAFETY: `function` is of this object's table; `&mut self`: no other call runs; `dir` is lent for the call.
        Result::from(unsafe { function(self.handle.this, Lent::new(dir.as_bytes())) }).map(|_| ())
    }
}

impl Trainer for RemoteTrainer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure> {
        checks::filled_batch(batch, &self.info)?;
        checks::labels(labels, batch.rows())?;
        // SAFETY: the object goes with its table; `&mut self`: no other call runs; all is lent for the call.
        let reply = lend(control, |control| unsafe {
            let (this, batch) = (self.handle.this, RaggedRecord::new(batch));
            (self.handle.table.accumulate)(this, batch, Lent::new(labels), step, control)
        });
        let loss = Result::from(reply)?;
        if loss.is_finite() { Ok(loss) } else { Err(Failure::not_finite(format!("the loss is {loss}"))) }
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure> {
        if !(learning_rate.is_finite() && learning_rate >= 0.0) {
            return Err(Failure::invalid_argument(format!("the learning rate is {learning_rate}")));
        }
        // SAFETY: the object goes with its table; `&mut self`: no other call runs.
        let norm = Result::from(unsafe { (self.handle.table.update)(self.handle.this, learning_rate) })?;
        if norm.is_finite() {
            Ok(norm)
        } else {
            Err(Failure::not_finite(format!("the gradient's norm is {norm}")))
        }
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        checked_scores(batch, &self.info, || {
            // SAFETY: as in `accumulate`.
            lend(control, |control| unsafe {
                (self.handle.table.score)(self.handle.this, RaggedRecord::new(batch), control)
            })
        })
    }

    fn save_model(&mut self, dir: &str) -> Result<(), Failure> {
        self.with_dir(dir, self.handle.table.save_model)
    }

    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.with_dir(dir, self.handle.table.save_checkpoint)
    }

    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.with_dir(dir, self.handle.table.load_checkpoint)
    }
}
