use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// What happens at TERM.
    pub struct Shutdown in "shutdown" {
        /// Everything is drained and ended within this time.
        limit: Duration = "20s",
    }
}

impl Check for Shutdown {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("shutdown.limit", self.limit, Duration::from_secs(1)..=Duration::from_secs(600));
    }
}
