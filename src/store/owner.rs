//! Who answers for what: owners, leases, duties.
//!
//! An owner is one life of an instance, as the store numbers it: what it commits, its lanes
//! publish. Owners whose lease has ended are adopted by the living. A store that serves one
//! process alone has one owner, 0, whose lease never ends.

use std::time::Duration;

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
