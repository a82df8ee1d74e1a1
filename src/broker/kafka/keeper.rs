//! Prepares topics and schemas, and watches that everything stays as it must be: topics that somebody
//! deletes are declared again.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::Metadata;
use tokio::time::Instant;

use super::connection::{self, Context};
use super::{CLOSED, KafkaError, Shared, topology};
pub use crate::telemetry::readiness::Standing as Health;

/// Between two looks while all is well, and while something is not.
const CALM: Duration = Duration::from_secs(5);
const TROUBLED: Duration = Duration::from_secs(1);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(4);
/// Between two attempts to prepare what only somebody's hand can change.
const MISMATCH: Duration = Duration::from_secs(30);

/// What Kafka and the registry are like. `prepared` is false until topics and schemas are
/// declared and compared: nothing is published before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaHealth {
    pub prepared: bool,
    pub cluster: Health,
    pub registry: Health,
}

impl KafkaHealth {
    pub(super) fn starting() -> Self {
        let starting = Health::Down("not connected yet".to_owned());
        Self { prepared: false, cluster: starting.clone(), registry: starting }
    }

    /// Why nothing can be published yet.
    pub(super) fn not_prepared(&self) -> Option<String> {
        if self.prepared {
            return None;
        }
        Some(match (&self.cluster, &self.registry) {
            (Health::Down(why), _) | (_, Health::Down(why)) => why.clone(),
            _ => "topics and schemas are not checked yet".to_owned(),
        })
    }
}

/// Declares topics, then schemas.
pub(super) async fn prepare(shared: &Shared) -> Result<(), KafkaError> {
    let topics = topology::declare(shared).await;
    set(shared, |health| health.cluster = outcome(&topics));
    topics?;
    shared.complaints.clear();
    let schemas = shared.schemas.prepare().await;
    set(shared, |health| health.registry = outcome(&schemas));
    schemas?;
    set(shared, |health| health.prepared = true);
    Ok(())
}

fn outcome(result: &Result<(), KafkaError>) -> Health {
    match result {
        Ok(()) => Health::Up,
        Err(error) => Health::Down(error.to_string()),
    }
}

fn set(shared: &Shared, change: impl FnOnce(&mut KafkaHealth)) {
    shared.health.send_if_modified(|health| {
        let before = health.clone();
        change(health);
        *health != before
    });
}

/// A window was not confirmed at all. What the brokers say about themselves may look well: without
/// a majority of controllers nobody notes that the others have gone.
pub(super) fn unconfirmed(shared: &Shared, why: &str) {
    if shared.closing.is_cancelled() {
        return;
    }
    *shared.unconfirmed.lock() = Some(why.to_owned());
    set(shared, |health| {
        if !matches!(health.cluster, Health::Down(_)) {
            health.cluster = Health::Down(nothing_is_confirmed(why));
        }
    });
}

fn nothing_is_confirmed(why: &str) -> String {
    format!("nothing is confirmed: {why}")
}

/// Something was; the next look says so.
pub(super) fn confirmed(shared: &Shared) {
    *shared.unconfirmed.lock() = None;
}

/// Runs until Kafka is shut down.
pub(super) async fn run(shared: Arc<Shared>, mut prepared: bool) {
    let mut keeper = Keeper { shared: shared.clone(), watcher: None, given_up: None };
    while !shared.closing.is_cancelled() {
        let pause = if prepared {
            keeper.look().await
        } else {
            match prepare(&shared).await {
                Ok(()) => {
                    prepared = true;
                    TROUBLED
                }
                Err(error) if error.is_passing() => TROUBLED,
                Err(error) => {
                    tracing::error!(%error, "Kafka cannot be used as it is");
                    MISMATCH
                }
            }
        };
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    // Ending a client joins its threads.
    let _ = tokio::task::spawn_blocking(move || drop(keeper)).await;
}

type Watcher = Arc<BaseConsumer<Watching>>;

/// The watcher's client reads metadata only.
struct Watching(Context);

impl rdkafka::ClientContext for Watching {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Watching {}

/// What looks remember.
struct Keeper {
    shared: Arc<Shared>,
    watcher: Option<Watcher>,
    /// When to try to declare topics again that are gone, and why they cannot be.
    given_up: Option<(Instant, String)>,
}

impl Keeper {
    async fn look(&mut self) -> Duration {
        let cluster = self.cluster().await;
        let registry = outcome(&self.shared.schemas.verify().await);
        let calm = !matches!(cluster, Health::Down(_)) && registry == Health::Up;
        set(&self.shared, |health| {
            health.cluster = cluster;
            health.registry = registry;
        });
        if calm { CALM } else { TROUBLED }
    }

    async fn cluster(&mut self) -> Health {
        let client = match &self.watcher {
            Some(client) => client.clone(),
            None => {
                let context = Watching(Context(self.shared.complaints.clone()));
                match connection::open(connection::client(&self.shared.config), context).await {
                    Ok(client) => self.watcher.insert(Arc::new(client)).clone(),
                    Err(error) => return Health::Down(error.to_string()),
                }
            }
        };
        let shared = self.shared.clone();
        let fetched = tokio::task::spawn_blocking(move || {
            // Serves what the client has to say.
            let _ = client.poll(Duration::ZERO);
            let metadata = client.fetch_metadata(None, LOOK)?;
            compare(&shared, client.client());
            Ok::<_, rdkafka::error::KafkaError>(metadata)
        });
        match fetched.await {
            Ok(Ok(metadata)) => {
                let gone = gone(&self.shared, &metadata).join(", ");
                if !gone.is_empty() {
                    return Health::Down(self.declare_again(&gone).await);
                }
                self.given_up = None;
                let health = judged(&self.shared, &metadata);
                if health == Health::Up {
                    self.shared.complaints.clear();
                }
                health
            }
            Ok(Err(error)) => Health::Down(self.shared.unreachable(&error).to_string()),
            Err(error) => Health::Down(error.to_string()),
        }
    }

    /// Somebody deleted topics: what was in them is lost, what is still owed to them waits in the
    /// store and needs a place to go. Says what became of it.
    async fn declare_again(&mut self, gone: &str) -> String {
        if let Some((until, why)) = &self.given_up
            && Instant::now() < *until
        {
            return why.clone();
        }
        let declared = tokio::select! {
            declared = topology::declare(&self.shared) => declared,
            () = self.shared.closing.cancelled() => return CLOSED.to_owned(),
        };
        match declared {
            Ok(()) => {
                tracing::error!(
                    topics = gone,
                    "deleted Kafka topics are declared again, empty: what outside consumers had not read is lost"
                );
                format!("topics were deleted and are declared again, empty: {gone}")
            }
            Err(error) => {
                let why = format!("topics were deleted ({gone}): {error}");
                if !error.is_passing() {
                    tracing::error!(topics = gone, %error, "Kafka topics were deleted and are not declared again");
                    self.given_up = Some((Instant::now() + MISMATCH, why.clone()));
                }
                why
            }
        }
    }
}

/// Consumers must not go on in a topic that has taken the place of theirs.
fn compare(shared: &Shared, client: &Client<Watching>) {
    let members: Vec<_> = shared.members.lock().iter().filter_map(Weak::upgrade).collect();
    if members.is_empty() || shared.closing.is_cancelled() {
        return;
    }
    let topics: Vec<_> = shared.topology.topics.iter().map(|topic| topic.name.clone()).collect();
    let now = shared.identities.of(client, &topics);
    members.iter().for_each(|member| member.compare(&now));
}

/// The topics that somebody deleted.
fn gone<'s>(shared: &'s Shared, metadata: &Metadata) -> Vec<&'s str> {
    let topics = shared.topology.topics.iter().map(|topic| &*topic.name);
    topics.filter(|name| !metadata.topics().iter().any(|known| known.name() == *name)).collect()
}

/// Names the topics that cannot be written to.
fn judged(shared: &Shared, metadata: &Metadata) -> Health {
    let mut faults = BTreeSet::new();
    let mut missed = 0;
    for topic in &shared.topology.topics {
        let Some(known) = metadata.topics().iter().find(|known| known.name() == &*topic.name) else { continue };
        let partitions = known.partitions();
        let headless = partitions.iter().filter(|partition| partition.leader() < 0).count();
        let thin = partitions.iter().filter(|p| p.isr().len() < shared.config.min_insync as usize).count();
        if headless > 0 {
            faults.insert(format!("{headless} partitions of {} have no leader", topic.name));
        } else if thin > 0 {
            let least = shared.config.min_insync;
            faults.insert(format!("{thin} partitions of {} have fewer than {least} replicas in sync", topic.name));
        }
        missed += partitions.iter().filter(|partition| partition.isr().len() < partition.replicas().len()).count();
    }
    if !faults.is_empty() {
        return Health::Down(faults.into_iter().collect::<Vec<_>>().join("; "));
    }
    let unconfirmed = shared.unconfirmed.lock().as_deref().map(nothing_is_confirmed);
    if let Some(why) = unconfirmed.or_else(|| late(shared)) {
        return Health::Down(why);
    }
    match missed {
        0 => Health::Up,
        _ => Health::Degraded(format!(
            "{missed} partitions have not all of their replicas in sync; {} brokers are there: {}",
            metadata.brokers().len(),
            metadata
                .brokers()
                .iter()
                .map(|broker| format!("{}:{}", broker.host(), broker.port()))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

/// The cluster is well as it sees itself, but not as it is seen from here: a broker that leads does not
/// answer.
fn late(shared: &Shared) -> Option<String> {
    let (records, since) = shared.underway.late(shared.config.delivery_timeout)?;
    let complaint = shared.complaints.in_brackets();
    let since = Duration::from_secs(since.as_secs());
    (since > shared.config.request_timeout).then(|| {
        let since = humantime::format_duration(since);
        format!("{records} records are not confirmed, one for {since}: a partition's leader does not answer{complaint}")
    })
}
