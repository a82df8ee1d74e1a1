//! The write side as data: what one request or one consumed message asks of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::StoreError;
use crate::domain::event::{Encoding, Headers};
use crate::domain::factory::Cause;
use crate::domain::job::{Job, JobCommand, JobRefusal};
use crate::domain::{Broker, Event, EventDraft, Id, Timestamp};

/// All or nothing. Units of one commit are applied in order; a unit is never split.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    /// Answers a repeat of the same request from the stored bytes.
    pub idempotency: Option<IdempotencyClaim>,
    /// The message this is the effect of: inbox, parking, retry.
    pub delivery: Option<DeliveryClaim>,
    /// Run through the state machine under the job's lock.
    pub jobs: Vec<JobWrite>,
    /// Events that follow from no transition.
    pub events: Vec<EventDraft>,
    pub effects: Vec<Effect>,
    /// What the relay has learnt about legs.
    pub marks: Vec<LegMark>,
    /// Ends of embedded logs as of these marks.
    pub ends: Vec<BrokerEnd>,
}

impl Unit {
    /// Rows this unit writes, about: what batches are capped by.
    pub fn weight(&self) -> usize {
        self.jobs.len() * 8
            + self.events.len() * 4
            + self.effects.len()
            + self.marks.len()
            + usize::from(self.idempotency.is_some())
            + usize::from(self.delivery.is_some())
    }

    /// Bytes this unit holds in memory, about: what the intake is bounded by.
    pub fn bytes(&self) -> usize {
        let drafts = self.events.iter().chain(self.jobs.iter().flat_map(|job| &job.drafts));
        512 + drafts.map(EventDraft::bytes).sum::<usize>()
            + self.idempotency.as_ref().map_or(0, |claim| claim.response.body.len())
    }
}

/// Identifies a request so that it can be repeated safely.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    pub user_id: Arc<str>,
    /// Method and route template, e.g. `POST /api/v1/jobs`.
    pub route: Arc<str>,
    pub key: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct IdempotencyClaim {
    pub key: IdempotencyKey,
    /// SHA-256 of the request body: the same key with another body is refused.
    pub fingerprint: [u8; 32],
    /// What a repeat is answered with.
    pub response: StoredResponse,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    pub status: u16,
    pub location: Option<String>,
    pub body: Bytes,
}

/// A command to one job.
#[derive(Clone, Debug)]
pub struct JobWrite {
    pub job_id: Id,
    pub command: JobCommand,
    pub cause: Cause,
    /// Already encoded events (submissions only: they are known beforehand).
    pub drafts: Vec<EventDraft>,
}

/// A message as a consumer got it, kept for retries.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// `None` for what could not be read at all.
    pub headers: Option<Arc<Headers>>,
    pub encoding: Encoding,
    pub body: Bytes,
    /// Where it was read from, for people.
    pub position: String,
}

/// How the handling of one message ended.
#[derive(Clone, Debug)]
pub struct DeliveryClaim {
    pub consumer: Arc<str>,
    pub event_id: Id,
    /// What parks together; the aggregate for ordered consumers.
    pub key: Arc<str>,
    pub sequence: i64,
    /// Later events of `key` wait behind a failed one.
    pub ordered: bool,
    pub from_backlog: bool,
    pub verdict: Verdict,
    /// Kept when the message goes to the backlog.
    pub message: Option<StoredMessage>,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    /// Handled: the unit's effects count, the inbox remembers.
    Done,
    /// Not handled; `retry_at` is the next attempt, `None` makes it dead.
    Failed { error: String, attempts: u32, retry_at: Option<Timestamp> },
    /// An earlier event of the key failed in this very batch: park it.
    Park,
}

/// A row besides jobs and events.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Adds to a row of `read_models(model, key, data)`.
    Fold(Fold),
    /// One line of the audit trail.
    Audit(AuditRow),
}

/// Changes to one read-model row (a flat JSON object), combined under lock.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    pub model: &'static str,
    pub key: String,
    pub add: BTreeMap<&'static str, f64>,
    pub max: BTreeMap<&'static str, f64>,
    pub set: BTreeMap<&'static str, serde_json::Value>,
}

impl Fold {
    /// Applies this change to the row as found.
    pub fn apply(&self, row: &mut serde_json::Map<String, serde_json::Value>) {
        for (field, amount) in &self.add {
            let sum = row.get(*field).and_then(serde_json::Value::as_f64).unwrap_or(0.0) + amount;
            row.insert((*field).to_owned(), number(sum));
        }
        for (field, value) in &self.max {
            let largest = row.get(*field).and_then(serde_json::Value::as_f64).map_or(*value, |old| old.max(*value));
            row.insert((*field).to_owned(), number(largest));
        }
        for (field, value) in &self.set {
            row.insert((*field).to_owned(), value.clone());
        }
    }
}

/// Whole numbers stay whole in JSON.
fn number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { (value as i64).into() } else { value.into() }
}

/// One line of the audit trail, before numbering.
#[derive(Clone, Debug)]
pub struct AuditRow {
    pub audit_id: Id,
    pub audit_type: &'static str,
    pub actor_user_id: Arc<str>,
    pub target_resource_type: &'static str,
    pub target_resource_id: String,
    pub at: Timestamp,
    /// A JSON object.
    pub details: serde_json::Value,
}

/// State of a leg. The discriminants are stored: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LegState {
    Pending = 0,
    Done = 1,
    Skipped = 2,
    Dead = 3,
}

impl LegState {
    pub fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            0 => Self::Pending,
            1 => Self::Done,
            2 => Self::Skipped,
            3 => Self::Dead,
            _ => return None,
        })
    }

    /// As [`LegState::from_code`], of a row that the store has written.
    pub(super) fn stored(code: i64) -> Result<Self, StoreError> {
        Self::from_code(code).ok_or_else(|| StoreError::Corrupt(format!("leg state {code}")))
    }
}

/// News about one leg.
#[derive(Clone, Debug)]
pub struct LegMark {
    pub position: i64,
    pub broker: Broker,
    pub state: LegState,
    pub attempts: u32,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub at: Timestamp,
    pub next_at: Option<Timestamp>,
    pub error: Option<String>,
    pub skip: Option<crate::domain::event::SkipReason>,
}

/// Next offset of one partition of an embedded log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerEnd {
    pub broker: Broker,
    pub log: Arc<str>,
    pub partition: i32,
    pub end: i64,
}

/// What became of a unit.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Written. `jobs` in the order of the unit's commands.
    Committed { jobs: Vec<JobWritten>, events: Vec<Arc<Event>> },
    /// This key was used before for the same body: its answer.
    Repeated(StoredResponse),
    /// This key was used before for another body. Nothing written.
    KeyReused,
    /// The state machine refused command number `index`. Nothing written.
    Refused { index: usize, refusal: JobRefusal },
    /// The inbox has this message already. Nothing written.
    Duplicate,
    /// An earlier event of this key waits: parked behind it, without effects.
    Parked,
    /// The effects cannot be written (an event does not encode). Nothing written.
    Invalid(String),
}

#[derive(Clone, Debug)]
pub struct JobWritten {
    pub job: Job,
    /// False: a repeat, nothing was written for it.
    pub changed: bool,
}
