//! The gateway's side: store, live consumer, rooms, sockets; the broadcast queue is full
//! from the start, so that everything goes as fast as the sockets allow.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::serve::ListenerExt;
use event_gateway::auth::Authenticator;
use event_gateway::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Subscriber, Subscription, SubscriptionLost,
};
use event_gateway::config::Config;
use event_gateway::consumer::live::{Live, own_events};
use event_gateway::domain::catalogue::Catalogue;
use event_gateway::domain::event::Headers;
use event_gateway::domain::factory::{Cause, EventFactory};
use event_gateway::domain::job::{
    Job, JobCommand, JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem, submission_events,
};
use event_gateway::domain::{Channel, Id, Role, Timestamp};
use event_gateway::realtime::{Options, Realtime};
use event_gateway::store::sqlite::SqliteStore;
use event_gateway::store::{JobWrite, Store, Unit};
use event_gateway::telemetry::Metrics;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{Crowd, Figures, cpu_seconds, resident_bytes};

const SECRET: &str = "a secret for benches that is long enough, and only for benches";
const PAYLOAD: &str = r#"{"job_id":"0196f0c4-8a30-7cc1-9a3e-2f1f6f3f9b11","previous_status":"RUNNING","new_status":"RUNNING","attempt":1,"progress":0.4375,"reason":"calibrating baseline 21 of 48","transition_time_ms":1250}"#;

/// What a browser gets for [`PAYLOAD`].
pub fn envelope() -> String {
    let channel = "job:0196f0c4-8a30-7cc1-9a3e-2f1f6f3f9b11";
    format!(
        r#"{{"event_id":"0196f0c4-9b41-7dd2-8b4f-301070400c22","type":"job.status.changed","job_id":"{}","user_id":"ada","timestamp":"2026-11-21T09:30:00.123Z","sequence":1234,"channel":"{channel}","offset":1234,"data":{PAYLOAD}}}"#,
        &channel[4..],
    )
}

pub async fn run(sockets: usize, updates: usize) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::defaults_in(
        dir.path(),
        &[("auth.jwt_secret", SECRET), ("live.ping_interval", "300s"), ("live.max_connections_per_user", "10000")],
    )
    .unwrap();
    let catalogue = Catalogue::load(&[]).unwrap();
    let factory = Arc::new(EventFactory::new(catalogue.clone(), HashSet::new(), 512_000));
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.path().join("gateway.db"), factory.clone()).await.unwrap());
    let auth = Authenticator::new(&config.auth, dir.path()).unwrap();
    let metrics = Metrics::new();
    let realtime = Realtime::new(Options::from(&config.live), store.clone(), auth.clone(), metrics.clone());
    let (queue, broadcast) = mpsc::unbounded_channel();
    let live = Live {
        realtime: realtime.clone(),
        store: store.clone(),
        subscriber: Arc::new(Broadcast(Mutex::new(Some(broadcast)))),
        catalogue,
        metrics: metrics.clone(),
        instance: "bench".into(),
        epoch: 1,
    };
    let stop = CancellationToken::new();
    let tasks = live.spawn(own_events().1, &stop);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tuning = realtime.clone();
    let listener = listener.tap_io(move |stream| tuning.tune(stream).unwrap());
    let routes = realtime.routes();
    let serving = event_gateway::task::spawn("gateway", async move {
        axum::serve(listener, routes).await.unwrap();
    });
    let running = event_gateway::task::spawn("realtime", realtime.clone().run(stop.clone()));

    let job = submit(&*store, &factory).await;
    let token = auth.issue_token("ada", &[Role::User], Duration::from_secs(3600)).unwrap();
    let before = resident_bytes();
    let join = format!(r#"["join_job_channel",{{"jobId":"{job}","lastOffset":1}}]"#);
    let mut crowd = Crowd::gather(address, sockets, &format!(r#"{{"token":"{token}"}}"#), &join).await;
    assert_eq!(realtime.progress(&Channel::Job(job)).len(), sockets);
    let idle_bytes = (resident_bytes() - before) / sockets as f64;

    let deliveries: Vec<Delivery> = (0..updates as i64).map(|n| delivery(job, 2 + n)).collect();
    let (cpu, start) = (cpu_seconds(), Instant::now());
    for delivery in deliveries {
        queue.send(delivery).unwrap();
    }
    let expected = (sockets * updates) as u64;
    let (received, end) = crowd.received(expected).await;
    let cpu_seconds = cpu_seconds() - cpu;
    crowd.end().await;
    stop.cancel();
    serving.abort();
    for task in tasks {
        task.await.unwrap();
    }
    running.await.unwrap();
    Figures {
        expected,
        received,
        seconds: (end - start).as_secs_f64(),
        cpu_seconds,
        idle_bytes,
        bytes: envelope().len(),
    }
}

/// A job for the owner checks: offset 1 of its channel.
async fn submit(store: &dyn Store, factory: &EventFactory) -> Id {
    let now = Timestamp::now();
    let job = Job {
        id: Id::new(),
        user_id: "ada".into(),
        name: "watched".into(),
        agent: "external".into(),
        runner: RunnerKind::External,
        dataset_id: "data".into(),
        tacc_system: TaccSystem::Frontera,
        external_job_id: None,
        status: JobStatus::Queued,
        progress: None,
        priority: Priority::Normal,
        params: serde_json::value::RawValue::from_string("{}".into()).unwrap().into(),
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
    let drafts =
        submission_events(&job).iter().map(|event| factory.job_event(&job, event, &cause, now).unwrap()).collect();
    let id = job.id;
    let write = JobWrite { job_id: id, command: JobCommand::Submit(Box::new(job)), cause, drafts };
    let unit = Unit { jobs: vec![write], ..Unit::default() };
    store.commit(Arc::new(vec![unit])).await.unwrap();
    id
}

fn delivery(job: Id, offset: i64) -> Delivery {
    let headers = Headers {
        event_id: Id::new(),
        event_type: "job.status.changed".into(),
        aggregate_type: "job".into(),
        aggregate_id: job.to_string().into(),
        sequence: offset,
        user_id: "ada".into(),
        occurred_at: Timestamp::now(),
        correlation_id: Id::new(),
        causation_id: None,
        schema_version: 1,
        tags: Vec::new(),
        // Only the job's room is measured.
        user_offset: None,
        traceparent: None,
    };
    Delivery {
        headers: Ok(Arc::new(headers)),
        encoding: Encoding::Json,
        body: PAYLOAD.into(),
        position: Position { log: "bench".into(), partition: 0, offset: None },
        key: "job.status".into(),
        token: AckToken(offset.unsigned_abs()),
        redelivered: false,
    }
}

struct Broadcast(Mutex<Option<mpsc::UnboundedReceiver<Delivery>>>);

#[async_trait]
impl Subscriber for Broadcast {
    async fn subscribe(&self, _: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let queue = self.0.lock().await.take().ok_or(SubscriptionLost("once".into()))?;
        Ok(Box::new(Queue(queue)))
    }
}

struct Queue(mpsc::UnboundedReceiver<Delivery>);

#[async_trait]
impl Inbound for Queue {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let mut batch = Vec::new();
        match self.0.recv_many(&mut batch, max).await {
            0 => Err(SubscriptionLost("the bench is over".into())),
            _ => Ok(batch),
        }
    }

    async fn ack(&mut self, _: &[AckToken]) -> Result<(), SubscriptionLost> {
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        None
    }
}
