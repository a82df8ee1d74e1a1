//! How many requests one user may make.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::problem::{Kind, Problem};
use crate::config::Http;
use crate::domain::{Principal, Role};

/// Checks between two looks for users whose allowance is whole again.
const SWEEP_EVERY: u32 = 10_000;

/// One allowance a user: `http.rate_limit` requests a second, `http.rate_burst` at once.
/// Operators and workers act for many and have none.
pub struct RateLimits {
    limiter: Option<RateLimiter<Arc<str>, HashMapStateStore<Arc<str>>, DefaultClock>>,
    checks: AtomicU32,
}

impl RateLimits {
    pub fn new(config: &Http) -> Self {
        let quota = NonZeroU32::new(config.rate_limit)
            .zip(NonZeroU32::new(config.rate_burst))
            .map(|(rate, burst)| Quota::per_second(rate).allow_burst(burst));
        Self { limiter: quota.map(RateLimiter::hashmap), checks: AtomicU32::new(0) }
    }

    /// Counts a request of `principal`.
    ///
    /// # Errors
    /// 429 with `Retry-After` when the allowance is used up.
    pub fn check(&self, principal: &Principal) -> Result<(), Problem> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if principal.has(Role::Operator) || principal.has(Role::Worker) {
            return Ok(());
        }
        // Memory holds those who are not fully rested and one more for each check since, not all
        // who ever came.
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            limiter.retain_recent();
        }
        limiter.check_key(&principal.user_id).map_err(|early| {
            let wait = early.wait_time_from(limiter.clock().now());
            let rate = 1.0 / early.quota().replenish_interval().as_secs_f64();
            let detail = format!("a user may make {rate:.0} requests a second; slow down, or send jobs in batches");
            Problem::new(Kind::RateLimited, detail).retry_after(whole_seconds(wait))
        })
    }
}

/// At least one: `Retry-After` knows nothing smaller.
fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::domain::Timestamp;

    fn user(name: &str, role: Role) -> Principal {
        Principal { user_id: name.into(), roles: vec![role], expires_at: Timestamp(i64::MAX) }
    }

    #[test]
    fn those_who_are_rested_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let set = [("http.rate_limit", "1000000"), ("http.rate_burst", "1000000")];
        let limits = RateLimits::new(&Config::defaults_in(dir.path(), &set).unwrap().http);
        for n in 0..3 * SWEEP_EVERY {
            limits.check(&user(&format!("user-{n}"), Role::User)).unwrap();
        }
        let kept = limits.limiter.as_ref().unwrap().len();
        assert!(kept <= 2 * SWEEP_EVERY as usize, "{kept}");
    }

    #[test]
    fn retry_after_is_never_too_early() {
        for (ms, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(ms)), seconds, "{ms} ms");
        }
    }
}
