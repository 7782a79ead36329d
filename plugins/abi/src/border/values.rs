//! Data that crosses: slices lent for a call, buffers given away, requests, results.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::slice;

use super::layout::{Crossing, crossing, named};
use crate::random::fold;
use crate::{Code, Decoding, Failure, LoadRequest, Method, MinLengthRule, RaggedTokens};

crossing! {
    /// A slice lent for the length of one call.
    pub struct Lent<T> {
        /// First item; dangling when `length` is 0.
        pub data: *const T,
        /// Items.
        pub length: usize,
    }
}

impl<T> Clone for Lent<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lent<T> {}

impl<T> Lent<T> {
    /// Lends a slice; the caller keeps it alive until the call returns.
    pub fn new(items: &[T]) -> Self {
        Self { data: items.as_ptr(), length: items.len() }
    }

    /// The slice.
    ///
    /// # Safety
    /// The slice that was lent is alive and not written to for `'a`.
    pub unsafe fn get<'a>(self) -> &'a [T] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: made by `new` from a slice that, as the caller promises, lives for `'a`.
        unsafe { slice::from_raw_parts(self.data, self.length) }
    }
}

impl Lent<u8> {
    /// The text.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not UTF-8.
    ///
    /// # Safety
    /// As [`Self::get`].
    pub unsafe fn text(self, what: &str) -> Result<String, Failure> {
        // SAFETY: the caller's promise is `get`'s.
        let bytes = unsafe { self.get() };
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| Failure::invalid_argument(format!("{what} is not UTF-8")))
    }
}

crossing! {
    /// A buffer given away. Whoever drops it hands it back to the allocator of the side that made it.
    pub struct Given<T> {
        /// First item.
        pub data: *mut T,
        /// Items.
        pub length: usize,
        /// Items that there is room for.
        pub capacity: usize,
        /// Frees the buffer; code of the side that made it.
        pub release: unsafe extern "C" fn(*mut T, usize, usize),
    }
}

unsafe extern "C" fn release<T>(data: *mut T, length: usize, capacity: usize) {
    // SAFETY: the three parts are those of the `Vec` that `Given::from` took apart, in this same library.
    drop(unsafe { Vec::from_raw_parts(data, length, capacity) });
}

/// `Copy`: plain numbers, so dropping them cannot panic.
impl<T: Copy> From<Vec<T>> for Given<T> {
    fn from(items: Vec<T>) -> Self {
        let mut items = ManuallyDrop::new(items);
        Self {
            data: items.as_mut_ptr(),
            length: items.len(),
            capacity: items.capacity(),
            release: release::<T>,
        }
    }
}

impl From<String> for Given<u8> {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl<T> Given<T> {
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `data` and `length` are those of the maker's `Vec`, which lives until `release`.
        unsafe { slice::from_raw_parts(self.data, self.length) }
    }
}

impl<T> Drop for Given<T> {
    fn drop(&mut self) {
        // SAFETY: the maker's own function on the maker's own parts, once.
        unsafe { (self.release)(self.data, self.length, self.capacity) }
    }
}

crossing! {
    /// A [`Failure`].
    pub struct FailureRecord {
        /// A [`Code`].
        pub code: u32,
        /// UTF-8.
        pub message: Given<u8>,
    }
}

impl From<Failure> for FailureRecord {
    fn from(failure: Failure) -> Self {
        let Failure { code, message } = failure;
        Self { code: code as u32, message: message.into() }
    }
}

impl From<FailureRecord> for Failure {
    fn from(record: FailureRecord) -> Self {
        let message = String::from_utf8_lossy(record.message.as_slice()).into_owned();
        let codes = [
            Code::InvalidArgument,
            Code::OutOfMemory,
            Code::Unsupported,
            Code::Cancelled,
            Code::BadModel,
            Code::FailedPrecondition,
            Code::Internal,
            Code::NotFinite,
            Code::PeerLost,
        ];
        match codes.into_iter().find(|&code| code as u32 == record.code) {
            Some(code) => Failure { code, message },
            None => Failure::internal(format!("unknown failure code {}: {message}", record.code)),
        }
    }
}

/// The result of a call.
#[repr(C, u32)]
pub enum Reply<T> {
    /// What was asked for.
    Done(T) = 0,
    /// Why not.
    Failed(FailureRecord) = 1,
}

// SAFETY: `repr(C, u32)`: a C struct of tag and union; both payloads cross.
unsafe impl<T: Crossing> Crossing for Reply<T> {
    const LAYOUT: u64 = fold(fold(named::<Self>("Reply"), T::LAYOUT), FailureRecord::LAYOUT);
}

impl<T> From<Result<T, Failure>> for Reply<T> {
    fn from(result: Result<T, Failure>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(failure) => Self::Failed(failure.into()),
        }
    }
}

impl<T> From<Reply<T>> for Result<T, Failure> {
    fn from(reply: Reply<T>) -> Self {
        match reply {
            Reply::Done(value) => Ok(value),
            Reply::Failed(record) => Err(record.into()),
        }
    }
}

crossing! {
    /// A [`LoadRequest`].
    #[derive(Clone, Copy)]
    pub struct LoadRecord {
        /// UTF-8.
        pub model_dir: Lent<u8>,
        /// UTF-8.
        pub config_json: Lent<u8>,
        /// UTF-8.
        pub device: Lent<u8>,
        /// UTF-8.
        pub dtype: Lent<u8>,
        /// UTF-8.
        pub options_json: Lent<u8>,
    }
}

impl LoadRecord {
    /// Lends a request for one call.
    pub fn new(request: &LoadRequest) -> Self {
        let LoadRequest { model_dir, config_json, device, dtype, options_json } = request;
        let lend = |text: &String| Lent::new(text.as_bytes());
        Self {
            model_dir: lend(model_dir),
            config_json: lend(config_json),
            device: lend(device),
            dtype: lend(dtype),
            options_json: lend(options_json),
        }
    }

    /// A copy of the request.
    ///
    /// # Errors
    /// `InvalidArgument` when a text is not UTF-8.
    ///
    /// # Safety
    /// The request that was lent is alive.
    pub unsafe fn get(self) -> Result<LoadRequest, Failure> {
        // SAFETY: the caller's promise, for each of the five texts.
        unsafe {
            Ok(LoadRequest {
                model_dir: self.model_dir.text("the model directory")?,
                config_json: self.config_json.text("config.json")?,
                device: self.device.text("the device")?,
                dtype: self.dtype.text("the dtype")?,
                options_json: self.options_json.text("the options")?,
            })
        }
    }
}

crossing! {
    /// [`RaggedTokens`].
    #[derive(Clone, Copy)]
    pub struct RaggedRecord {
        /// See [`RaggedTokens::tokens`].
        pub tokens: Lent<u32>,
        /// See [`RaggedTokens::offsets`].
        pub offsets: Lent<u32>,
        /// See [`RaggedTokens::type_ids`].
        pub type_ids: Lent<u8>,
    }
}

impl RaggedRecord {
    /// Lends a batch for one call.
    pub fn new(batch: RaggedTokens<'_>) -> Self {
        let RaggedTokens { tokens, offsets, type_ids } = batch;
        Self { tokens: Lent::new(tokens), offsets: Lent::new(offsets), type_ids: Lent::new(type_ids) }
    }

    /// The batch.
    ///
    /// # Safety
    /// The batch that was lent is alive for `'a`.
    pub unsafe fn get<'a>(self) -> RaggedTokens<'a> {
        // SAFETY: the caller's promise, for each of the three slices.
        unsafe {
            RaggedTokens {
                tokens: self.tokens.get(),
                offsets: self.offsets.get(),
                type_ids: self.type_ids.get(),
            }
        }
    }
}

const BEAM: u32 = 0;
const SAMPLE: u32 = 1;
const PYTORCH: u32 = 0;
const FLAX: u32 = 1;

crossing! {
    /// A [`Decoding`]; fields of the method that is not chosen are 0.
    #[derive(Clone, Copy)]
    pub struct DecodingRecord {
        /// See [`Decoding::key`].
        pub key: u64,
        /// 0 beam, 1 sample.
        pub method: u32,
        /// See [`Decoding::num_samples`].
        pub num_samples: u32,
        /// See [`Decoding::min_length`].
        pub min_length: u32,
        /// See [`Decoding::max_length`].
        pub max_length: u32,
        /// 0 pytorch, 1 flax.
        pub min_length_rule: u32,
        /// Beam.
        pub num_beams: u32,
        /// Beam.
        pub length_penalty: f64,
        /// Beam: 0 or 1.
        pub early_stopping: u32,
        /// Sample.
        pub top_k: u32,
        /// Sample.
        pub temperature: f64,
        /// Sample.
        pub top_p: f64,
    }
}

impl From<Decoding> for DecodingRecord {
    fn from(decoding: Decoding) -> Self {
        let Decoding { key, method, num_samples, min_length, max_length, min_length_rule } = decoding;
        let min_length_rule = match min_length_rule {
            MinLengthRule::Pytorch => PYTORCH,
            MinLengthRule::Flax => FLAX,
        };
        let plain = Self {
            key,
            method: BEAM,
            num_samples,
            min_length,
            max_length,
            min_length_rule,
            num_beams: 0,
            length_penalty: 0.0,
            early_stopping: 0,
            top_k: 0,
            temperature: 0.0,
            top_p: 0.0,
        };
        match method {
            Method::Beam { num_beams, length_penalty, early_stopping } => {
                Self { num_beams, length_penalty, early_stopping: u32::from(early_stopping), ..plain }
            }
            Method::Sample { temperature, top_k, top_p } => {
                Self { method: SAMPLE, temperature, top_k, top_p, ..plain }
            }
        }
    }
}

impl TryFrom<DecodingRecord> for Decoding {
    type Error = Failure;

    fn try_from(record: DecodingRecord) -> Result<Self, Failure> {
        let unknown = |what: &str, value: u32| Failure::invalid_argument(format!("unknown {what} {value}"));
        Ok(Self {
            key: record.key,
            method: match record.method {
                BEAM => Method::Beam {
                    num_beams: record.num_beams,
                    length_penalty: record.length_penalty,
                    early_stopping: record.early_stopping != 0,
                },
                SAMPLE => Method::Sample {
                    temperature: record.temperature,
                    top_k: record.top_k,
                    top_p: record.top_p,
                },
                other => return Err(unknown("decoding method", other)),
            },
            num_samples: record.num_samples,
            min_length: record.min_length,
            max_length: record.max_length,
            min_length_rule: match record.min_length_rule {
                PYTORCH => MinLengthRule::Pytorch,
                FLAX => MinLengthRule::Flax,
                other => return Err(unknown("minimum length rule", other)),
            },
        })
    }
}

crossing! {
    /// [`crate::Generated`].
    pub struct GeneratedRecord {
        /// See [`crate::Generated::tokens`].
        pub tokens: Given<u32>,
        /// See [`crate::Generated::offsets`].
        pub offsets: Given<u32>,
        /// See [`crate::Generated::log_probs`].
        pub log_probs: Given<f32>,
    }
}

crossing! {
    /// A [`crate::Control`] lent for one call: the host's functions on the host's context.
    #[derive(Clone, Copy)]
    pub struct ControlRecord {
        /// Passed back to the two functions.
        pub context: *const c_void,
        /// 1: end with `Cancelled`.
        pub cancelled: unsafe extern "C" fn(*const c_void) -> u8,
        /// Done, total.
        pub progress: unsafe extern "C" fn(*const c_void, u64, u64),
    }
}
