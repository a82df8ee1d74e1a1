//! Units as the service and the consumers make them.

use std::sync::Arc;

use event_gateway::domain::catalogue::Catalogue;
use event_gateway::domain::event::{Encoding, Headers};
use event_gateway::domain::factory::{Cause, EventFactory};
use event_gateway::domain::job::{
    Job, JobCommand, JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem, submission_events,
};
use event_gateway::domain::{Event, Id, Timestamp};
use event_gateway::store::{
    DeliveryClaim, IdempotencyClaim, IdempotencyKey, JobWrite, Outcome, Store, StoredMessage, StoredResponse, Unit,
    Verdict,
};
use futures_util::future::LocalBoxFuture;

/// A store under test, and what it lives in: a directory, a schema.
pub struct Opened {
    pub store: Arc<dyn Store>,
    /// Opens it once more, as the next start of the gateway does.
    pub again: Box<dyn Fn() -> LocalBoxFuture<'static, Arc<dyn Store>>>,
    pub _keep: Arc<dyn std::any::Any>,
}

pub fn factory() -> Arc<EventFactory> {
    let catalogue = Catalogue::load(&[]).expect("the built-in catalogue is good");
    Arc::new(EventFactory::new(catalogue, ["external".into()].into(), 512_000))
}

pub fn job(user: &str) -> Job {
    let now = Timestamp::now();
    Job {
        id: Id::new(),
        user_id: user.into(),
        name: "a job".into(),
        agent: "external".into(),
        runner: RunnerKind::External,
        dataset_id: "d".into(),
        tacc_system: TaccSystem::Other,
        external_job_id: None,
        status: JobStatus::Queued,
        progress: None,
        priority: Priority::Normal,
        params: serde_json::value::RawValue::from_string("{}".into()).expect("JSON").into(),
        resource_request: ResourceRequest::default(),
        result: None,
        error: None,
        attempt: 1,
        retry_count: 0,
        max_retries: 3,
        retry_at: None,
        cancel_requested: false,
        claimant: None,
        lease_until: None,
        estimated_cost_usd: 0.0,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
    }
}

pub fn submit(job: &Job) -> Unit {
    let cause = Cause::root();
    let drafts = submission_events(job)
        .iter()
        .map(|event| factory().job_event(job, event, &cause, job.created_at).expect("it encodes"))
        .collect();
    let write = JobWrite { job_id: job.id, command: JobCommand::Submit(Box::new(job.clone())), cause, drafts };
    Unit { jobs: vec![write], ..Unit::default() }
}

pub fn command(job: Id, command: JobCommand) -> Unit {
    Unit { jobs: vec![JobWrite { job_id: job, command, cause: Cause::root(), drafts: Vec::new() }], ..Unit::default() }
}

pub fn claim(key: &str, body: u8) -> IdempotencyClaim {
    IdempotencyClaim {
        key: IdempotencyKey { user_id: "ada".into(), route: "POST /jobs".into(), key: key.into() },
        fingerprint: [body; 32],
        response: StoredResponse { status: 201, location: None, body: format!("answer {key}").into() },
        at: Timestamp::now(),
    }
}

/// The handling of `event` by a consumer.
pub fn delivery(consumer: &str, event: &Event, verdict: Verdict) -> Unit {
    let claim = DeliveryClaim {
        consumer: consumer.into(),
        event_id: event.event_id,
        key: event.aggregate_id.clone(),
        sequence: event.sequence,
        ordered: true,
        from_backlog: false,
        verdict,
        message: Some(StoredMessage {
            headers: Some(Arc::new(Headers { ..event.headers() })),
            encoding: Encoding::Json,
            body: event.payload.json.clone(),
            position: "test".into(),
        }),
        at: Timestamp::now(),
    };
    Unit { delivery: Some(claim), ..Unit::default() }
}

pub fn failed(retry_at: Option<Timestamp>) -> Verdict {
    Verdict::Failed { error: "no luck".into(), attempts: 1, retry_at }
}

pub async fn commit(opened: &Opened, units: Vec<Unit>) -> Vec<Outcome> {
    opened.store.commit(Arc::new(units)).await.expect("it commits")
}

/// Commits one unit that must go through; its events.
pub async fn committed(opened: &Opened, unit: Unit) -> Vec<Arc<Event>> {
    match commit(opened, vec![unit]).await.pop() {
        Some(Outcome::Committed { events, .. }) => events,
        other => panic!("not committed: {other:?}"),
    }
}
