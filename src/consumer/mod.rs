//! Consumers: what the gateway itself does about events.
//!
//! A consumer is one file here that implements [`Handler`], and one line in [`ALL`]. It
//! turns messages into [`Effects`], data that the store commits together with the inbox
//! row; it never writes by itself. [`runtime`] does the rest: batches, the inbox,
//! retries, parking, dead letters, acknowledgement after the commit.

pub mod audit;
pub mod dead_letter;
pub mod declaration;
mod lag;
pub mod live;
pub mod metrics;
pub mod orchestrator;
pub mod overdue;
mod quarantine;
mod runtime;
mod sweeper;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::broker::{Delivery, Source};
use crate::domain::catalogue::{EventType, Order, PayloadError};
use crate::domain::event::{Encoding, Headers};
use crate::domain::factory::{Cause, EventFactory};
use crate::domain::payload::Payload;
use crate::domain::{Event, EventDraft, Timestamp};
use crate::service::EventService;
use crate::store::{DeliveryClaim, Effect, JobWrite, StoredMessage, Verdict};

pub use quarantine::Quarantine;
pub use runtime::{ConsumerParts, ConsumerTasks, Drained, PREFETCH, spawn};

/// Every consumer that leaves effects.
pub const ALL: [Consumer; 3] = [
    Consumer {
        declaration: orchestrator::declaration,
        build: |with| Arc::new(orchestrator::Orchestrator::new(with.service.clone(), with.retry_soon.clone())),
    },
    Consumer { declaration: metrics::declaration, build: |_| Arc::new(metrics::MetricsConsumer) },
    Consumer { declaration: audit::declaration, build: |with| Arc::new(audit::Audit::new(with.factory.clone())) },
];

/// What a consumer is, and how it is made.
pub struct Consumer {
    pub declaration: fn() -> Declaration,
    pub build: fn(&Parts) -> Arc<dyn Handler>,
}

/// What consumers are made with.
pub struct Parts {
    pub service: Arc<EventService>,
    pub factory: Arc<EventFactory>,
    /// Wakes the [`orchestrator::Timer`].
    pub retry_soon: Arc<Notify>,
}

/// All that [`ALL`] declare.
pub fn declarations() -> Vec<Declaration> {
    ALL.iter().map(|consumer| (consumer.declaration)()).collect()
}

/// The message as it came, to be kept for retries or a person.
fn as_it_came(delivery: &Delivery) -> StoredMessage {
    StoredMessage {
        headers: delivery.headers.as_ref().ok().cloned(),
        encoding: delivery.encoding,
        body: delivery.body.clone(),
        position: delivery.position.to_string(),
    }
}

/// Hands an event to a consumer from the store: into its backlog, due at once, so that it is
/// handled in key order like any retry. `position`: where its message was, for people.
fn redelivery(declaration: &Declaration, event: &Event, why: String, position: String) -> DeliveryClaim {
    let (headers, at) = (Arc::new(event.headers()), Timestamp::now());
    DeliveryClaim {
        consumer: declaration.name.into(),
        event_id: event.event_id,
        key: declaration.key(&event.event_type, &headers),
        sequence: event.sequence,
        ordered: declaration.orders(&event.event_type),
        from_backlog: false,
        verdict: Verdict::Failed { error: why, attempts: 0, retry_at: Some(at) },
        message: Some(StoredMessage {
            headers: Some(headers),
            encoding: Encoding::Json,
            body: event.payload.json.clone(),
            position,
        }),
        at,
    }
}

/// What a consumer is, declared once and checked at start-up.
#[derive(Clone, Debug)]
pub struct Declaration {
    pub name: &'static str,
    pub source: Source,
    /// The types it handles, each with the types it may emit for it.
    pub consumes: &'static [(&'static str, &'static [&'static str])],
    /// Do later events of a key wait behind a failed one?
    pub order: Order,
}

impl Declaration {
    pub fn handles(&self, event_type: &str) -> bool {
        self.consumes.iter().any(|(name, _)| *name == event_type)
    }

    /// Do later messages of this type wait behind a failed one?
    pub fn orders(&self, event_type: &EventType) -> bool {
        self.order == Order::Aggregate && event_type.order == Order::Aggregate
    }

    /// What parks together in the backlog.
    pub fn key(&self, event_type: &EventType, headers: &Headers) -> Arc<str> {
        if self.orders(event_type) {
            format!("{}:{}", headers.aggregate_type, headers.aggregate_id).into()
        } else {
            headers.event_id.to_string().into()
        }
    }
}

/// A message to handle: known type, readable headers.
#[derive(Clone, Debug)]
pub struct Message {
    pub headers: Arc<Headers>,
    pub event_type: Arc<EventType>,
    pub encoding: Encoding,
    pub body: Bytes,
}

impl Message {
    /// The typed payload.
    ///
    /// # Errors
    /// The bytes do not fit the type's schema: a permanent error.
    pub fn payload<T: Payload>(&self) -> Result<T, HandlerError> {
        let decoded: Result<T, PayloadError> = match self.encoding {
            Encoding::Json => self.event_type.json_to_payload(&self.body),
            Encoding::Avro => self.event_type.decode_payload(&self.body),
        };
        decoded.map_err(|error| HandlerError::Permanent(format!("payload: {error}")))
    }

    /// What events caused by this message carry on.
    pub fn cause(&self) -> Cause {
        Cause {
            correlation_id: self.headers.correlation_id,
            causation_id: Some(self.headers.event_id),
            traceparent: self.headers.traceparent.clone(),
        }
    }

    pub fn occurred_at(&self) -> Timestamp {
        self.headers.occurred_at
    }
}

/// What handling a message leads to. All of it is committed with the inbox row, or none.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    pub jobs: Vec<JobWrite>,
    pub events: Vec<EventDraft>,
    pub rows: Vec<Effect>,
}

/// Why a message was not handled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandlerError {
    /// May work later: goes to the backlog.
    #[error("{0}")]
    Transient(String),
    /// Will never work: a dead letter at once.
    #[error("{0}")]
    Permanent(String),
    /// Something everybody needs is away (the store): the consumer pauses, nothing is
    /// counted against the message.
    #[error("{0}")]
    Pause(String),
}

impl From<crate::store::StoreError> for HandlerError {
    fn from(error: crate::store::StoreError) -> Self {
        match error {
            crate::store::StoreError::Corrupt(_) | crate::store::StoreError::Data(_) => {
                Self::Permanent(error.to_string())
            }
            _ => Self::Pause(error.to_string()),
        }
    }
}

impl From<crate::domain::factory::DraftError> for HandlerError {
    fn from(error: crate::domain::factory::DraftError) -> Self {
        Self::Permanent(error.to_string())
    }
}

/// One consumer. Must be safe to call again with the same message.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    fn declaration(&self) -> Declaration;

    /// Effects of each message, in the order given; one query per batch, not per message.
    async fn handle(&self, batch: &[Message]) -> Vec<Result<Effects, HandlerError>>;
}
