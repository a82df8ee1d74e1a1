//! A gateway of store, live consumer and sockets on a TCP port of its own.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::serve::ListenerExt;
use event_gateway::auth::Authenticator;
use event_gateway::config::Config;
use event_gateway::consumer::live::{Live, OwnEvents, own_events};
use event_gateway::domain::catalogue::Catalogue;
use event_gateway::domain::factory::{Cause, EventFactory};
use event_gateway::domain::job::{
    Job, JobCommand, JobStatus, Priority, Report, ResourceRequest, RunnerKind, TaccSystem, submission_events,
};
use event_gateway::domain::{Event, Id, Role, Timestamp};
use event_gateway::realtime::{Options, Realtime};
use event_gateway::store::{JobWrite, Outcome, Store, Unit};
use event_gateway::telemetry::Metrics;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::broadcast::{Broadcast, Carrier};
use crate::client::Client;
use crate::fresh::World;
use crate::rabbit::Rabbit;

pub const SECRET: &str = "a secret for tests that is long enough, and only for tests";

pub struct Gateway {
    pub store: Arc<dyn Store>,
    pub factory: Arc<EventFactory>,
    pub auth: Arc<Authenticator>,
    pub metrics: Arc<Metrics>,
    pub realtime: Realtime,
    pub broadcast: Arc<Broadcast>,
    /// Where its committer would leave what it commits.
    pub own: OwnEvents,
    pub address: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    progress: AtomicU32,
    _dir: tempfile::TempDir,
    /// Goes after everything that uses it.
    _world: Option<World>,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::chosen_without_nats();
        let mut set = world.as_ref().map(World::pairs).unwrap_or_default();
        set.push(("auth.jwt_secret", SECRET));
        let config = Config::defaults_in(dir.path(), &set).unwrap();
        let catalogue = Catalogue::load(&[]).unwrap();
        let factory = Arc::new(EventFactory::new(catalogue.clone(), HashSet::new(), 512_000));
        let store = event_gateway::app::open_store(&config, factory.clone()).await.unwrap();
        // Nobody renews it.
        store.enroll("test", Duration::from_secs(3600)).await.unwrap();
        let auth = Authenticator::new(&config.auth, dir.path()).unwrap();
        let metrics = Metrics::new();
        let mut options = Options::from(&config.live);
        change(&mut options);
        let realtime = Realtime::new(options, store.clone(), auth.clone(), metrics.clone());
        let carrier = match &world {
            None => Carrier::Held(Arc::default()),
            Some(_) => Carrier::Rabbit(Rabbit::open(&config, &catalogue).await),
        };
        let broadcast = Broadcast::over(carrier);
        let stop = CancellationToken::new();
        let live = Live {
            realtime: realtime.clone(),
            store: store.clone(),
            subscriber: broadcast.subscriber(),
            catalogue,
            metrics: metrics.clone(),
            instance: "test".into(),
            epoch: 1,
        };
        let (own, committed) = own_events();
        let mut tasks = live.spawn(committed, &stop);
        broadcast.subscribed().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tuning = realtime.clone();
        let listener = listener.tap_io(move |stream| tuning.tune(stream).unwrap());
        let router = realtime.routes();
        let closing = stop.clone();
        tasks.push(event_gateway::task::spawn("test-listener", async move {
            let serving = axum::serve(listener, router);
            tokio::select! {
                served = serving => served.unwrap(),
                () = closing.cancelled() => {}
            }
        }));
        tasks.push(event_gateway::task::spawn("test-realtime", realtime.clone().run(stop.clone())));
        Self {
            store,
            factory,
            auth,
            metrics,
            realtime,
            broadcast,
            own,
            address,
            stop,
            tasks,
            // 0 is where a job starts: a repeat.
            progress: AtomicU32::new(1),
            _dir: dir,
            _world: world,
        }
    }

    /// Stops as the gateway does; returns when everything has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.broadcast.stop().await;
        self.store.close().await;
    }

    pub fn token(&self, user: &str, role: Role) -> String {
        self.token_for(user, role, Duration::from_secs(3600))
    }

    pub fn token_for(&self, user: &str, role: Role, ttl: Duration) -> String {
        self.auth.issue_token(user, &[role], ttl).unwrap()
    }

    /// A client of `user`, connected.
    pub async fn client(&self, user: &str) -> Client {
        Client::connect(self.address, &self.token(user, Role::User)).await.unwrap()
    }

    pub async fn operator(&self) -> Client {
        Client::connect(self.address, &self.token("olga", Role::Operator)).await.unwrap()
    }

    // --- Events ----------------------------------------------------------------------------

    /// Commits units and hands their events to the broadcast queue.
    pub async fn commit(&self, units: Vec<Unit>) -> Vec<Arc<Event>> {
        let outcomes = self.store.commit(Arc::new(units)).await.unwrap();
        let mut all = Vec::new();
        for outcome in outcomes {
            let Outcome::Committed { events, .. } = outcome else { panic!("{outcome:?}") };
            all.extend(events);
        }
        self.broadcast.send(&all).await;
        all
    }

    /// A queued job of `user`: offset 1 of its channel.
    pub async fn submit(&self, user: &str) -> Id {
        let (id, unit) = self.submission(user);
        self.commit(vec![unit]).await;
        id
    }

    pub fn submission(&self, user: &str) -> (Id, Unit) {
        let now = Timestamp::now();
        let job = Job {
            id: Id::new(),
            user_id: user.into(),
            name: "a job".into(),
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
        let drafts = submission_events(&job)
            .iter()
            .map(|event| self.factory.job_event(&job, event, &cause, now).unwrap())
            .collect();
        let write = JobWrite { job_id: job.id, command: JobCommand::Submit(Box::new(job.clone())), cause, drafts };
        (job.id, Unit { jobs: vec![write], ..Unit::default() })
    }

    /// Claims and starts it: offset 2.
    pub async fn begin(&self, job: Id) {
        let command = JobCommand::Claim {
            claimant: "worker".into(),
            lease_until: Timestamp::now().plus_ms(3_600_000),
            start: true,
        };
        self.commit(vec![unit(job, command)]).await;
    }

    /// A running job of `user`: offsets 1 and 2 of its channel.
    pub async fn running(&self, user: &str) -> Id {
        let job = self.submit(user).await;
        self.begin(job).await;
        job
    }

    /// One more update of a running job: one event, one offset.
    pub fn progress(&self, job: Id) -> Unit {
        // Never the same twice, since a repeat writes nothing.
        let step = self.progress.fetch_add(1, Ordering::Relaxed);
        let progress = Some(f64::from(step % 1_000_000) / 1_000_000.0);
        let report = Report::Running { progress, reason: None, external_job_id: None };
        unit(job, JobCommand::Report { claimant: "worker".into(), attempt: 1, report })
    }

    /// `count` updates of a running job, one COMMIT each.
    pub async fn report(&self, job: Id, count: usize) {
        for _ in 0..count {
            self.commit(vec![self.progress(job)]).await;
        }
    }

    /// One update with a body of about `bytes`.
    pub fn bulky(&self, job: Id, bytes: usize) -> Unit {
        let step = self.progress.fetch_add(1, Ordering::Relaxed);
        let report = Report::Running {
            progress: Some(f64::from(step % 1_000_000) / 1_000_000.0),
            reason: Some("x".repeat(bytes)),
            external_job_id: None,
        };
        unit(job, JobCommand::Report { claimant: "worker".into(), attempt: 1, report })
    }
}

fn unit(job_id: Id, command: JobCommand) -> Unit {
    let write = JobWrite { job_id, command, cause: Cause::root(), drafts: Vec::new() };
    Unit { jobs: vec![write], ..Unit::default() }
}

/// Waits for something that comes about elsewhere.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(crate::client::PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}
