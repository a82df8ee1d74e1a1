//! The catalogue: what types of event there are, where each goes and who sees it. Data, not code.

use std::path::PathBuf;
use std::sync::Arc;

use super::principal::Role;
use super::{Broker, EncodedPayload, Event};

/// Do events of one aggregate have to stay in sequence on their way?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Aggregate,
    None,
}

/// Who sees events of a type in the browser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// The `job:` channel.
    pub job: bool,
    /// The owner's `user:` channel.
    pub user: bool,
    /// The `role:operator` room.
    pub operator: bool,
}

/// One place an event goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub broker: Broker,
    /// RabbitMQ exchange, Kafka topic; for NATS the subject.
    pub target: Arc<str>,
    /// RabbitMQ routing key, Kafka record key; for NATS the aggregate id.
    pub key: Arc<str>,
    /// A copy that no queue takes is skipped, not retried.
    pub optional: bool,
}

/// One type of event.
#[derive(Debug)]
pub struct EventType {
    pub name: Arc<str>,
    /// Schema version, from 1.
    pub version: u32,
    /// Aggregate type, e.g. `job`.
    pub aggregate: Arc<str>,
    pub order: Order,
    pub audience: Audience,
    /// `job_update`, `telemetry_update`, ...: the Socket.IO event that carries it.
    pub socket_event: Arc<str>,
    /// Asks for something (`*Requested`) instead of saying that it happened.
    pub command: bool,
    /// Roles that may post it to `/events`; empty: nobody.
    pub ingest: Vec<Role>,
}

/// Every type this gateway knows.
#[derive(Debug)]
pub struct Catalogue;

/// A contradiction in the catalogue.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {field}: {reason}")]
pub struct CatalogueError {
    pub file: String,
    pub field: String,
    pub reason: String,
}

/// A payload that does not fit its schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PayloadError {
    pub field: String,
    pub reason: String,
}

impl Catalogue {
    pub fn load(_dirs: &[PathBuf]) -> Result<Arc<Catalogue>, Vec<CatalogueError>> {
        todo!()
    }

    pub fn get(&self, _name: &str) -> Option<&Arc<EventType>> {
        todo!()
    }

    pub fn types(&self) -> impl Iterator<Item = &Arc<EventType>> {
        std::iter::empty()
    }
}

impl EventType {
    /// Where events of this type go, one route a broker.
    pub fn routes(&self, _aggregate_id: &Arc<str>, _payload_json: &[u8]) -> Vec<Route> {
        todo!()
    }

    /// The brokers that events of this type go to.
    pub fn brokers(&self) -> &[Broker] {
        todo!()
    }

    pub fn encode<T: super::payload::Payload>(&self, _payload: &T) -> Result<EncodedPayload, PayloadError> {
        todo!()
    }

    /// Encodes a payload that is already JSON, checking it against the schema.
    pub fn encode_json(&self, _json: bytes::Bytes) -> Result<EncodedPayload, PayloadError> {
        todo!()
    }

    /// The whole record (envelope fields, then payload) as Avro binary.
    pub fn encode_record(&self, _event: &Event) -> Result<bytes::Bytes, PayloadError> {
        todo!()
    }
}
