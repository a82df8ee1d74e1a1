//! Relays of several instances on one store, publishing to one Kafka (embedded): each what
//! it has committed, and what others have left.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::embedded::{Embedded, EmbeddedTopology};
use event_gateway::domain::job::{Job, JobCommand, Report};
use event_gateway::domain::{Broker, Timestamp};
use event_gateway::relay::{Held, LeaseKeeper, Marks, Relay, RelayOptions};
use event_gateway::service::committer::{Committer, CommitterOptions};
use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use event_gateway::store::{Outcome, Store, Unit};
use event_gateway::task;
use event_gateway::telemetry::Metrics;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Schema;
use crate::fixture::{command, factory, job, submit};

const LEASE: Duration = Duration::from_secs(2);
const OPTIONS: RelayOptions =
    RelayOptions { lanes: 2, lane_capacity: Held { events: 64, bytes: 1 << 20 }, window: 16, spacing: Duration::ZERO };

/// The brokers, and the file they keep.
struct Brokers {
    dir: tempfile::TempDir,
    embedded: Embedded,
}

impl Brokers {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let topology = EmbeddedTopology::from_catalogue(factory().catalogue(), Vec::new());
        let embedded = Embedded::open(&dir.path().join("brokers.db"), topology).await.unwrap();
        Self { dir, embedded }
    }
}

/// An instance's store, committer and relay.
struct Instance {
    committer: Committer,
    relay: Arc<Relay>,
    store: Arc<dyn Store>,
    keeper: Option<LeaseKeeper>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Instance {
    /// Commits, and does nothing else yet.
    async fn start(schema: &Schema, name: &str) -> Self {
        let store = PostgresStore::open(schema.options(), factory(), PostgresOptions::default()).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let (keeper, _) = LeaseKeeper::enroll(store.clone(), name.into(), LEASE).await.unwrap();
        let metrics = Metrics::new();
        let relay = Relay::new(&[Broker::Kafka], OPTIONS, metrics.clone());
        let options = CommitterOptions { max_bytes: 10_000_000, batch_rows: 1024 };
        let (committer, task) = Committer::spawn(store.clone(), relay.clone(), options, metrics);
        let (stop, tasks) = (CancellationToken::new(), vec![task]);
        Self { committer, relay, store, keeper: Some(keeper), stop, tasks }
    }

    fn publish(&mut self, brokers: &Brokers) {
        let keeper = self.keeper.as_ref().expect("before it keeps its lease");
        let publishers = [brokers.embedded.publisher(Broker::Kafka)];
        let marks: Arc<dyn Marks> = Arc::new(self.committer.clone());
        let lanes = self.relay.spawn(&publishers, &self.store, &marks, &keeper.watch(), OPTIONS, &self.stop);
        self.tasks.extend(lanes.handles);
    }

    /// Until then it is as good as frozen.
    fn keep_lease(&mut self) {
        let keeper = self.keeper.take().expect("once");
        let stop = self.stop.clone();
        self.tasks.push(task::spawn("lease", async move {
            keeper.run(stop).await;
        }));
    }

    async fn running(schema: &Schema, name: &str, brokers: &Brokers) -> Self {
        let mut instance = Self::start(schema, name).await;
        instance.publish(brokers);
        instance.keep_lease();
        instance
    }

    async fn commit(&self, unit: Unit) {
        let outcome = self.committer.accept(unit).await;
        assert!(matches!(outcome, Ok(Outcome::Committed { .. })), "{outcome:?}");
    }

    /// As SIGKILL does it.
    async fn kill(self) {
        for task in self.tasks {
            task.abort();
            assert!(task.await.is_err_and(|error| error.is_cancelled()));
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.committer.close();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.store.close().await;
    }
}

/// What happens to a job, step by step; any instance may do the next.
fn step(job: &Job, number: usize) -> Unit {
    let lease_until = Timestamp::now().plus_ms(60_000);
    let report = |report| JobCommand::Report { claimant: "w".into(), attempt: 1, report };
    match number {
        0 => submit(job),
        1 => command(job.id, JobCommand::Claim { claimant: "w".into(), lease_until, start: true }),
        STEPS => command(job.id, report(Report::Cancelled { reason: "enough".into() })),
        _ => {
            let progress = Some(number as f64 / STEPS as f64);
            command(job.id, report(Report::Running { progress, reason: None, external_job_id: None }))
        }
    }
}

const STEPS: usize = 7;

/// Waits until nothing is owed to Kafka.
async fn settled(schema: &Schema) {
    let mut session = schema.session().await;
    let wait = async {
        let sql = "SELECT count(*) FROM legs WHERE broker = 2 AND state <> 1";
        while sqlx::query(sql).fetch_one(&mut session).await.unwrap().get::<i64, _>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("every leg is done within seconds");
}

/// Every committed event is in its log, first occurrences in the order of their sequences.
/// Returns (events, repeats).
async fn in_order(schema: &Schema, brokers: Brokers) -> (usize, usize) {
    brokers.embedded.shutdown().await;
    let committed = "SELECT e.event_id::text FROM events AS e JOIN legs AS l USING (position) WHERE l.broker = 2";
    let committed = sqlx::query(committed).fetch_all(&mut schema.session().await).await.unwrap();
    let committed: HashSet<String> = committed.iter().map(|row| row.get(0)).collect();
    let records = records(brokers.dir.path()).await;
    let (mut seen, mut last) = (HashSet::new(), HashMap::new());
    for headers in &records {
        if seen.insert(headers["event_id"].as_str().unwrap().to_owned()) {
            let key = format!("{} {}", headers["aggregate_type"], headers["aggregate_id"]);
            let sequence = headers["sequence"].as_i64().unwrap();
            let before = last.insert(key.clone(), sequence).unwrap_or(0);
            assert!(before < sequence, "{key}: {sequence} after {before}");
        }
    }
    assert_eq!(seen, committed);
    (seen.len(), records.len() - seen.len())
}

async fn records(dir: &Path) -> Vec<serde_json::Value> {
    let mut logs = SqliteConnectOptions::new().filename(dir.join("brokers.db")).connect().await.unwrap();
    let sql = "SELECT headers FROM records AS r JOIN partitions AS p ON p.id = r.partition_id WHERE p.broker = 2 \
               ORDER BY r.id";
    let rows = sqlx::query(sql).fetch_all(&mut logs).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jobs_events_keep_their_order_whoever_commits_them() {
    let Some(schema) = Schema::create().await else { return };
    let brokers = Brokers::start().await;
    let instances = [
        Instance::running(&schema, "one", &brokers).await,
        Instance::running(&schema, "two", &brokers).await,
        Instance::running(&schema, "three", &brokers).await,
    ];
    let jobs: Vec<Job> = (0..40).map(|n| job(&format!("user {}", n % 4))).collect();
    for number in 0..=STEPS {
        for (index, job) in jobs.iter().enumerate() {
            instances[(index + number) % instances.len()].commit(step(job, number)).await;
        }
    }
    settled(&schema).await;
    for instance in instances {
        instance.stop().await;
    }
    let (events, repeats) = in_order(&schema, brokers).await;
    assert!(events > jobs.len() * STEPS, "{events}");
    assert_eq!(repeats, 0, "nobody published for another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_instance_has_left_is_published_by_another() {
    let Some(schema) = Schema::create().await else { return };
    let brokers = Brokers::start().await;
    // It dies between COMMIT and publishing.
    let mut victim = Instance::start(&schema, "victim").await;
    victim.keep_lease();
    let other = Instance::running(&schema, "other", &brokers).await;
    let jobs: Vec<Job> = (0..100).map(|_| job("ada")).collect();
    for job in &jobs {
        victim.commit(step(job, 0)).await;
        other.commit(step(job, 1)).await;
        victim.commit(step(job, 2)).await;
    }
    victim.kill().await;
    for job in &jobs {
        other.commit(step(job, 3)).await;
    }
    settled(&schema).await;
    other.stop().await;
    let (_, repeats) = in_order(&schema, brokers).await;
    assert_eq!(repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_frozen_does_no_harm_and_goes_on() {
    let Some(schema) = Schema::create().await else { return };
    let brokers = Brokers::start().await;
    let mut frozen = Instance::start(&schema, "frozen").await;
    let jobs: Vec<Job> = (0..50).map(|_| job("ada")).collect();
    for job in &jobs {
        frozen.commit(step(job, 0)).await;
    }
    // Its lease ends while it does not look.
    tokio::time::sleep(LEASE).await;
    let other = Instance::running(&schema, "other", &brokers).await;
    frozen.publish(&brokers);
    settled(&schema).await;
    for job in &jobs {
        other.commit(step(job, 1)).await;
    }
    let refused = frozen.committer.accept(step(&jobs[0], 2)).await;
    assert!(refused.is_err(), "{refused:?}");

    frozen.keep_lease();
    let wait = async {
        while frozen.committer.accept(step(&jobs[0], 2)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it enrolls again");
    for job in &jobs[1..] {
        frozen.commit(step(job, 2)).await;
        other.commit(step(job, 3)).await;
    }
    settled(&schema).await;
    for instance in [frozen, other] {
        instance.stop().await;
    }
    let (_, repeats) = in_order(&schema, brokers).await;
    assert_eq!(repeats, 0, "only one of them held what was published");
}
