use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// Samples of the system's health, as events (`system.health.check`).
    pub struct Health in "health" {
        /// How often one of the instances takes a sample for all. 0s: never.
        interval: Duration = "30s",
    }
}

impl Check for Health {
    fn check(&self, checks: &mut Checks<'_>) {
        let seconds = Duration::from_secs;
        checks.require(
            self.interval.is_zero() || (seconds(1)..=seconds(3600)).contains(&self.interval),
            "health.interval",
            "must be between 1s and 1h, or 0s for no samples",
            "use 1s to 1h, or 0s",
        );
    }
}
