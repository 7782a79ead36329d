//! Everything that training changes: parameters, their gradients, AdamW's moments.

use std::ffi::c_void;
use std::ops::Range;
use std::path::Path;

use cappy_plugin_abi::{Control, Failure, TrainerOptions};
use cappy_plugin_models::encoder::slots::Slots;
use cappy_plugin_models::trainer::checkpoint::{self, State};
use cappy_plugin_models::trainer::initialise;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind, Tensor};

use super::adamw::Step;
use crate::encoder::architecture::Architecture;
use crate::encoder::parts::Parameters;
use crate::engine::Result;
use crate::group::Ranks;
use crate::weights::filled;

unsafe extern "C" {
    fn cappy_variable_forget(variable: *mut c_void);
}

/// The parameters of a classifier in one flat array each, `(parameters)`, f32, and variables that are parts of it.
pub struct Variables {
    weights: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    /// As networks have asked for them: where each lies, and the leaf of autograd's graphs.
    leaves: Vec<(Range<usize>, Tensor)>,
    device: Device,
}

/// Numbers of a contiguous f32 tensor in this process's memory.
fn memory(of: &mut Tensor) -> &mut [f32] {
    assert!(of.device() == Device::Cpu && of.kind() == Kind::Float && of.is_contiguous());
    // SAFETY: that is what it is; whoever holds a graph over it does not look while it is borrowed here, as trainers
    // are used by one thread and keep no graph from call to call.
    unsafe { std::slice::from_raw_parts_mut(of.data_ptr().cast(), of.numel()) }
}

impl Variables {
    /// Reads the weights. A checkpoint of an encoder without classification head gets one, drawn from the seed.
    ///
    /// # Errors
    /// `BadModel` naming the tensor; `OutOfMemory`.
    pub fn load(
        architecture: &Architecture,
        checkpoint: &Checkpoint,
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let slots = architecture.slots();
        let weights = filled(&[slots.len()], device, Kind::Float, |to| {
            for (i, slot) in slots.list().iter().enumerate() {
                let to = &mut to[slot.range.clone()];
                let drawn = !architecture.identity.classifier && architecture.head.contains(&i);
                if drawn && !checkpoint.contains(&slot.name) {
                    initialise(slot, seed, to);
                } else {
                    slots.read_into(checkpoint, &slot.range, to)?;
                }
            }
            Ok(())
        })?;
        let (moment1, moment2) = (weights.f_zeros_like()?, weights.f_zeros_like()?);
        Ok(Self { weights, moment1, moment2, leaves: Vec::new(), device })
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// All variables, in the order of the forward pass.
    pub fn leaves(&self) -> Vec<Tensor> {
        self.leaves.iter().map(|(_, leaf)| leaf.shallow_clone()).collect()
    }

    /// Where a variable lies that has no gradient.
    pub fn missing(&self) -> Option<Range<usize>> {
        let without = self.leaves.iter().find(|(_, leaf)| !leaf.grad().defined());
        without.map(|(range, _)| range.clone())
    }

    /// Euclidean norm of all gradients, summed in f64.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn norm(&self) -> Result<f64> {
        let norm = |leaf: &Tensor| {
            leaf.f_grad()?.f_reshape([-1])?.f_linalg_norm(2.0, None::<&[i64]>, false, Kind::Double)
        };
        let norms =
            self.leaves.iter().map(|(_, leaf)| norm(leaf)).collect::<std::result::Result<Vec<_>, _>>()?;
        // Read once: on a GPU each reading waits for it.
        Ok(Tensor::f_stack(&norms, 0)?.f_square()?.f_sum(Kind::Double)?.f_sqrt()?.f_double_value(&[])?)
    }

    /// Forgets all gradients.
    pub fn forget(&mut self) {
        for (_, leaf) in &mut self.leaves {
            // SAFETY: a live tensor of tch is an `at::Tensor*`.
            unsafe { cappy_variable_forget(leaf.as_mut_ptr().cast()) }
        }
    }

    /// Applies an update and forgets the gradients. To be called without a graph.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn update(&mut self, step: Step) -> Result<()> {
        for (range, leaf) in &self.leaves {
            let of = |x: &Tensor| x.f_narrow(0, range.start as i64, range.len() as i64);
            let (mut weight, mut gradient) = (of(&self.weights)?, leaf.f_grad()?.f_reshape([-1])?);
            step.apply(&mut weight, &mut gradient, &mut of(&self.moment1)?, &mut of(&self.moment2)?)?;
        }
        self.forget();
        Ok(())
    }

    /// Takes rank 0's weights, and after some updates its moments; its number of updates.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost`.
    pub fn share(
        &mut self,
        ranks: &Ranks,
        updates: u64,
        control: &dyn Control,
    ) -> std::result::Result<u64, Failure> {
        let header = Tensor::from_slice(&[updates as i64]);
        ranks.broadcast(&header, 0, control)?;
        let updates = header.int64_value(&[0]) as u64;
        ranks.broadcast(&self.weights, 0, control)?;
        if updates > 0 {
            ranks.broadcast(&self.moment1, 0, control)?;
            ranks.broadcast(&self.moment2, 0, control)?;
        }
        Ok(updates)
    }

    /// Writes the model as transformers reads it.
    ///
    /// # Errors
    /// `Internal` when it cannot be written.
    pub fn save_model(&mut self, dir: &Path, slots: &Slots) -> Result<()> {
        let mut weights = self.weights.f_to_device(Device::Cpu)?;
        Ok(checkpoint::save_model(dir, slots, memory(&mut weights))?)
    }

    /// Writes what is needed to go on after `updates` updates.
    ///
    /// # Errors
    /// `Internal` when it cannot be written.
    pub fn save(&mut self, dir: &Path, updates: u64) -> Result<()> {
        let [mut weights, mut moment1, mut moment2] = self.on_cpu()?;
        let (weights, moment1, moment2) = (memory(&mut weights), memory(&mut moment1), memory(&mut moment2));
        Ok(State { weights, moment1, moment2 }.save(dir, updates)?)
    }

    /// Reads it; the number of updates. Nothing is changed on failure.
    ///
    /// # Errors
    /// `BadModel`.
    pub fn restore(&mut self, dir: &Path) -> Result<u64> {
        let mut all = self.on_cpu()?;
        let [weights, moment1, moment2] = &mut all;
        let (weights, moment1, moment2) = (memory(weights), memory(moment1), memory(moment2));
        let updates = State { weights, moment1, moment2 }.load(dir)?;
        if self.device != Device::Cpu {
            for (to, from) in [&mut self.weights, &mut self.moment1, &mut self.moment2].into_iter().zip(&all)
            {
                to.f_copy_(from)?;
            }
        }
        Ok(updates)
    }

    /// Weights and moments; on the CPU not copies, but the same memory.
    fn on_cpu(&self) -> Result<[Tensor; 3]> {
        let of = |x: &Tensor| x.f_to_device(Device::Cpu);
        Ok([of(&self.weights)?, of(&self.moment1)?, of(&self.moment2)?])
    }
}

impl Parameters for Variables {
    fn tensor(&mut self, range: &Range<usize>, shape: &[usize]) -> Result<Tensor> {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let part =
            self.weights.f_narrow(0, range.start as i64, range.len() as i64)?.f_view(shape.as_slice())?;
        let leaf = part.f_detach()?.f_set_requires_grad(true)?;
        self.leaves.push((range.clone(), leaf.shallow_clone()));
        Ok(leaf)
    }
}

/// AdamW's settings that all ranks must have alike, as text.
pub fn settings(options: &TrainerOptions) -> String {
    let TrainerOptions { dropout, beta1, beta2, epsilon, weight_decay, seed, micro_batches, group: _ } =
        options;
    format!(
        "dropout {dropout}, betas {beta1} {beta2}, epsilon {epsilon}, weight decay {weight_decay}, seed {seed}, {micro_batches} micro-batches"
    )
}
