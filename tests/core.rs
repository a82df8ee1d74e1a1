//! The core in one process, without front ends: what is accepted is relayed, consumed and
//! accounted for, on the embedded default and on real brokers (`EVENT_GATEWAY_TEST_ON=brokers`).

#[path = "support/environment.rs"]
mod environment;
#[path = "support/fresh.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fresh;
#[path = "support/home.rs"]
mod home;

use std::sync::Arc;
use std::time::Duration;

use event_gateway::app::Core;
use event_gateway::config::Config;
use event_gateway::consumer::live::own_events;
use event_gateway::consumer::{audit, metrics, overdue};
use event_gateway::domain::factory::Cause;
use event_gateway::domain::job::{Job, JobCommand, JobStatus, submission_events};
use event_gateway::domain::{Id, Principal, Role, Timestamp};
use event_gateway::service::{ClaimRequest, Context, ServiceError, StatusReport, SubmitJob};
use event_gateway::store::{EffectState, JobWrite, LegMark, LegState, Outcome, Unit};
use event_gateway::telemetry::Metrics;

use crate::home::Home;

/// Nothing that these tests wait for takes longer.
const LIMIT: Duration = Duration::from_secs(60);

fn context(user: &str, key: Option<&str>) -> Context {
    Context {
        principal: Principal {
            user_id: user.into(),
            roles: vec![Role::User],
            expires_at: Timestamp::now().plus_ms(60_000),
        },
        on_behalf_of: None,
        cause: Cause::root(),
        idempotency_key: key.map(Arc::from),
        received_at: Timestamp::now(),
    }
}

fn external(dataset: &str) -> (SubmitJob, Vec<u8>) {
    let raw = serde_json::json!({ "agent": "external", "dataset_id": dataset }).to_string().into_bytes();
    (serde_json::from_slice(&raw).unwrap(), raw)
}

async fn core(home: &Home) -> Core {
    core_with(home, &[]).await
}

async fn core_with(home: &Home, set: &[(&str, &str)]) -> Core {
    let config = Config::defaults_in(home.path(), &[&home.settings()[..], set].concat()).unwrap();
    Core::start(&config, Metrics::new(), own_events().0).await.unwrap()
}

fn job_id(body: &[u8]) -> Id {
    serde_json::from_slice::<serde_json::Value>(body).unwrap()["id"].as_str().unwrap().parse().unwrap()
}

/// Submits a job that nobody has to run here.
async fn submit(core: &Core, dataset: &str) -> Id {
    let (request, raw) = external(dataset);
    let answer = core.service.submit(&context("ada", None), request, &raw).await.unwrap();
    job_id(&answer.body)
}

/// Waits until every leg is settled and every consumer is done with every event of a job.
async fn settled(core: &Core, id: Id) {
    let wait = async {
        loop {
            let deliveries = core.store.job_deliveries(id, None, 500).await.unwrap();
            let legs = deliveries
                .iter()
                .all(|d| d.legs.iter().all(|leg| matches!(leg.state, LegState::Done | LegState::Skipped)));
            let effects = deliveries.iter().all(|d| {
                core.declarations
                    .iter()
                    .filter(|c| c.handles(&d.event.event_type.name))
                    .all(|c| d.effects.iter().any(|e| &*e.consumer == c.name && e.state == EffectState::Done))
            });
            if legs && effects && !deliveries.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("every delivery settles");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_all_the_way() {
    let home = Home::new();
    let core = core(&home).await;
    let (request, raw) = external("dataset-1");
    let answer = core.service.submit(&context("ada", Some("k1")), request.clone(), &raw).await.unwrap();
    assert_eq!((answer.status, answer.repeated), (201, false));
    let id = job_id(&answer.body);

    let again = core.service.submit(&context("ada", Some("k1")), request.clone(), &raw).await.unwrap();
    assert!(again.repeated);
    assert_eq!(again.body, answer.body);
    let (_, other) = external("dataset-2");
    let reused = core.service.submit(&context("ada", Some("k1")), request, &other).await.unwrap_err();
    assert!(matches!(reused, ServiceError::KeyReused), "{reused}");

    let worker: Arc<str> = "worker-1".into();
    let claimed = core.service.claim_external(&worker, &ClaimRequest { agents: vec![], max: 10 }).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].id, id);
    for status in ["RUNNING", "COMPLETED", "COMPLETED"] {
        let report: StatusReport =
            serde_json::from_value(serde_json::json!({ "attempt": 1, "status": status })).unwrap();
        core.service.report_status(id, &worker, report, &Cause::root()).await.unwrap();
    }
    let job = core.store.job(id).await.unwrap().unwrap();
    assert_eq!(job.status, JobStatus::Completed);
    settled(&core, id).await;

    let events = core.store.aggregate_events("job", &id.to_string(), 0, 100).await.unwrap();
    let summary = async {
        loop {
            let events = core.store.aggregate_events("job", &id.to_string(), 0, 100).await.unwrap();
            if events.len() == 5 {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let events = tokio::time::timeout(LIMIT, summary).await.unwrap_or(events);
    let names: Vec<&str> = events.iter().map(|event| &*event.event_type.name).collect();
    assert_eq!(
        names,
        ["job.submitted", "job.status.changed", "job.status.changed", "job.completed", "job.performance.summary"]
    );
    assert!(events.iter().enumerate().all(|(i, event)| event.sequence == i as i64 + 1));
    core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_gateway_owed_is_delivered_by_the_next() {
    let home = Home::new();
    let first = core(&home).await;
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.push(submit(&first, &format!("d{n}")).await);
    }
    first.stop().await;
    let second = core(&home).await;
    assert_eq!(second.epoch, 2);
    for id in ids {
        settled(&second, id).await;
    }
    second.stop().await;
}

/// Acknowledgements are gathered; those that are still owed at the end are paid then.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_consumed_before_a_stop_is_not_consumed_again() {
    let home = Home::new();
    let first = core(&home).await;
    settled(&first, submit(&first, "before").await).await;
    first.stop().await;

    let second = core(&home).await;
    settled(&second, submit(&second, "after").await).await;
    for consumer in second.declarations.iter().map(|declaration| declaration.name) {
        assert_eq!(second.metrics.consumer(consumer).inbox_hits.get(), 0, "{consumer}");
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_is_retried_on_time_until_its_retries_are_used() {
    let home = Home::new();
    let core = core(&home).await;
    let raw = serde_json::json!({ "agent": "external", "dataset_id": "x", "max_retries": 1 }).to_string();
    let request: SubmitJob = serde_json::from_str(&raw).unwrap();
    let answer = core.service.submit(&context("ada", None), request, raw.as_bytes()).await.unwrap();
    let id = job_id(&answer.body);
    let worker: Arc<str> = "w".into();
    for attempt in 1..=2u32 {
        let claim = async {
            loop {
                let request = ClaimRequest { agents: vec![], max: 1 };
                if let Some(job) = core.service.claim_external(&worker, &request).await.unwrap().pop() {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let job = tokio::time::timeout(LIMIT, claim).await.expect("it is queued again");
        assert_eq!((job.id, job.attempt), (id, attempt));
        let report: StatusReport = serde_json::from_value(serde_json::json!({
            "attempt": attempt, "status": "FAILED",
            "error": { "code": "node_failure", "message": "the node went away", "retriable": true },
        }))
        .unwrap();
        core.service.report_status(id, &worker, report, &Cause::root()).await.unwrap();
    }
    let job = core.store.job(id).await.unwrap().unwrap();
    assert_eq!((job.status, job.retry_at, job.retry_count), (JobStatus::Failed, None, 1));
    settled(&core, id).await;
    core.stop().await;
}

/// A job whose messages were all confirmed and then lost.
async fn lost(core: &Core) -> Id {
    // One more like it, which only the store knows.
    let job = core.store.job(submit(core, "lost").await).await.unwrap().unwrap();
    let job = Job { id: Id::new(), ..job };
    let cause = Cause::root();
    let draft = |event| core.service.factory().job_event(&job, event, &cause, job.created_at).unwrap();
    let drafts = submission_events(&job).iter().map(draft).collect();
    let write = JobWrite { job_id: job.id, command: JobCommand::Submit(Box::new(job.clone())), cause, drafts };
    let unit = Unit { jobs: vec![write], ..Unit::default() };
    let events = match core.store.commit(Arc::new(vec![unit])).await.unwrap().pop() {
        Some(Outcome::Committed { events, .. }) => events,
        other => panic!("{other:?}"),
    };
    let mark = |position, broker, partition| LegMark {
        position,
        broker,
        state: LegState::Done,
        attempts: 1,
        partition: Some(partition),
        offset: None,
        at: Timestamp::now(),
        next_at: None,
        error: None,
        skip: None,
    };
    let marks = events.iter().flat_map(|event| event.event_type.brokers().iter().map(|b| mark(event.position, *b, 0)));
    let unit = Unit { marks: marks.collect(), ..Unit::default() };
    core.store.commit(Arc::new(vec![unit])).await.unwrap();
    job.id
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmed_messages_that_never_come_are_made_up_for() {
    let home = Home::new();
    let core = core_with(&home, &[("consumer.overdue_after", "1s")]).await;
    let consumers = [audit::declaration().name, metrics::declaration().name];
    let begun = async {
        for consumer in consumers {
            while core.store.read_model(overdue::MODEL, consumer).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(LIMIT, begun).await.expect("the search begins");
    let lost = lost(&core).await;
    // Others come to every partition of the topic.
    let mut later = Vec::new();
    for n in 0..100 {
        later.push(submit(&core, &format!("d{n}")).await);
    }
    settled(&core, lost).await;
    for id in later {
        settled(&core, id).await;
    }
    for consumer in consumers {
        assert_eq!(core.metrics.consumer(consumer).overdue.get(), 1, "{consumer}");
    }
    core.stop().await;
}
