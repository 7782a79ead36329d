//! The leases that this worker holds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cappy_proto::v1;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::execution::Progress;

/// Why a lease ended before its shard did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// It knows already.
    Coordinator,
    /// It was out of reach too long and has given the shard to somebody else.
    Expired,
    /// It should hear at once that the shard is free.
    Stopping,
}

/// A lease that this worker holds.
#[derive(Clone)]
pub struct Held {
    /// What was leased.
    pub lease: Arc<v1::Lease>,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Ends its waiting; its computing ends by `progress`.
    pub cancelled: CancellationToken,
    reason: Arc<Mutex<Option<CancelReason>>>,
    expires: Arc<Mutex<Option<Instant>>>,
}

impl Held {
    /// Why it was cancelled, if it was.
    pub fn reason(&self) -> Option<CancelReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, reason: CancelReason) {
        // The first reason stays: a lease that expired is not given back when the worker stops.
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.progress.cancel();
        self.cancelled.cancel();
    }
}

/// All leases, by id.
#[derive(Default)]
pub struct Leases {
    held: Mutex<HashMap<String, Held>>,
}

impl Leases {
    /// A lease that was just granted; `None` when it is held already.
    pub fn add(&self, lease: v1::Lease) -> Option<Held> {
        let mut table = self.table();
        if table.contains_key(&lease.lease_id) {
            return None;
        }
        let held = Held {
            lease: Arc::new(lease),
            progress: Arc::default(),
            cancelled: CancellationToken::new(),
            reason: Arc::default(),
            expires: Arc::default(),
        };
        table.insert(held.lease.lease_id.clone(), held.clone());
        Some(held)
    }

    /// The shard is done with, one way or another.
    pub fn remove(&self, lease_id: &str) {
        self.table().remove(lease_id);
    }

    /// Number held.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// None is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a heartbeat lists them.
    pub fn report(&self) -> Vec<v1::LeaseProgress> {
        let mut all: Vec<v1::LeaseProgress> = self
            .table()
            .values()
            .map(|held| {
                let (units_done, units_total, activity) = held.progress.get();
                v1::LeaseProgress { lease_id: held.lease.lease_id.clone(), units_done, units_total, activity }
            })
            .collect();
        all.sort_by(|a, b| a.lease_id.cmp(&b.lease_id));
        all
    }

    /// Ends one lease.
    pub fn cancel(&self, lease_id: &str, reason: CancelReason) {
        if let Some(held) = self.table().get(lease_id) {
            held.cancel(reason);
        }
    }

    /// Ends all of them.
    pub fn cancel_all(&self, reason: CancelReason) {
        self.table().values().for_each(|held| held.cancel(reason));
    }

    /// The coordinator is out of reach: what is held now ends at `expires`, unless contact comes back.
    pub fn lost_contact(&self, expires: Instant) {
        for held in self.table().values() {
            held.expires.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(expires);
        }
    }

    /// The coordinator hears us again.
    pub fn regained_contact(&self) {
        for held in self.table().values() {
            *held.expires.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Ends what is past its time.
    pub fn cancel_expired(&self, now: Instant) {
        for held in self.table().values() {
            let expires = *held.expires.lock().unwrap_or_else(PoisonError::into_inner);
            if expires.is_some_and(|expires| expires <= now) && !held.progress_cancelled() {
                tracing::warn!(
                    shard = held.lease.shard_id,
                    "the lease ran out while the coordinator was out of reach"
                );
                held.cancel(CancelReason::Expired);
            }
        }
    }

    /// Until the next lease ends.
    pub fn until_expiry(&self, now: Instant) -> Option<Duration> {
        self.table()
            .values()
            .filter(|held| !held.progress_cancelled())
            .filter_map(|held| *held.expires.lock().unwrap_or_else(PoisonError::into_inner))
            .map(|expires| expires.saturating_duration_since(now))
            .min()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn progress_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str) -> v1::Lease {
        v1::Lease { lease_id: id.to_owned(), ..v1::Lease::default() }
    }

    #[tokio::test]
    async fn leases_end_when_contact_stays_lost() {
        let leases = Leases::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let a = leases.add(lease("a")).unwrap();
        assert!(leases.add(lease("a")).is_none());
        leases.lost_contact(now + 10 * second);
        leases.cancel_expired(now + 9 * second);
        assert_eq!(a.reason(), None);
        leases.regained_contact();
        leases.cancel_expired(now + 11 * second);
        assert_eq!(a.reason(), None, "contact came back in time");

        leases.lost_contact(now + 20 * second);
        leases.lost_contact(now + 90 * second);
        assert_eq!(leases.until_expiry(now), Some(20 * second), "a second loss extends nothing");
        leases.cancel_expired(now + 20 * second);
        leases.cancel_all(CancelReason::Stopping);
        assert_eq!(a.reason(), Some(CancelReason::Expired));
        assert_eq!(leases.until_expiry(now), None);
    }
}
