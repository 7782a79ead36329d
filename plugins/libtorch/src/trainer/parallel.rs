//! Training on several ranks: each computes a share of every micro-batch's rows, gradients are summed.

use std::sync::Arc;

use cappy_plugin_abi::random::key_of;
use cappy_plugin_abi::{Control, Failure, Group, GroupKind, LoadRequest, TrainerOptions, Unattended};
use tch::Tensor;

use super::variables::{Variables, settings};
use crate::engine::Result;
use crate::group::{Gradients, Ranks, Seat};

/// The other ranks.
pub struct Parallel {
    ranks: Arc<Ranks>,
    gradients: Gradients,
    /// Whether gradients are on their way.
    armed: bool,
    /// Whether all ranks have the state of rank 0.
    shared: bool,
}

impl Parallel {
    /// Refuses a group that shares something else than rows.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check(group: Option<&Group>) -> std::result::Result<(), Failure> {
        match group {
            Some(group) if group.kind != GroupKind::Data => Err(Failure::unsupported(
                "a trainer's ranks share the rows of a micro-batch (data parallel), not weights; ask for data parallel ranks",
            )),
            _ => Ok(()),
        }
    }

    /// Finds the others, who must train the same model with the same options.
    ///
    /// # Errors
    /// `InvalidArgument` naming two ranks that differ; `PeerLost` naming ranks that do not come.
    pub fn join(
        seat: Seat,
        request: &LoadRequest,
        options: &TrainerOptions,
        variables: &Variables,
    ) -> std::result::Result<Self, Failure> {
        let ranks = seat.join(variables.device())?;
        ranks.agree("the model's config.json", &format!("{:016x}", key_of(&request.config_json)))?;
        ranks.agree("the options", &settings(options))?;
        let gradients = Gradients::new(&ranks, &variables.leaves())?;
        Ok(Self { ranks, gradients, armed: false, shared: false })
    }

    /// This rank's place, and the number of ranks.
    pub fn place(&self) -> (usize, usize) {
        (self.ranks.rank(), self.ranks.world())
    }

    /// From now on nobody relies on having rank 0's state.
    pub fn unshare(&mut self) {
        self.shared = false;
    }

    /// Makes sure that all ranks have the state of rank 0; the number of updates.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost`.
    pub fn share(&mut self, variables: &mut Variables, updates: u64, control: &dyn Control) -> Result<u64> {
        if self.shared {
            return Ok(updates);
        }
        let updates = variables.share(&self.ranks, updates, control)?;
        self.shared = true;
        Ok(updates)
    }

    /// The sum over the ranks of a number of each.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost`.
    pub fn total(&self, of: f64, control: &dyn Control) -> Result<f64> {
        let sum = Tensor::from_slice(&[of]);
        self.ranks.all_reduce(&sum, control)?;
        Ok(sum.double_value(&[0]))
    }

    /// Gradients of the backward pass that comes leave as they arrive.
    pub fn arm(&mut self) {
        self.gradients.arm();
        self.armed = true;
    }

    /// For whoever wants to accumulate more although gradients are on their way: the sums stay with rank 0 alone.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost`.
    pub fn settle(&mut self, variables: &mut Variables, control: &dyn Control) -> Result<()> {
        if self.armed {
            self.gradients.sum(control)?;
            self.armed = false;
            if self.ranks.rank() > 0 {
                variables.forget();
            }
        }
        Ok(())
    }

    /// Every rank gets the sum of all gradients.
    ///
    /// # Errors
    /// `PeerLost`.
    pub fn sum(&mut self) -> Result<()> {
        self.armed = false;
        self.gradients.sum(&Unattended)?;
        Ok(())
    }
}
