use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// How long history is kept. What still has open legs or parked keys stays.
    pub struct Retention in "retention" {
        /// Age at which ended jobs and their events are deleted.
        keep: Duration = "90d",
        /// The same for the audit trail, where that is kept for another time than retention.keep.
        audit: Option<Duration> = "",
        /// The same for the figures of each minute that the charts show.
        aggregates: Option<Duration> = "",
        /// How often old rows are looked for.
        interval: Duration = "10m",
    }
}

impl Check for Retention {
    fn check(&self, checks: &mut Checks<'_>) {
        let hour = Duration::from_secs(3600);
        let ages = [
            ("retention.keep", Some(self.keep)),
            ("retention.audit", self.audit),
            ("retention.aggregates", self.aggregates),
        ];
        for (key, age) in ages {
            if let Some(age) = age {
                checks.within(key, age, hour..=hour * 24 * 3652);
            }
        }
        checks.within("retention.interval", self.interval, Duration::from_secs(1)..=hour * 24);
    }
}
