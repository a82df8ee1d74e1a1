//! Turns typed payloads into event drafts: looks the type up in the catalogue, encodes
//! once, and decides which legs are not owed.

use std::collections::HashSet;
use std::sync::Arc;

use super::catalogue::{Catalogue, EventType, PayloadError};
use super::event::SkipReason;
use super::job::{Job, JobEvent};
use super::payload::Payload;
use super::{Broker, EncodedPayload, EventDraft, Id, Timestamp};

/// What a request or message passes on to the events it causes.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Groups everything that follows from one request.
    pub correlation_id: Id,
    /// The event that led to this one, if any.
    pub causation_id: Option<Id>,
    /// W3C trace context.
    pub traceparent: Option<Arc<str>>,
}

impl Cause {
    /// A new chain.
    pub fn root() -> Self {
        Self { correlation_id: Id::new(), causation_id: None, traceparent: None }
    }
}

/// An event could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    #[error("event type {0} is not in the catalogue")]
    UnknownType(String),
    #[error("payload of {event_type}: {source}")]
    Payload { event_type: &'static str, source: PayloadError },
    #[error("{event_type} takes {size} bytes encoded, the limit is {limit}")]
    TooLarge { event_type: String, size: usize, limit: usize },
}

/// Makes drafts. Cheap to share.
#[derive(Debug)]
pub struct EventFactory {
    catalogue: Arc<Catalogue>,
    /// Agents whose jobs are claimed through the worker API: nobody is woken by NATS.
    api_claimed: HashSet<Arc<str>>,
    /// The largest encoded payload, in bytes.
    limit: usize,
}

impl EventFactory {
    pub fn new(catalogue: Arc<Catalogue>, api_claimed: HashSet<Arc<str>>, limit: usize) -> Self {
        Self { catalogue, api_claimed, limit }
    }

    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// A draft of a built-in type.
    pub fn draft<T: Payload>(
        &self,
        payload: &T,
        user_id: &Arc<str>,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<EventDraft, DraftError> {
        let event_type = self.catalogue.get(T::TYPE).ok_or_else(|| DraftError::UnknownType(T::TYPE.into()))?;
        let encoded =
            event_type.encode(payload).map_err(|source| DraftError::Payload { event_type: T::TYPE, source })?;
        self.check_size(event_type, &encoded)?;
        Ok(EventDraft {
            event_id: Id::new(),
            event_type: event_type.clone(),
            aggregate_id: payload.aggregate_id().into(),
            user_id: user_id.clone(),
            occurred_at: now,
            correlation_id: cause.correlation_id,
            causation_id: cause.causation_id,
            tags: Vec::new(),
            payload: encoded,
            traceparent: cause.traceparent.clone(),
            skip: Vec::new(),
        })
    }

    /// The draft of an event that follows from a transition of `job`.
    pub fn job_event(
        &self,
        job: &Job,
        event: &JobEvent,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<EventDraft, DraftError> {
        let user = &job.user_id;
        match event {
            JobEvent::Submitted(p) => self.draft(p, user, cause, now),
            JobEvent::StatusChanged(p) => self.draft(p, user, cause, now),
            JobEvent::Completed(p) => self.draft(p, user, cause, now),
            JobEvent::Failed(p) => self.draft(p, user, cause, now),
            JobEvent::Cancelled(p) => self.draft(p, user, cause, now),
            JobEvent::SubmitRequested(p) => {
                let mut draft = self.draft(p, user, cause, now)?;
                if self.api_claimed.contains(&job.agent) {
                    draft.skip.push((Broker::Nats, SkipReason::ClaimedThroughApi));
                }
                Ok(draft)
            }
            JobEvent::CancelRequested(p) => {
                let mut draft = self.draft(p, user, cause, now)?;
                if self.api_claimed.contains(&job.agent) {
                    draft.skip.push((Broker::Nats, SkipReason::ClaimedThroughApi));
                }
                Ok(draft)
            }
        }
    }

    /// Refuses what brokers would refuse later.
    pub fn check_size(&self, event_type: &EventType, encoded: &EncodedPayload) -> Result<(), DraftError> {
        let size = encoded.json.len().max(encoded.avro.as_ref().map_or(0, |avro| avro.len()));
        if size > self.limit {
            return Err(DraftError::TooLarge { event_type: event_type.name.to_string(), size, limit: self.limit });
        }
        Ok(())
    }
}
