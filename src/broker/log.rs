//! The reading port: what a broker really holds. Reading leaves no trace: no group moves,
//! nothing is acknowledged, nothing is declared.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Position;
use crate::domain::Broker;
use crate::domain::catalogue::Route;
use crate::domain::event::Headers;

/// Why a log was not read. Nothing was changed: trying again is safe.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{broker}: {what}: {why}; nothing was changed, try again")]
pub struct LogError {
    pub broker: Broker,
    /// The log, or what was asked of the broker.
    pub what: String,
    pub why: String,
}

/// One partition of a log, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Kafka topic, JetStream stream, exchange (embedded only).
    pub log: Arc<str>,
    pub partition: i32,
    /// The oldest offset that is kept, or `end`.
    pub start: i64,
    /// The next offset to be given.
    pub end: i64,
    pub keeps: Keeps,
}

/// When a message may leave a log without being lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// From the oldest on, when it is older than this.
    For(Duration),
    /// From the oldest on, at any time: the log is bounded in size.
    Bounded,
    /// Once it is consumed. Subject filter of each consumer, and the offset before which it
    /// was handed everything.
    UntilConsumed(Vec<(Arc<str>, i64)>),
}

/// A message of a log.
#[derive(Clone, Debug)]
pub struct LogRecord {
    pub position: Position,
    /// `Err` says what is wrong with them.
    pub headers: Result<Arc<Headers>, String>,
}

/// Messages that wait in a queue and were not handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    pub name: Arc<str>,
    pub messages: u64,
    /// Readers that may hold others, which are not counted.
    pub holders: u64,
}

/// Reads what one broker holds.
#[async_trait]
pub trait BrokerLog: Send + Sync + 'static {
    fn broker(&self) -> Broker;

    /// The log that keeps what is published on this route; `None` if there is none.
    fn log_of(&self, route: &Route) -> Option<Arc<str>>;

    /// All partitions of all logs that exist, now. `None`: this broker's messages cannot be
    /// read without consuming them.
    async fn extents(&self) -> Result<Option<Vec<Extent>>, LogError>;

    /// Reads `[extent.start, extent.end)`.
    async fn read(&self, extent: &Extent) -> Result<Box<dyn LogReader>, LogError>;

    /// Queues and what waits in them, as far as the broker tells.
    async fn queues(&self) -> Result<Vec<QueueDepth>, LogError> {
        Ok(Vec::new())
    }
}

/// One reading of a partition.
#[async_trait]
pub trait LogReader: Send + 'static {
    /// The next records in offset order, a page at a time; none at the end. Offsets may be
    /// missing. Must return within its own timeout.
    async fn next(&mut self) -> Result<Vec<LogRecord>, LogError>;
}
