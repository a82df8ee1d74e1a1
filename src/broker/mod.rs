//! The broker port: what the relay needs to publish and the consumer runtime to
//! receive. Each broker is one folder beside this file; its types never leave it.
//!
//! Two traits, both small enough to implement in a day; `tests/contract` tells when
//! an adapter is done. A third, [`BrokerLog`], reads what is there, for `reconcile`.

pub mod cloudevents;
pub mod dead_letters;
pub mod embedded;
pub mod kafka;
mod log;
pub mod nats;
pub mod rabbitmq;
mod topic_pattern;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::log::{BrokerLog, Extent, Keeps, LogError, LogReader, LogRecord, QueueDepth};
use crate::domain::catalogue::Route;
pub use crate::domain::event::Encoding;
use crate::domain::event::Headers;
use crate::domain::{Broker, Event};

/// One event on its way to one place.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub event: Arc<Event>,
    pub route: Route,
}

/// Where a broker has put a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Kafka topic, JetStream stream, RabbitMQ exchange.
    pub log: Arc<str>,
    /// Partition within it; 0 where there are none.
    pub partition: i32,
    /// Offset or stream sequence; `None` where the broker gives none (RabbitMQ).
    pub offset: Option<i64>,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{}/{}@{}", self.log, self.partition, offset),
            None => f.write_str(&self.log),
        }
    }
}

/// Why a message was not confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// It can never succeed: too large, unroutable, not encodable. The leg is dead.
    #[error("permanent: {0}")]
    Permanent(String),
    /// Nothing takes this optional copy; the leg is skipped.
    #[error("no queue is bound")]
    NoQueueBound,
    /// This message failed, others may pass: its key waits and is tried again.
    #[error("transient: {0}")]
    Transient(String),
    /// It is on its way and takes long. Published again, it is not sent again: the answer is what
    /// has become of it by then. Others may pass, unless `down` says why they need not try.
    #[error("not confirmed yet{}", .down.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Unsettled { down: Option<String> },
    /// The broker cannot be reached: the lane waits.
    #[error("broker down: {0}")]
    Down(String),
}

/// Publishes windows of events. Implementations encode once per event and confirm every
/// message of the window (or say why not) before returning; they are called from several
/// lanes at once. A window never holds two events of one key.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    fn broker(&self) -> Broker;

    /// Is a confirmed message safe from a power cut? If not, the store remembers how far
    /// each log had come and re-opens the legs of what a log lost.
    fn confirms_are_durable(&self) -> bool {
        true
    }

    /// One result per message, in the order given. Must return within its own timeout.
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<Position, PublishError>>;
}

/// What a consumer reads.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Consumer name: the Kafka group, the durable's name, the ledger's row.
    pub consumer: Arc<str>,
    pub source: Source,
    /// The most unacknowledged messages handed out.
    pub prefetch: usize,
    /// How long a message may stay unacknowledged before it is delivered again
    /// (work queues only).
    pub ack_wait: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A RabbitMQ queue bound by (exchange, pattern). `exclusive`: of this instance,
    /// starts empty, drops its oldest when full, gone with the subscription.
    Queue { name: Arc<str>, bindings: Vec<(Arc<str>, Arc<str>)>, exclusive: bool },
    /// Kafka topics, read from the group's position.
    Topics(Vec<Arc<str>>),
    /// A JetStream work queue: the subject filter of one durable consumer.
    WorkQueue { stream: Arc<str>, filter: Arc<str> },
    /// A JetStream stream read from now on by this instance alone.
    Ephemeral { stream: Arc<str>, filter: Arc<str> },
}

impl Source {
    /// Whose it is.
    pub fn broker(&self) -> Broker {
        match self {
            Self::Queue { .. } => Broker::Rabbitmq,
            Self::Topics(_) => Broker::Kafka,
            Self::WorkQueue { .. } | Self::Ephemeral { .. } => Broker::Nats,
        }
    }
}

/// A message received.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The envelope from the headers; `Err` says what is wrong with them (quarantine).
    pub headers: Result<Arc<Headers>, String>,
    pub encoding: Encoding,
    pub body: Bytes,
    pub position: Position,
    /// Routing key, record key or subject.
    pub key: Arc<str>,
    /// Given back to acknowledge it.
    pub token: AckToken,
    pub redelivered: bool,
}

/// Identifies a delivery within its inbound stream; increasing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AckToken(pub u64);

/// The stream is broken or the broker away; subscribe again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("subscription lost: {0}")]
pub struct SubscriptionLost(pub String);

/// Opens subscriptions.
#[async_trait]
pub trait Subscriber: Send + Sync + 'static {
    /// Declares what is needed and starts delivery. Fails when the broker is away.
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost>;
}

/// One open subscription. Dropping it closes it: unacknowledged messages are
/// delivered again to the next subscriber.
#[async_trait]
pub trait Inbound: Send + 'static {
    /// Waits for at least one message and returns up to `max`, in order per key. A future
    /// that is dropped while it waits has handed out nothing.
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost>;

    /// Acknowledges these deliveries. Called after their effects are committed.
    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost>;

    /// Ends deliveries that nobody can ever handle, each with why: they are not delivered again.
    /// Called after they are dead letters of the store. A broker that has no word for it takes
    /// them as acknowledged.
    async fn terminate(&mut self, ended: &[(AckToken, Arc<str>)]) -> Result<(), SubscriptionLost> {
        let tokens: Vec<AckToken> = ended.iter().map(|(token, _)| *token).collect();
        self.ack(&tokens).await
    }

    /// Messages not yet acknowledged by this consumer, as far as the broker tells; `None` where it has
    /// not told yet. Never waits for more than one answer: meanwhile nothing is received.
    async fn lag(&mut self) -> Option<u64>;
}
