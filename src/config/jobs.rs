use super::setting::{Check, Checks, settings};

settings! {
    /// What one job may ask.
    pub struct Jobs in "jobs" {
        /// Retries of a failed job whose submitter does not say how many.
        max_retries_default: u32 = "3",
        /// The most retries a submitter may ask for.
        max_retries_limit: u32 = "100",
    }
}

impl Check for Jobs {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("jobs.max_retries_limit", self.max_retries_limit, 0..=10_000);
        checks.require(
            self.max_retries_default <= self.max_retries_limit,
            "jobs.max_retries_default",
            "is larger than jobs.max_retries_limit",
            "make it at most as large",
        );
    }
}
