//! The store port: the truth everything else carries or shows.
//!
//! [`Store::commit`] is the only write. The rest is reading. Adapters share
//! [`plan`], which decides what a batch of units does to what was found under lock.

mod arrivals;
mod owner;
pub mod plan;
pub mod postgres;
pub mod prune;
mod schema;
mod sql;
pub mod sqlite;
pub mod unit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::job::{Job, JobStatus, RunnerKind, TaccSystem};
use crate::domain::{Broker, Channel, Event, Id, Timestamp};

pub use arrivals::{Arrival, ArrivalQuery, Handled, Look, Missing};
pub use owner::{Duty, Enrolment, Renewal};
pub use prune::{Place, Prunable, PruneStep, Pruned};
pub use schema::Migrations;
pub use unit::*;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written; the same call may succeed later (busy, disk full, away).
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Rolled back for the sake of another transaction; the same call may succeed at once.
    #[error("store busy: {0}")]
    Conflict(String),
    /// Another instance has taken over what this one owned; nothing was written. The same
    /// call may succeed after [`Store::enroll`].
    #[error("the store has another owner now: {0}")]
    LeaseLost(String),
    /// The connection broke around COMMIT: it may or may not have happened.
    #[error("outcome of the commit is unknown: {0}")]
    OutcomeUnknown(String),
    /// This data can never be written; retrying is pointless.
    #[error("data refused by the store: {0}")]
    Data(String),
    /// What is stored does not make sense.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
}

/// A page of a list, newest first.
#[derive(Clone, Copy, Debug)]
pub struct Page<C> {
    /// Continue below this position; `None` starts at the newest.
    pub before: Option<C>,
    pub limit: u32,
}

/// Which jobs a list shows. Empty fields match everything.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    pub user: Option<Arc<str>>,
    pub status: Vec<JobStatus>,
    pub agent: Option<String>,
    pub tacc_system: Option<TaccSystem>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// A part of the name, or a whole id.
    pub text: Option<String>,
}

/// Counts over the jobs a filter matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSummary {
    pub by_status: BTreeMap<JobStatus, u64>,
    /// Sum of run times of completed jobs, and how many that were.
    pub run_ms_total: i64,
    pub run_count: u64,
    pub gpu_hours: f64,
    pub cost_usd: f64,
}

/// Which events a history query shows.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    pub event_type: Option<String>,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub user: Option<Arc<str>>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// A leg as stored.
#[derive(Clone, Debug)]
pub struct LegRow {
    pub position: i64,
    pub broker: Broker,
    pub state: LegState,
    pub attempts: u32,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub at: Timestamp,
    pub next_at: Option<Timestamp>,
    pub error: Option<String>,
    /// For skipped legs.
    pub skip: Option<crate::domain::event::SkipReason>,
}

/// What a consumer has done with an event, as stored (no row: nothing yet).
#[derive(Clone, Debug)]
pub struct EffectRow {
    pub event_id: Id,
    pub consumer: Arc<str>,
    pub state: EffectState,
    pub attempts: u32,
    pub at: Timestamp,
    pub next_at: Option<Timestamp>,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectState {
    Done,
    Retrying,
    Parked,
    Dead,
}

/// An event with everything known about where it went.
#[derive(Clone, Debug)]
pub struct Deliveries {
    pub event: Arc<Event>,
    pub legs: Vec<LegRow>,
    pub effects: Vec<EffectRow>,
}

/// A failed or parked delivery.
#[derive(Clone, Debug)]
pub struct BacklogRow {
    pub consumer: Arc<str>,
    pub key: Arc<str>,
    pub sequence: i64,
    pub event_id: Id,
    pub attempts: u32,
    pub message: StoredMessage,
}

/// One channel's answer to a join or resume, read in one snapshot with the others.
#[derive(Clone, Debug)]
pub struct ChannelState {
    pub channel: Channel,
    /// The last offset handed out in it; 0 when none was.
    pub head: i64,
    pub replay: Replay,
}

#[derive(Clone, Debug)]
pub enum Replay {
    /// Exactly the missed events, in offset order.
    Events(Vec<Arc<Event>>),
    /// Too many were missed (or no cursor was given).
    Snapshot(Snapshot),
}

#[derive(Clone, Debug)]
pub enum Snapshot {
    Job(Option<Box<Job>>),
    User { jobs: Vec<Job>, unread: u64 },
}

/// How much a replay over several channels may carry before it becomes a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct ReplayLimit {
    pub events: usize,
    pub bytes: usize,
}

/// One sample of a running job, averaged over a step.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplePoint {
    pub at: Timestamp,
    pub payload_json: bytes::Bytes,
}

/// Figures for metrics and readiness, cheap to read.
#[derive(Clone, Debug, Default)]
pub struct StoreFigures {
    /// (broker, legs not done, oldest of them).
    pub open_legs: Vec<(Broker, u64, Option<Timestamp>)>,
    /// (consumer, state, rows).
    pub backlog: Vec<(Arc<str>, &'static str, u64)>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Jobs RUNNING.
    pub running: u64,
    /// Jobs QUEUED.
    pub queued: u64,
}

/// The port. Reads see every commit that was answered before they began.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Commits all units in one transaction and says what became of each, in order.
    ///
    /// # Errors
    /// Nothing was written, except for [`StoreError::OutcomeUnknown`].
    async fn commit(&self, units: Arc<Vec<Unit>>) -> Result<Vec<Outcome>, StoreError>;

    /// Whether a second commit at the same time is worth it: it does not wait for the first.
    fn commits_in_parallel(&self) -> bool {
        false
    }

    /// Begins this start of `instance`, one epoch after the last. What is committed from now
    /// on belongs to its owner, whose lease is renewed within `lease`.
    async fn enroll(&self, instance: &str, lease: Duration) -> Result<Enrolment, StoreError>;
    /// Prolongs the lease by the store's clock, and adopts owners whose lease has ended.
    async fn renew(&self, lease: Duration) -> Result<Renewal, StoreError>;
    /// Is this work this instance's to do? Ask again within the duty's lease to keep it.
    async fn take_duty(&self, duty: Duty) -> Result<bool, StoreError>;

    /// Answers when the store can be read.
    async fn ping(&self) -> Result<(), StoreError>;

    async fn job(&self, id: Id) -> Result<Option<Job>, StoreError>;
    async fn jobs(&self, filter: &JobFilter, page: Page<Id>) -> Result<Vec<Job>, StoreError>;
    async fn job_summary(&self, filter: &JobFilter) -> Result<JobSummary, StoreError>;

    /// Ids of claimable jobs, best first (priority, then age). Not locked: the claim
    /// itself is a command and may lose.
    async fn claimable(&self, runner: RunnerKind, agents: &[Arc<str>], limit: u32) -> Result<Vec<Id>, StoreError>;
    /// Jobs whose lease ended before `now`: (id, attempt).
    async fn lapsed_leases(&self, now: Timestamp, limit: u32) -> Result<Vec<(Id, u32)>, StoreError>;
    /// Failed jobs whose retry is due at `now`: (id, attempt); and when the next one is.
    async fn due_retries(&self, now: Timestamp, limit: u32) -> Result<(Vec<(Id, u32)>, Option<Timestamp>), StoreError>;

    async fn event(&self, id: Id) -> Result<Option<Arc<Event>>, StoreError> {
        Ok(self.events_by_id(&[id]).await?.pop())
    }
    /// Events by id, in no order; those that do not exist are left out.
    async fn events_by_id(&self, ids: &[Id]) -> Result<Vec<Arc<Event>>, StoreError>;
    /// One aggregate's events after `sequence`, in order.
    async fn aggregate_events(
        &self,
        aggregate: &str,
        id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError>;
    /// Newest first, by commit position.
    async fn events(&self, filter: &EventFilter, page: Page<i64>) -> Result<Vec<Arc<Event>>, StoreError>;
    /// Everything that happened in a job's name (the job, its commands, not its samples), oldest first.
    async fn job_deliveries(&self, job: Id, after: Option<i64>, limit: u32) -> Result<Vec<Deliveries>, StoreError>;
    async fn event_deliveries(&self, id: Id) -> Result<Option<Deliveries>, StoreError>;
    /// A page of all events with where they went, newest first.
    async fn deliveries(&self, page: Page<i64>) -> Result<Vec<Deliveries>, StoreError>;
    /// `job.metrics.recorded` payloads of one job in time order, at most `limit`.
    async fn samples(&self, job: Id, limit: u32) -> Result<Vec<SamplePoint>, StoreError>;
    /// Jobs by id; those that do not exist are left out.
    async fn jobs_by_id(&self, ids: &[Id]) -> Result<Vec<Job>, StoreError>;
    /// The samples of several jobs, in time order per job, at most `limit` together.
    async fn samples_of(&self, jobs: &[Id], limit: u32) -> Result<Vec<(Id, SamplePoint)>, StoreError>;

    /// Head and replay of several channels in one snapshot.
    async fn channels(
        &self,
        wanted: &[(Channel, Option<i64>)],
        limit: ReplayLimit,
    ) -> Result<Vec<ChannelState>, StoreError>;
    /// The heads of these channels, for the sweep.
    async fn channel_heads(&self, channels: &[Channel]) -> Result<Vec<i64>, StoreError>;
    /// Events of channels within (after, upto], for filling holes: one query for all.
    async fn channel_ranges(&self, ranges: &[(Channel, i64, i64)]) -> Result<Vec<(Channel, Arc<Event>)>, StoreError>;

    /// Open legs (pending or dead, which block their key) of one broker after a commit
    /// position, in commit order, with their events: those this instance answers for,
    /// or everybody's before it has enrolled.
    /// `lane`: only keys with `bucket % lanes == lane`.
    async fn open_legs(
        &self,
        broker: Broker,
        lane: Option<(u8, u8)>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(Arc<Event>, LegRow)>, StoreError>;
    /// For each event whether an earlier one of its aggregate still has an open leg to the
    /// same destination of this broker, and that leg's state. Only the nearest is looked at:
    /// it, too, went out after the one before it.
    async fn open_before(&self, broker: Broker, events: &[Arc<Event>]) -> Result<Vec<Option<LegState>>, StoreError>;
    /// The end of each log as far as legs were marked.
    async fn broker_ends(&self) -> Result<Vec<BrokerEnd>, StoreError>;
    /// Makes done legs at or beyond an end pending again: the embedded log lost its
    /// unsynced tail. Returns how many.
    async fn reopen_legs(&self, lost: &[BrokerEnd]) -> Result<u64, StoreError>;
    /// Makes done legs of these events pending again: the broker has lost their messages.
    /// They are nobody's until an instance takes them over, and later events of the same
    /// aggregates wait for them. Returns how many.
    async fn publish_again(&self, broker: Broker, positions: &[i64]) -> Result<u64, StoreError>;

    /// Due retries of one consumer, oldest first, at most one per key.
    async fn backlog_due(
        &self,
        consumer: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<BacklogRow>, Option<Timestamp>), StoreError>;
    /// Parked rows whose key has no head (a crash between two steps); wakes them.
    async fn wake_headless(&self, consumer: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Which of these events a consumer should have got and has nothing of, in the order
    /// of their ids.
    async fn arrivals(&self, query: ArrivalQuery<'_>) -> Result<Vec<Arrival>, StoreError>;
    /// How far a consumer has come: of the newest events below `before` that it has handled,
    /// the last of each type and partition.
    async fn last_handled(&self, consumer: &str, broker: Broker, before: Id) -> Result<Vec<Handled>, StoreError>;

    /// One row of a read model.
    async fn read_model(&self, model: &str, key: &str) -> Result<Option<serde_json::Value>, StoreError>;

    /// The sum of a number over the rows of a read model from this key on.
    async fn read_model_sum(&self, model: &str, field: &str, from: &str) -> Result<f64, StoreError>;

    async fn figures(&self) -> Result<StoreFigures, StoreError>;
    /// Counts jobs that have not ended, by small indexes: never all jobs are read.
    async fn workload(&self) -> Result<Workload, StoreError>;
    /// Deletes old rows, one bounded step in a transaction of its own. Go on with
    /// [`Pruned::next`]. Jobs first, then events, then inboxes: each frees the next.
    async fn prune(&self, step: &PruneStep) -> Result<Pruned, StoreError>;
    /// Gives up the lease, flushes and closes. Later calls fail with [`StoreError::Unavailable`].
    async fn close(&self);
}
