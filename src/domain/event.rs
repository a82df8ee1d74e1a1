//! Events: what has happened, in the shape every broker, store and browser gets.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::catalogue::EventType;
use super::{Id, Timestamp};

/// A place that events are published to. The discriminants are stored: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Broker {
    Rabbitmq = 1,
    Kafka = 2,
    Nats = 3,
}

impl Broker {
    pub const ALL: [Broker; 3] = [Broker::Rabbitmq, Broker::Kafka, Broker::Nats];

    pub fn as_str(self) -> &'static str {
        match self {
            Broker::Rabbitmq => "rabbitmq",
            Broker::Kafka => "kafka",
            Broker::Nats => "nats",
        }
    }

    /// The broker with this stored number.
    pub fn from_code(code: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|broker| *broker as i64 == code)
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a browser subscribes to; its `offset` is gap-free.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// All events of one job; the offset is the job's sequence.
    Job(Id),
    /// Everything one user may see of their own things.
    User(Arc<str>),
}

impl Channel {
    /// Reads `job:<uuid>` or `user:<id>`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("job", id) => id.parse().ok().map(Channel::Job),
            ("user", id) if !id.is_empty() => Some(Channel::User(id.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Job(id) => write!(f, "job:{id}"),
            Channel::User(user) => write!(f, "user:{user}"),
        }
    }
}

/// A payload encoded once by whoever made the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPayload {
    /// The payload as a JSON object: AMQP and NATS bodies, the store, the browser.
    pub json: Bytes,
    /// The payload record as Avro binary, without the envelope; `None` after a read
    /// from the store (the Kafka publisher then encodes it again from the JSON).
    pub avro: Option<Bytes>,
}

/// An event that has not been committed: no sequence and no offsets yet.
#[derive(Clone, Debug)]
pub struct EventDraft {
    pub event_id: Id,
    pub event_type: Arc<EventType>,
    /// Identifies the aggregate within `event_type.aggregate`.
    pub aggregate_id: Arc<str>,
    /// The owner: whose `user:` channel this concerns.
    pub user_id: Arc<str>,
    pub occurred_at: Timestamp,
    pub correlation_id: Id,
    pub causation_id: Option<Id>,
    pub tags: Vec<String>,
    pub payload: EncodedPayload,
    /// W3C trace context of the request that caused it.
    pub traceparent: Option<Arc<str>>,
    /// Brokers whose leg is not owed, with the reason the ledger shows.
    pub skip: Vec<(Broker, SkipReason)>,
}

impl EventDraft {
    /// Bytes it holds in memory, about: what queues are bounded by.
    pub fn bytes(&self) -> usize {
        256 + self.payload.json.len() + self.payload.avro.as_ref().map_or(0, |avro| avro.len())
    }
}

/// Why a leg is not owed. The discriminants are stored: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum SkipReason {
    /// The job's agent is claimed through the worker API: no message wakes anybody.
    ClaimedThroughApi = 1,
    /// No queue is bound for this kind of copy and the catalogue says that is fine.
    NoQueueBound = 2,
}

impl SkipReason {
    pub fn from_code(code: i64) -> Option<Self> {
        match code {
            1 => Some(Self::ClaimedThroughApi),
            2 => Some(Self::NoQueueBound),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClaimedThroughApi => "claimed through the worker API",
            Self::NoQueueBound => "no queue is bound",
        }
    }
}

/// A committed event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Position in this store's commit order.
    pub position: i64,
    /// Position in the aggregate, from 1, gap-free.
    pub sequence: i64,
    /// Offset in the owner's `user:` channel, for types that user sees.
    pub user_offset: Option<i64>,
    pub origin: Origin,
    pub draft: EventDraft,
}

/// Who committed an event, for those who publish it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The owner, see [`crate::store::Enrolment`]; 0 in a store that serves one process alone.
    pub owner: i32,
    /// The aggregate's event before it may be another owner's, to be published elsewhere.
    pub follows_other: bool,
}

impl std::ops::Deref for Event {
    type Target = EventDraft;

    fn deref(&self) -> &EventDraft {
        &self.draft
    }
}

impl Event {
    /// The channels this event appears in with its offset in each.
    pub fn offsets(&self) -> Vec<(Channel, i64)> {
        let mut offsets = Vec::with_capacity(2);
        if self.event_type.audience.job
            && &*self.event_type.aggregate == "job"
            && let Ok(id) = self.aggregate_id.parse()
        {
            offsets.push((Channel::Job(id), self.sequence));
        }
        if let Some(offset) = self.user_offset {
            offsets.push((Channel::User(self.user_id.clone()), offset));
        }
        offsets
    }

    /// The broker-independent headers (CloudEvents attribute names without prefix).
    pub fn headers(&self) -> Headers {
        Headers {
            event_id: self.event_id,
            event_type: self.event_type.name.clone(),
            aggregate_type: self.event_type.aggregate.clone(),
            aggregate_id: self.aggregate_id.clone(),
            sequence: self.sequence,
            user_id: self.user_id.clone(),
            occurred_at: self.occurred_at,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            schema_version: self.event_type.version,
            tags: self.tags.clone(),
            user_offset: self.user_offset,
            traceparent: self.traceparent.clone(),
        }
    }
}

/// The envelope as it travels beside a body, so that what cannot be decoded can still
/// be ordered and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    pub event_id: Id,
    pub event_type: Arc<str>,
    pub aggregate_type: Arc<str>,
    pub aggregate_id: Arc<str>,
    pub sequence: i64,
    pub user_id: Arc<str>,
    pub occurred_at: Timestamp,
    pub correlation_id: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Id>,
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_offset: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
}

/// How a message's body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The payload as a JSON object.
    Json,
    /// The whole record (envelope and payload) as Avro binary, without wire prefix.
    Avro,
}
