//! Room for uploads that have begun but are not known to the store yet.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes that uploads under way will take.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved(Arc<AtomicU64>);

/// Room for one upload; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    reserved: Reserved,
    bytes: u64,
}

impl Reserved {
    /// Room for `bytes` beside the `used` ones, if both and what others have reserved fit into `quota`.
    pub(super) fn reserve(&self, bytes: u64, used: u64, quota: Option<u64>) -> Option<Room> {
        let fits = |reserved: u64| {
            let all = used.saturating_add(reserved).saturating_add(bytes);
            quota.is_none_or(|quota| all <= quota).then_some(reserved.saturating_add(bytes))
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(Room { reserved: self.clone(), bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.reserved.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_under_way_count() {
        let reserved = Reserved::default();
        let first = reserved.reserve(60, 0, Some(100)).unwrap();
        assert!(reserved.reserve(41, 0, Some(100)).is_none());
        assert!(reserved.reserve(40, 1, Some(100)).is_none());
        let second = reserved.reserve(40, 0, Some(100)).unwrap();
        drop(first);
        assert!(reserved.reserve(60, 0, Some(100)).is_some());
        drop(second);
        assert!(reserved.reserve(u64::MAX, 7, None).is_some(), "without a quota there is always room");
        assert!(reserved.reserve(100, 0, Some(100)).is_some(), "all room was given back");
    }
}
