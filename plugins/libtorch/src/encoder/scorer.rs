//! The [`Scorer`] that the host gets, whatever the network behind it.

use std::path::Path;

use cappy_plugin_abi::{Control, Failure, LoadRequest, ModelInfo, RaggedTokens, Scorer};
use cappy_plugin_models::encoder::check;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind};

use super::architecture::{Architecture, Network};
use super::batch::{Batch, by_length};
use super::parts::Stored;
use super::pass::Pass;
use crate::engine::Result;
use crate::weights::numbers;

/// Tokens that go through the network together on the CPU: enough that reading the weights costs nothing.
const CPU_TOKENS: usize = 2048;
/// Likewise on a GPU.
const GPU_TOKENS: usize = 32_768;

/// A loaded classifier.
pub struct EncoderScorer {
    network: Box<dyn Network>,
    info: ModelInfo,
    segments: usize,
    device: Device,
    kind: Kind,
}

/// Loads the classifier of a model directory.
///
/// # Errors
/// `Unsupported` and `BadModel`, naming the field or tensor.
pub fn load(
    request: &LoadRequest,
    device: Device,
    kind: Kind,
) -> std::result::Result<Box<dyn Scorer>, Failure> {
    let architecture = Architecture::parse(&request.config_json)?;
    let checkpoint = Checkpoint::open(Path::new(&request.model_dir))?;
    let identity = architecture.identity;
    // One that was fine-tuned from a bare encoder keeps that encoder's configuration.
    if !identity.classifier && !checkpoint.contains(identity.family.head()) {
        return Err(Failure::unsupported(
            "`config.json` names a model without a classification head; fine-tune it first",
        ));
    }
    let _guard = tch::no_grad_guard();
    let mut stored = Stored::new(architecture.slots(), &checkpoint, device, kind);
    let network = architecture.network(&mut stored)?;
    let info = architecture.info(stored.bytes, kind);
    Ok(Box::new(EncoderScorer { network, info, segments: architecture.segments, device, kind }))
}

/// Raw logits of a checked batch, `(rows, labels)`, in its order. To be called without a graph.
///
/// # Errors
/// `Cancelled`, `OutOfMemory`; `NotFinite` naming the row.
pub fn logits(
    network: &dyn Network,
    labels: usize,
    all: RaggedTokens<'_>,
    (device, kind): (Device, Kind),
    control: &dyn Control,
) -> Result<Vec<f32>> {
    let mut logits = vec![0.0; all.rows() * labels];
    let budget = if device == Device::Cpu { CPU_TOKENS } else { GPU_TOKENS };
    let mut done = 0;
    for rows in by_length(all, (0..all.rows()).collect(), budget) {
        let batch = Batch::new(all, &rows, device, kind)?;
        let of_batch = network.forward(&Pass::scoring(&batch, control))?;
        for (&row, values) in rows.iter().zip(numbers(&of_batch)?.chunks_exact(labels)) {
            logits[row * labels..][..labels].copy_from_slice(values);
        }
        done += rows.len() as u64;
        control.progress(done, all.rows() as u64);
    }
    if let Some(i) = logits.iter().position(|score| !score.is_finite()) {
        return Err(Failure::not_finite(format!(
            "the score of row {} is {}; check the weights",
            i / labels,
            logits[i]
        ))
        .into());
    }
    Ok(logits)
}

impl Scorer for EncoderScorer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        check(&self.info, self.segments, batch)?;
        let _guard = tch::no_grad_guard();
        let labels = self.info.labels as usize;
        Ok(logits(self.network.as_ref(), labels, batch, (self.device, self.kind), control)?)
    }
}
