//! Deleting with age: what may go, and in which steps.
//!
//! A step looks at a bounded number of rows and deletes those that nothing needs any
//! more, so that no COMMIT waits long behind it. Rows with an open leg or in the backlog
//! stay, and so does everything that belongs to them.

use std::sync::Arc;

use super::StoreError;
use crate::domain::{Id, Timestamp};

/// One kind of rows that grow old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prunable {
    /// Jobs that have ended, with their aggregates. Their events are left to `Events`.
    Jobs,
    /// Events, with their legs. Those of a job stay as long as the job.
    Events,
    /// What the consumers have handled, once the event itself is gone.
    Inbox,
    /// The audit trail, oldest first: what is left stays one piece.
    Audit,
    /// Rows of this read model, whose keys are RFC 3339 times.
    TimedModel(&'static str),
    /// Answers kept for repeated requests.
    Idempotency,
}

impl Prunable {
    /// The name in metrics, logs and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Events => "events",
            Self::Inbox => "inbox",
            Self::Audit => "audit",
            Self::TimedModel(_) => "aggregates",
            Self::Idempotency => "idempotency",
        }
    }
}

/// How far a scan has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Id(Id),
    Position(i64),
    /// In one consumer's inbox.
    Inbox(Arc<str>, Id),
}

/// One bounded step.
#[derive(Clone, Debug)]
pub struct PruneStep {
    pub what: Prunable,
    /// Only what is older.
    pub before: Timestamp,
    /// Where the step before ended.
    pub after: Option<Place>,
    /// Rows to look at, at most.
    pub limit: u32,
    /// Count instead of deleting. Rows that wait for others of the same plan to go count
    /// as well, so the figure is what will go at most.
    pub dry_run: bool,
}

impl PruneStep {
    /// The first step over `what`.
    pub fn first(what: Prunable, before: Timestamp, limit: u32) -> Self {
        Self { what, before, after: None, limit, dry_run: false }
    }

    /// Where a scan that found `rows` goes on: behind the last, unless it was the end.
    pub(super) fn behind<R>(
        &self,
        rows: &[R],
        place: impl Fn(&R) -> Result<Place, StoreError>,
    ) -> Result<Option<Place>, StoreError> {
        if rows.len() < self.limit as usize { Ok(None) } else { rows.last().map(place).transpose() }
    }

    /// After `rows` were deleted from the old end: the next step starts there again.
    pub(super) fn after_deleting(&self, rows: u64) -> Pruned {
        Pruned { rows, next: (rows == u64::from(self.limit)).then_some(Place::Position(0)) }
    }

    /// The position or number behind which this step looks.
    pub(super) fn position(&self) -> i64 {
        match self.after {
            Some(Place::Position(position)) => position,
            _ => 0,
        }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Rows deleted (or that would be): jobs, events, ...; not what hangs on them.
    pub rows: u64,
    /// Where the next step goes on; `None` when there is nothing more to look at.
    pub next: Option<Place>,
}

impl Pruned {
    /// Nothing was done and nothing is left.
    pub const NOTHING: Self = Self { rows: 0, next: None };
}

impl Timestamp {
    /// The smallest UUIDv7 made at this time or later: ids below it are older.
    pub fn first_id(self) -> Id {
        let ms = u64::try_from(self.0).unwrap_or(0).min((1 << 48) - 1);
        Id(uuid::Uuid::from_u128(u128::from(ms) << 80))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lies_between_the_bounds_of_its_time() {
        let before = Timestamp::now();
        let id = Id::new();
        assert!(before.first_id() <= id);
        assert!(id < Timestamp::now().plus_ms(1).first_id());
    }
}
