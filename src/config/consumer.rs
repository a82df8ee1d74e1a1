use std::time::Duration;

use super::setting::{Check, Checks, settings};

settings! {
    /// The gateway's own consumers of events.
    pub struct Consumer in "consumer" {
        /// How long after a broker confirmed a message its consumer gets the event from the store,
        /// where the message never came but later ones did: somebody deleted a binding or a queue.
        overdue_after: Duration = "5m",
    }
}

impl Check for Consumer {
    fn check(&self, checks: &mut Checks<'_>) {
        let seconds = Duration::from_secs;
        checks.within("consumer.overdue_after", self.overdue_after, seconds(1)..=seconds(24 * 3600));
    }
}
