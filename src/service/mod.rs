//! The use cases: every change anyone can ask for, validated, authorised, committed once.
//!
//! `EventService` is what HTTP, the runner and the consumers talk to; [`committer`] is how
//! it reaches the store.

pub mod agents;
pub mod committer;
pub mod error;
mod ingest;
mod jobs;
mod submit;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::domain::factory::{Cause, EventFactory};
use crate::domain::job::{Job, JobCommand};
use crate::domain::{Event, Id, Principal, Timestamp};
use crate::store::{
    AuditRow, Effect, IdempotencyClaim, IdempotencyKey, JobWrite, Outcome, Store, StoredResponse, Unit,
};
use agents::Agents;
use committer::Committer;
pub use error::{FieldError, ServiceError};
pub use ingest::{IngestEvent, Ingested};
use submit::encode;
pub use submit::{BatchItem, SubmitJob};
pub use worker::{ClaimRequest, Directive, ReportedStatus, Sample, SamplesReport, StatusReport};

/// Everything about the caller that a use case needs.
#[derive(Clone, Debug)]
pub struct Context {
    pub principal: Principal,
    /// The operator acts for this user.
    pub on_behalf_of: Option<Arc<str>>,
    pub cause: Cause,
    pub idempotency_key: Option<Arc<str>>,
    pub received_at: Timestamp,
}

impl Context {
    /// Whose things are changed.
    pub fn owner(&self) -> &Arc<str> {
        self.on_behalf_of.as_ref().unwrap_or(&self.principal.user_id)
    }
}

/// An answer that is already encoded.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub body: Bytes,
    /// Answered from the stored bytes of the first request.
    pub repeated: bool,
}

/// Limits of what a request may ask.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    pub max_retries_default: u32,
    pub max_retries_limit: u32,
    /// Jobs in one batch.
    pub batch_limit: usize,
    /// Lease of an external claim.
    pub external_lease_ms: i64,
}

/// The one way to change anything.
pub struct EventService {
    store: Arc<dyn Store>,
    committer: Committer,
    factory: Arc<EventFactory>,
    agents: Arc<Agents>,
    options: ServiceOptions,
    in_flight: Arc<Mutex<HashSet<IdempotencyKey>>>,
}

/// Frees an idempotency key when its request is answered or given up.
struct InFlight {
    keys: Arc<Mutex<HashSet<IdempotencyKey>>>,
    key: IdempotencyKey,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.key);
    }
}

impl EventService {
    pub fn new(
        store: Arc<dyn Store>,
        committer: Committer,
        factory: Arc<EventFactory>,
        agents: Arc<Agents>,
        options: ServiceOptions,
    ) -> Self {
        Self { store, committer, factory, agents, options, in_flight: Arc::default() }
    }

    pub fn agents(&self) -> &Arc<Agents> {
        &self.agents
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn factory(&self) -> &Arc<EventFactory> {
        &self.factory
    }

    pub fn committer(&self) -> &Committer {
        &self.committer
    }

    /// Claims the key for the time of this request.
    fn begin(&self, key: &IdempotencyKey) -> Result<InFlight, ServiceError> {
        if !self.in_flight.lock().insert(key.clone()) {
            return Err(ServiceError::KeyInFlight);
        }
        Ok(InFlight { keys: self.in_flight.clone(), key: key.clone() })
    }

    /// The claim for a request that carries an `Idempotency-Key`.
    fn idempotency(
        &self,
        context: &Context,
        route: &'static str,
        body: &[u8],
        response: StoredResponse,
    ) -> Option<IdempotencyClaim> {
        use sha2::Digest;
        let key = context.idempotency_key.as_ref()?;
        Some(IdempotencyClaim {
            key: IdempotencyKey { user_id: context.owner().clone(), route: route.into(), key: key.clone() },
            fingerprint: sha2::Sha256::digest(body).into(),
            response,
            at: context.received_at,
        })
    }

    /// Commits a request's unit.
    async fn accept(&self, unit: Unit) -> Result<(Vec<Job>, Vec<Arc<Event>>), ServiceError> {
        match self.committer.accept(unit).await? {
            Outcome::Committed { jobs, events } => Ok((jobs.into_iter().map(|written| written.job).collect(), events)),
            Outcome::Refused { refusal, .. } => Err(refusal.into()),
            Outcome::KeyReused => Err(ServiceError::KeyReused),
            Outcome::Invalid(why) => Err(ServiceError::Internal(why)),
            other => Err(ServiceError::Internal(format!("unexpected outcome {other:?}"))),
        }
    }

    /// One command to one job.
    async fn command(&self, job_id: Id, command: JobCommand, cause: &Cause) -> Result<Job, ServiceError> {
        let write = JobWrite { job_id, command, cause: cause.clone(), drafts: Vec::new() };
        let unit = Unit { jobs: vec![write], ..Unit::default() };
        let (mut jobs, _) = self.accept(unit).await?;
        jobs.pop().ok_or_else(|| ServiceError::Internal("a committed command returned no job".into()))
    }

    /// Acting for somebody else leaves a line in the audit trail, in the same unit.
    fn audit_on_behalf(&self, context: &Context, action: &str, job: Id) -> Option<Effect> {
        let user = context.on_behalf_of.as_ref()?;
        Some(Effect::Audit(AuditRow {
            audit_id: Id::new(),
            audit_type: "audit.action.recorded",
            actor_user_id: context.principal.user_id.clone(),
            target_resource_type: "job",
            target_resource_id: job.to_string(),
            at: context.received_at,
            details: serde_json::json!({ "action": action, "on_behalf_of": user }),
        }))
    }
}
