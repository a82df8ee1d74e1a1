//! The vocabulary of the gateway: jobs and their state machine, events and their
//! envelope, typed payloads, the catalogue that routes them, and principals.
//!
//! Nothing here does I/O or is async; everything else builds on it.

pub mod backoff;
pub mod catalogue;
pub mod event;
pub mod factory;
pub mod id;
pub mod job;
pub mod payload;
pub mod principal;
pub mod time;

pub use event::{Broker, Channel, EncodedPayload, Event, EventDraft, Origin};
pub use id::Id;
pub use principal::{Principal, Role};
pub use time::Timestamp;
