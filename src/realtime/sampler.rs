//! Which updates ask the client for an ack: every n-th, and never more than so many a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub(super) struct Sampler {
    every: u64,
    per_second: u64,
    offered: AtomicU64,
    /// The second (since `start`) in the upper half, how many were taken in it in the lower.
    taken: AtomicU64,
    start: Instant,
}

impl Sampler {
    pub fn new(every: u64, per_second: u64) -> Self {
        Self {
            every: every.max(1),
            per_second: per_second.min(u64::from(u32::MAX)),
            offered: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Is this one of the sample?
    pub fn take(&self) -> bool {
        if !self.offered.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.every) {
            return false;
        }
        let second = self.start.elapsed().as_secs() << 32;
        let take = |taken: u64| {
            let taken = if taken & !0xffff_ffff == second { taken } else { second };
            (taken & 0xffff_ffff < self.per_second).then_some(taken + 1)
        };
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nth_is_taken() {
        let sampler = Sampler::new(10, 1_000);
        let taken = (0..100).filter(|_| sampler.take()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn no_more_than_so_many_a_second() {
        let sampler = Sampler::new(1, 50);
        let started = Instant::now();
        let taken = (0..10_000).filter(|_| sampler.take()).count() as u64;
        let seconds = started.elapsed().as_secs() + 1;
        assert!(taken >= 50 && taken <= 50 * (seconds + 1), "{taken}");
    }
}
