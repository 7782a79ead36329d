//! What the plain paths are made of: a model's tensors by transformers' names, in candle's operations.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{CustomOp3, D, DType, Result, Tensor};
use candle_nn::ops;
use cappy_plugin_abi::{Control, Failure, RaggedTokens};

use super::groups::groups;
use super::slots::Slots;
use crate::place::Place;
use crate::weights::Checkpoint;

/// Tokens after which scores are read, and the end of a call is noticed: reading waits for the device.
const READ_TOKENS: usize = 1 << 16;

/// A model's tensors.
pub(super) struct Tensors {
    named: HashMap<String, Tensor>,
    pub place: Place,
    /// A linear layer of the encoder as one kernel.
    biased: Option<Arc<Box<dyn CustomOp3 + Send + Sync>>>,
    /// Whether gradients are wanted. candle's kernels for whole normalisations and softmaxes have none, and drop them
    /// silently.
    differentiable: bool,
}

pub(super) fn engine(error: candle_core::Error) -> Failure {
    let text = error.to_string();
    let found = text.to_lowercase();
    if ["out of memory", "out_of_memory", "alloc_failed"].iter().any(|sign| found.contains(sign)) {
        return Failure::out_of_memory("the device's memory did not suffice; use a smaller batch");
    }
    Failure::internal(format!("candle: {}", text.lines().next().unwrap_or_default()))
}

impl Tensors {
    /// Loads all slots onto a device: the encoder's, whose names begin with `base`, in the place's numbers, the head's in
    /// f32, so that scores of similar rows do not fall together.
    pub fn load(
        slots: &Slots,
        base: &str,
        checkpoint: &Checkpoint,
        place: Place,
    ) -> std::result::Result<Self, Failure> {
        let mut named = HashMap::new();
        for slot in slots.list() {
            let values = slots.read(checkpoint, &slot.range)?;
            let encoder = slot.name.strip_prefix(base).is_some_and(|rest| rest.starts_with('.'));
            let dtype = if encoder { place.dtype } else { DType::F32 };
            let tensor = Tensor::from_vec(values, slot.shape.as_slice(), &place.device)
                .and_then(|tensor| tensor.to_dtype(dtype))
                .map_err(engine)?;
            named.insert(slot.name.clone(), tensor);
        }
        let biased = place.biased().map_err(engine)?;
        let mut loaded = Self { named, place, biased, differentiable: false };
        loaded.add_zero_biases().map_err(engine)?;
        Ok(loaded)
    }

    /// Tensors of the caller, to differentiate by, in f32.
    pub fn differentiable(named: HashMap<String, Tensor>, place: Place) -> Self {
        Self { named, place, biased: None, differentiable: true }
    }

    /// The kernel for normalisations wants a bias; weights of one dimension belong to nothing else.
    fn add_zero_biases(&mut self) -> Result<()> {
        let norms = self.named.iter().filter(|(_, tensor)| tensor.rank() == 1);
        let biases = norms
            .filter_map(|(name, weight)| Some((format!("{}.bias", name.strip_suffix(".weight")?), weight)))
            .filter(|(bias, _)| !self.named.contains_key(bias));
        let zeros: Vec<_> =
            biases.map(|(bias, weight)| Ok((bias, weight.zeros_like()?))).collect::<Result<_>>()?;
        self.named.extend(zeros);
        Ok(())
    }

    /// Whether this plugin's own kernels for GPUs take the encoder's states.
    #[cfg(feature = "cuda")]
    pub fn own_kernels(&self) -> bool {
        self.place.device.is_cuda() && !self.differentiable
    }

    /// Whether whole operations without a backward pass may be used.
    pub fn whole_operations(&self) -> bool {
        !self.differentiable
    }

    pub fn at(&self, name: &str) -> Result<&Tensor> {
        self.named.get(name).ok_or_else(|| candle_core::Error::Msg(format!("no tensor `{name}`")))
    }

    /// Bytes of weights on the device.
    pub fn bytes(&self) -> usize {
        self.named.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    /// Rows `index` of an embedding, as `shape`.
    pub fn look_up(&self, name: &str, index: Vec<u32>, shape: (usize, usize, usize)) -> Result<Tensor> {
        let index = Tensor::from_vec(index, shape.0 * shape.1, &self.place.device)?;
        self.at(name)?.index_select(&index, 0)?.reshape(shape)
    }

    /// `x`: `(.., in)`; the result has the layer's numbers.
    pub fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.at(&format!("{name}.weight"))?;
        let (mut shape, width) = (x.dims().to_vec(), weight.dim(0)?);
        let x = x.to_dtype(weight.dtype())?.reshape(((), weight.dim(1)?))?;
        // What begins within other memory may lie at an address that the kernel does not take.
        let biased = self.biased.as_ref().filter(|_| weight.dtype() == self.place.dtype);
        let biased = biased.filter(|_| x.is_contiguous() && x.layout().start_offset() == 0);
        let flat = match (self.named.get(&format!("{name}.bias")), biased) {
            (Some(bias), Some(product)) => x.apply_op3_arc(weight, bias, product.clone())?,
            (Some(bias), None) => x.matmul(&weight.t()?)?.broadcast_add(bias)?,
            (None, _) => x.matmul(&weight.t()?)?,
        };
        *shape.last_mut().expect("x has a last dimension") = width;
        flat.reshape(shape)
    }

    pub fn layer_norm(&self, x: &Tensor, name: &str, eps: f32) -> Result<Tensor> {
        let weight = self.at(&format!("{name}.weight"))?;
        let bias = self.at(&format!("{name}.bias"))?;
        if !self.differentiable {
            return ops::layer_norm(&x.contiguous()?, weight, bias, eps);
        }
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
        x.broadcast_mul(weight)?.broadcast_add(bias)
    }

    /// Raw logits, `(rows, labels)`, from those of groups of rows: `forward(rows)`, `(rows.len(), labels)` in f32.
    pub fn score_by_groups(
        batch: RaggedTokens<'_>,
        (labels, heads): (usize, usize),
        control: &dyn Control,
        forward: impl Fn(&[usize]) -> Result<Tensor>,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let lengths: Vec<usize> = (0..batch.rows()).map(|row| batch.row(row).len()).collect();
        let groups = groups(&lengths, heads);
        let mut logits = vec![0.0; batch.rows() * labels];
        let (mut unread, mut tokens, mut done) = (Vec::new(), 0, 0);
        for (i, rows) in groups.iter().enumerate() {
            if control.cancelled() {
                return Err(Failure::cancelled("scoring was cancelled"));
            }
            unread.push(forward(rows).map_err(engine)?);
            tokens += rows.len() * lengths[rows[0]];
            if tokens < READ_TOKENS && i + 1 < groups.len() {
                continue;
            }
            let scores = Tensor::cat(&unread, 0).and_then(|all| all.flatten_all()?.to_vec1::<f32>());
            let first = i + 1 - unread.len();
            let rows = groups[first..=i].iter().flatten();
            for (&row, scores) in rows.zip(scores.map_err(engine)?.chunks_exact(labels)) {
                logits[row * labels..][..labels].copy_from_slice(scores);
                done += 1;
            }
            control.progress(done, batch.rows() as u64);
            unread.clear();
            tokens = 0;
        }
        Ok(logits)
    }
}
