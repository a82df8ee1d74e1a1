//! Who answers for what: owners, leases, duties.
//!
//! An owner is one life of an instance, as the store numbers it: what it commits, its lanes
//! publish. Owners whose lease has ended are adopted by the living. A store that serves one
//! process alone has one owner, 0, whose lease never ends.

use std::time::Duration;

use super::Store;

/// This start of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Which start of the instance it is, from 1.
    pub epoch: i64,
    /// Its owner; 0 in a store that serves one process alone.
    pub owner: i32,
}

/// What the renewal of a lease has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease goes on.
    Held {
        /// Dead owners whose open legs are this one's from now on.
        adopted: u32,
    },
    /// Another owner has taken over, or what became of a COMMIT is not known: enroll again.
    Lost,
    /// A later start of the same instance has: one of the two should not run.
    Replaced,
}

/// Work that one instance at a time does for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    pub name: &'static str,
    /// Another may take it over when it was not asked for this long.
    pub lease: Duration,
}

/// A store that takes longer to say who has a duty is in no state for it.
const ANSWER: Duration = Duration::from_secs(10);

impl Duty {
    /// Is it this instance that does it now? Not where the store does not say.
    pub async fn is_ours(self, store: &dyn Store) -> bool {
        let why = match tokio::time::timeout(ANSWER, store.take_duty(self)).await {
            Ok(Ok(ours)) => return ours,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", humantime::format_duration(ANSWER)),
        };
        tracing::warn!(duty = self.name, why, "who does this for all cannot be found out; next try in a while");
        false
    }
}
