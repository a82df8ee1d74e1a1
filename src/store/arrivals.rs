//! Has an event reached its consumer?

use std::sync::Arc;

use super::LegState;
use crate::domain::{Broker, Id, Timestamp};

/// One consumer, and events to look at.
#[derive(Clone, Copy, Debug)]
pub struct ArrivalQuery<'q> {
    pub consumer: &'q str,
    /// What it reads from.
    pub broker: Broker,
    /// The event types it handles.
    pub types: &'q [&'static str],
    pub events: Look<'q>,
}

/// Which events to look at.
#[derive(Clone, Copy, Debug)]
pub enum Look<'q> {
    /// By their ids, so by age: at most `limit`, the oldest first.
    Between { after: Id, before: Id, limit: u32 },
    /// Those that are still there.
    These(&'q [Id]),
}

/// An event that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub event_id: Id,
    /// `None`: the consumer has it (handled, waiting or dead), or is owed nothing.
    pub missing: Option<Missing>,
}

/// What became of the message of an event that a consumer has nothing of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub event_type: Arc<str>,
    /// Of the leg, since `at`.
    pub state: LegState,
    pub at: Timestamp,
    pub partition: Option<i32>,
}

/// Of what a consumer has handled of late: the last of one type and partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handled {
    pub event_type: Arc<str>,
    pub partition: Option<i32>,
    /// When its message was confirmed.
    pub at: Timestamp,
}

/// Inbox rows that [`Store::last_handled`](super::Store::last_handled) looks at.
pub(super) const HANDLED_OF_LATE: i64 = 1_000;
