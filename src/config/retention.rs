use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// How long history is kept. What still has open legs or parked keys stays.
    pub struct Retention in "retention" {
        /// Age at which ended jobs and their events are deleted.
        keep: Duration = "90d",
        /// How often old rows are looked for.
        interval: Duration = "10m",
    }
}

impl Check for Retention {
    fn check(&self, checks: &mut Checks<'_>) {
        let hour = Duration::from_secs(3600);
        checks.within("retention.keep", self.keep, hour..=hour * 24 * 3652);
        checks.within("retention.interval", self.interval, Duration::from_secs(1)..=hour * 24);
    }
}
