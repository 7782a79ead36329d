//! What one of several ranks holds of a model, and how they put together what each computed.
//!
//! Attention heads and the inner width of the feed-forward network are split, so that each of these two blocks needs
//! one sum over the ranks; the vocabulary is split for the embedding (one more sum) and for the logits, which are
//! gathered: every rank sees the same numbers and so picks the same tokens. Source: Shoeybi et al., arXiv 1909.08053.

use std::ops::Range;
use std::sync::Arc;

use cappy_plugin_abi::random::{fold, key_of};
use cappy_plugin_abi::{Code, Control, Failure, Group, GroupKind};
use cappy_plugin_models::t5::config::Config;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Kind, Tensor};

use crate::engine::Result;
use crate::group::Ranks;
use crate::weights::part;

/// A rank's place, and what reaches the others.
pub struct Shard {
    rank: usize,
    world: usize,
    others: Others,
}

enum Others {
    None,
    Reached(Arc<Ranks>),
    /// This rank failed alone, and the group is over.
    Left,
}

impl Shard {
    /// The whole model.
    pub fn alone() -> Self {
        Self { rank: 0, world: 1, others: Others::None }
    }

    /// One of several, which have found each other.
    pub fn of(ranks: Arc<Ranks>) -> Self {
        Self { rank: ranks.rank(), world: ranks.world(), others: Others::Reached(ranks) }
    }

    /// Leaves the group when this rank failed in a way that the others did not, and would wait for it.
    pub fn settle(&mut self, failure: &Failure) {
        if matches!(failure.code, Code::OutOfMemory | Code::Internal)
            && let Others::Reached(_) = self.others
        {
            self.others = Others::Left;
        }
    }

    /// The others, if there are any.
    fn ranks(&self) -> std::result::Result<Option<&Ranks>, Failure> {
        match &self.others {
            Others::None => Ok(None),
            Others::Reached(ranks) => Ok(Some(ranks)),
            Others::Left => Err(Failure::peer_lost(
                "this rank left its group when a call failed on it alone; load the model again on all ranks",
            )),
        }
    }

    /// Refuses a group that cannot share the heads, or that shares something else.
    ///
    /// # Errors
    /// `InvalidArgument` with both numbers; `Unsupported` for another kind of group.
    pub fn check(config: &Config, group: Option<&Group>) -> std::result::Result<(), Failure> {
        let Some(group) = group else { return Ok(()) };
        if group.kind != GroupKind::Tensor {
            return Err(Failure::unsupported(
                "a generator's ranks share every row (tensor parallel), not rows among them; ask for model shards",
            ));
        }
        let world = group.world as usize;
        if world > 0 && config.num_heads.is_multiple_of(world) {
            return Ok(());
        }
        Err(Failure::invalid_argument(format!(
            "{world} ranks cannot share {} attention heads equally; use a number of shards that divides them",
            config.num_heads
        )))
    }

    /// Makes sure that all ranks hold parts of one model, in one number format.
    ///
    /// # Errors
    /// `InvalidArgument` naming two ranks that differ, or that a rank is lost.
    pub fn agree(
        &self,
        config_json: &str,
        checkpoint: &Checkpoint,
        kind: Kind,
    ) -> std::result::Result<(), Failure> {
        let Some(ranks) = self.ranks()? else { return Ok(()) };
        let fingerprint = fold(checkpoint.fingerprint()?, key_of(config_json));
        ranks.agree("their model", &format!("{fingerprint:016x} in {kind:?}"))
    }

    /// The heads of this rank.
    pub fn heads(&self, config: &Config) -> Range<usize> {
        part(config.num_heads, self.rank, self.world)
    }

    /// This rank's part of the feed-forward network's inner width.
    pub fn inner(&self, config: &Config) -> Range<usize> {
        part(config.d_ff, self.rank, self.world)
    }

    /// Tokens whose embeddings and logits this rank has.
    pub fn tokens(&self, config: &Config) -> Range<usize> {
        part(config.vocab_size, self.rank, self.world)
    }

    /// Sum over the ranks. On a GPU it may still be computed when this returns; whatever the CPU reads of a pass has gone
    /// through [`Shard::gather`], which waits.
    ///
    /// # Errors
    /// `Cancelled`, or that a rank is lost.
    pub fn sum(&self, partial: Tensor, control: &dyn Control) -> Result<Tensor> {
        let Some(ranks) = self.ranks()? else { return Ok(partial) };
        let partial = partial.f_contiguous()?;
        ranks.all_reduce_in_order(&partial, control)?;
        Ok(partial)
    }

    /// `x` of every rank, which all have the same shape.
    ///
    /// # Errors
    /// As [`Shard::sum`].
    pub fn gather(&self, x: Tensor, control: &dyn Control) -> Result<Vec<Tensor>> {
        match self.ranks()? {
            None => Ok(vec![x]),
            Some(ranks) => Ok(ranks.all_gather(&x.f_contiguous()?, control)?),
        }
    }

    /// Logits of all tokens, `(rows, vocab)`, from this rank's `(rows, len)`.
    ///
    /// # Errors
    /// As [`Shard::sum`].
    pub fn join(&self, own: Tensor, config: &Config, control: &dyn Control) -> Result<Tensor> {
        if self.ranks()?.is_none() {
            return Ok(own);
        }
        // Parts differ by one token at most; what is exchanged has one size.
        let widest = config.vocab_size.div_ceil(self.world) as i64;
        let own = own.f_constant_pad_nd([0, widest - own.size()[1]])?;
        let parts = self.gather(own, control)?;
        let parts: Vec<Tensor> = parts
            .iter()
            .enumerate()
            .map(|(rank, x)| x.f_narrow(1, 0, part(config.vocab_size, rank, self.world).len() as i64))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Tensor::f_cat(&parts, 1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Unattended;
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    #[test]
    fn ranks_share_heads_equally_or_not_at_all() {
        let config = Config::parse(r#"{"num_heads": 6}"#).expect("config");
        let check = |kind, world| {
            let group = Group {
                kind,
                rank: 0,
                world,
                rendezvous: "127.0.0.1:1".into(),
                listener: None,
                host: "127.0.0.1".into(),
                timeout_seconds: 1,
            };
            Shard::check(&config, Some(&group))
        };
        Shard::check(&config, None).expect("alone");
        for world in [1, 2, 3, 6] {
            check(GroupKind::Tensor, world).expect("it divides");
        }
        for world in [0, 4, 5, 12] {
            let failure = check(GroupKind::Tensor, world).expect_err("it does not");
            assert_eq!(failure.code, Code::InvalidArgument);
            assert!(failure.message.contains(&format!("{world} ranks")), "{failure}");
            assert!(failure.message.contains("6 attention heads"), "{failure}");
        }
        assert_eq!(check(GroupKind::Data, 2).expect_err("another kind").code, Code::Unsupported);
    }

    #[test]
    fn a_rank_that_failed_alone_has_left() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let group = Group {
            kind: GroupKind::Tensor,
            rank: 0,
            world: 1,
            rendezvous: listener.local_addr().expect("bound").to_string(),
            listener: Some(listener.into_raw_fd()),
            host: "127.0.0.1".into(),
            timeout_seconds: 60,
        };
        let mut shard = Shard::of(Ranks::join(&group, tch::Device::Cpu).expect("nobody else is waited for"));
        let sum =
            |shard: &Shard| shard.sum(Tensor::from_slice(&[1.5_f32]), &Unattended).map_err(Failure::from);
        // What fails on all ranks alike.
        for failure in [Failure::not_finite("x"), Failure::invalid_argument("x")] {
            shard.settle(&failure);
            assert_eq!(sum(&shard).expect("it is there").double_value(&[0]), 1.5);
        }
        shard.settle(&Failure::out_of_memory("x"));
        assert_eq!(sum(&shard).expect_err("it left").code, Code::PeerLost);
    }
}
