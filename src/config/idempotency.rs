use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// Answers kept for requests that are sent again with their Idempotency-Key.
    pub struct Idempotency in "idempotency" {
        /// How long an answer is kept.
        keep: Duration = "24h",
    }
}

impl Check for Idempotency {
    fn check(&self, checks: &mut Checks<'_>) {
        let minute = Duration::from_secs(60);
        checks.within("idempotency.keep", self.keep, minute..=minute * 60 * 24 * 90);
    }
}
