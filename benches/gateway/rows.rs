//! Submitted jobs as the gateway writes them, made without it: to fill a store, and for the
//! bare loop.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::config::{Config, Sources};
use event_gateway::consumer::audit::Audit;
use event_gateway::consumer::metrics::MetricsConsumer;
use event_gateway::consumer::{Handler, Message};
use event_gateway::domain::catalogue::Catalogue;
use event_gateway::domain::event::Encoding;
use event_gateway::domain::factory::{Cause, EventFactory};
use event_gateway::domain::job::{
    Job, JobCommand, JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem, submission_events,
};
use event_gateway::domain::{Event, EventDraft, Id, Timestamp};
use event_gateway::store::{DeliveryClaim, JobWrite, LegMark, LegState, Outcome, Store, Unit, Verdict};

/// Jobs of one COMMIT while filling.
const BATCH: usize = 2_000;

pub fn factory() -> Arc<EventFactory> {
    let catalogue = Catalogue::load(&[]).expect("the built-in catalogue");
    Arc::new(EventFactory::new(catalogue, HashSet::from(["external".into()]), 512_000))
}

/// A job of `bench-user-{n % users}` and its two events.
pub fn submission(factory: &EventFactory, n: usize, users: usize) -> (Job, Vec<EventDraft>) {
    let now = Timestamp::now();
    let job = Job {
        id: Id::new(),
        user_id: format!("bench-user-{}", n % users).into(),
        name: "bench job".into(),
        agent: "external".into(),
        runner: RunnerKind::External,
        dataset_id: "survey/2026/field-0042".into(),
        tacc_system: TaccSystem::default(),
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
    };
    let cause = Cause::root();
    let drafts = submission_events(&job)
        .iter()
        .map(|event| factory.job_event(&job, event, &cause, now).expect("a good event"))
        .collect();
    (job, drafts)
}

/// Writes `count` submitted jobs with all that follows from them: legs done, audit rows and
/// events, aggregates, inbox rows. The embedded logs stay empty.
pub async fn fill(data_dir: &Path, count: usize, users: usize) {
    let factory = factory();
    let store = open(data_dir, factory.clone()).await;
    store.enroll("bench", Duration::from_secs(3600)).await.expect("an owner");
    let handlers: [Arc<dyn Handler>; 2] = [Arc::new(Audit::new(factory.clone())), Arc::new(MetricsConsumer)];
    for start in (0..count).step_by(BATCH) {
        let units = (start..count.min(start + BATCH)).map(|n| {
            let (job, drafts) = submission(&factory, n, users);
            let command = JobCommand::Submit(Box::new(job.clone()));
            Unit { jobs: vec![JobWrite { job_id: job.id, command, cause: Cause::root(), drafts }], ..Unit::default() }
        });
        let submitted = commit(&*store, units.collect()).await;
        let mut units = consumed(&handlers, &submitted).await;
        units.push(marked(&submitted));
        let audited = commit(&*store, units).await;
        commit(&*store, vec![marked(&audited)]).await;
    }
    store.close().await;
}

/// The store that the environment configures, as for the gateway.
async fn open(data_dir: &Path, factory: Arc<EventFactory>) -> Arc<dyn Store> {
    let sources = Sources::new(None, vec![format!("data.dir={}", data_dir.display())]);
    let config = Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}")).config;
    event_gateway::app::open_store(&config, factory).await.expect("a store")
}

async fn commit(store: &dyn Store, units: Vec<Unit>) -> Vec<Arc<Event>> {
    let outcomes = store.commit(Arc::new(units)).await.expect("the store takes it");
    let events = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Committed { events, .. } => events,
        other => panic!("not committed: {other:?}"),
    });
    events.flatten().collect()
}

/// What the consumers write for submissions.
async fn consumed(handlers: &[Arc<dyn Handler>], events: &[Arc<Event>]) -> Vec<Unit> {
    let mut units = Vec::new();
    for handler in handlers {
        let declaration = handler.declaration();
        let messages: Vec<Message> = events
            .iter()
            .filter(|event| declaration.handles(&event.event_type.name))
            .map(|event| Message {
                headers: Arc::new(event.headers()),
                event_type: event.event_type.clone(),
                encoding: Encoding::Json,
                body: event.payload.json.clone(),
            })
            .collect();
        for (message, effects) in messages.iter().zip(handler.handle(&messages).await) {
            let effects = effects.expect("it handles submissions");
            let delivery = DeliveryClaim {
                consumer: declaration.name.into(),
                event_id: message.headers.event_id,
                key: message.headers.aggregate_id.clone(),
                sequence: message.headers.sequence,
                ordered: false,
                from_backlog: false,
                verdict: Verdict::Done,
                message: None,
                at: message.headers.occurred_at,
            };
            units.push(Unit {
                delivery: Some(delivery),
                events: effects.events,
                effects: effects.rows,
                ..Unit::default()
            });
        }
    }
    units
}

/// Every leg that is owed, done.
fn marked(events: &[Arc<Event>]) -> Unit {
    let at = Timestamp::now();
    let marks = events.iter().flat_map(|event| {
        let owed = event.event_type.brokers().iter().filter(|broker| !event.skip.iter().any(|(b, _)| b == *broker));
        owed.map(|broker| LegMark {
            position: event.position,
            broker: *broker,
            state: LegState::Done,
            attempts: 1,
            partition: Some(0),
            offset: Some(event.position),
            at,
            next_at: None,
            error: None,
            skip: None,
        })
    });
    Unit { marks: marks.collect(), ..Unit::default() }
}
