//! RabbitMQ, Kafka and NATS JetStream with nothing installed: one partitioned, durable
//! log engine on a SQLite file of its own, behind three thin faces.
//!
//! `topology` says what there is, `publisher` and `subscriber` are the faces, `engine`
//! what they share. `records` reads the file beside them. `log` holds the newest messages, `group` where each consumer stands,
//! `writer` is the only task that writes, `database` has every SQL statement, `retention`
//! deletes. A confirm means written, not synced: after a power loss the newest records
//! may be gone, which `Embedded::ends` lets the store's owner find out.

mod database;
mod engine;
mod group;
mod log;
mod partitioner;
mod pattern;
mod publisher;
mod records;
mod retention;
mod subscriber;
mod topology;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

pub use self::log::Message;
pub use self::records::EmbeddedLog;
pub use self::topology::{EmbeddedTopology, Exchange, Limits, Retention, Stream, Topic};

use self::database::Database;
use self::engine::Engine;
use self::log::Partition;
use self::topology::{LogSpec, Reads};
use self::writer::WriterTask;
use super::{Publisher, Subscriber};
use crate::domain::Broker;

/// How long `shutdown` waits for the writer.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// The most `records` returns at once.
const MAX_RECORDS: usize = 1000;

/// Why the embedded brokers did not open or answer.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The topology contradicts itself; every contradiction is listed.
    #[error("embedded brokers: {}", .0.join("; "))]
    Topology(Vec<String>),
    #[error("embedded brokers: {path}: {source}")]
    Database { path: PathBuf, source: sqlx::Error },
    #[error("embedded brokers: {0}")]
    Declare(String),
    #[error("{broker} has no partition {partition} of {log}")]
    UnknownPartition { broker: Broker, log: String, partition: i32 },
}

/// Where a partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEnd {
    pub broker: Broker,
    /// Exchange, topic or stream.
    pub log: Arc<str>,
    pub partition: i32,
    /// The next offset to be given: everything below it is there or was retained away.
    pub end: i64,
}

/// The three brokers. One per process; the data directory is locked by whoever owns it.
pub struct Embedded {
    engine: Arc<Engine>,
    /// The writer and the retention, until somebody joins them.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens or creates the file, declares everything in `topology`, and starts the writer
    /// and the retention. Consumers' positions that the logs no longer reach are clamped.
    pub async fn open(path: &Path, topology: EmbeddedTopology) -> Result<Self, EmbeddedError> {
        let specs = topology.check().map_err(EmbeddedError::Topology)?;
        let failed = |source| EmbeddedError::Database { path: path.to_owned(), source };
        let (database, mut writer) = Database::open(path, topology.limits.max_file).await.map_err(failed)?;

        shrunk(&specs, writer.partition_counts().await.map_err(failed)?)?;
        let wanted: Vec<(Broker, Arc<str>, i32)> = specs
            .iter()
            .flat_map(|log| (0..log.partitions as i32).map(|number| (log.broker, log.name.clone(), number)))
            .collect();
        let retentions = specs.iter().flat_map(|log| std::iter::repeat_n(log.retention, log.partitions as usize));
        let ids = writer.partitions(&wanted).await.map_err(failed)?;
        let mut partitions = Vec::with_capacity(ids.len());
        for (slot, ((id, place), retention)) in ids.into_iter().zip(wanted).zip(retentions).enumerate() {
            let (_, end) = writer.extent(id).await.map_err(failed)?;
            partitions.push(Arc::new(Partition::new(slot, id, place, retention, end)));
        }

        let subjects = subjects(&topology, &partitions);
        let (commands, queue) = writer::channel();
        let engine = Arc::new(Engine::new(database, topology.limits, partitions, subjects, commands));
        let task = WriterTask {
            writer,
            database: engine.database.clone(),
            partitions: engine.partitions.clone(),
            changed: engine.changed.clone(),
            memory: topology.limits.memory,
            ack_interval: topology.limits.ack_interval,
            held: VecDeque::new(),
            held_bytes: 0,
            doubtful: false,
        };
        let task = crate::task::spawn("embedded-writer", task.run(queue, engine.closing.clone()));
        let embedded = Self { engine: engine.clone(), tasks: Mutex::new(vec![task]) };

        for consumer in &topology.consumers {
            let reads = Reads::of(consumer).map_err(EmbeddedError::Declare)?;
            engine.declare(&reads).await.map_err(EmbeddedError::Declare)?;
        }
        embedded.tasks.lock().push(crate::task::spawn("embedded-retention", retention::run(engine)));
        Ok(embedded)
    }

    pub fn publisher(&self, broker: Broker) -> Arc<dyn Publisher> {
        Arc::new(publisher::EmbeddedPublisher { broker, engine: self.engine.clone() })
    }

    pub fn subscriber(&self, broker: Broker) -> Arc<dyn Subscriber> {
        Arc::new(subscriber::EmbeddedSubscriber { broker, engine: self.engine.clone() })
    }

    /// Where every partition ends. Legs that the store believes beyond an end were lost
    /// with the tail of the file and have to be published again.
    pub fn ends(&self) -> Vec<PartitionEnd> {
        let end = |partition: &Arc<Partition>| PartitionEnd {
            broker: partition.broker,
            log: partition.log.clone(),
            partition: partition.number,
            end: partition.end(),
        };
        self.engine.partitions.iter().map(end).collect()
    }

    /// Up to `limit` (at most 1000) records of a partition from an offset on, in order,
    /// for operators. Fewer when they are large; none at the end.
    pub async fn records(
        &self,
        broker: Broker,
        log: &str,
        partition: i32,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Arc<Message>>, EmbeddedError> {
        let slots = self.engine.slots(broker, &log.into()).unwrap_or_default();
        let unknown = || EmbeddedError::UnknownPartition { broker, log: log.to_owned(), partition };
        let slot = usize::try_from(partition).ok().and_then(|number| slots.get(number)).ok_or_else(unknown)?;
        let id = self.engine.partitions[*slot].id;
        let database = &self.engine.database;
        database
            .read(id, from.max(0), i64::MAX, limit.min(MAX_RECORDS))
            .await
            .map_err(|source| EmbeddedError::Database { path: database.path().to_owned(), source })
    }

    /// Refuses what comes from now on, writes what was accepted and acknowledged, and
    /// closes the file.
    pub async fn shutdown(&self) {
        self.engine.closing.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        let limit = tokio::time::Instant::now() + SHUTDOWN;
        for mut task in tasks {
            match tokio::time::timeout_at(limit, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a task of the embedded brokers did not end well"),
                Err(_) => {
                    task.abort();
                    tracing::error!(limit = ?SHUTDOWN, "the embedded brokers did not finish writing in time");
                }
            }
        }
    }
}

impl Drop for Embedded {
    /// The writer drains and ends on its own.
    fn drop(&mut self) {
        self.engine.closing.cancel();
    }
}

/// Fewer partitions would move keys to places their consumers have already passed.
fn shrunk(specs: &[LogSpec], on_disk: Vec<(i64, String, i64)>) -> Result<(), EmbeddedError> {
    let wrong: Vec<String> = specs
        .iter()
        .filter_map(|spec| {
            let (_, _, had) =
                on_disk.iter().find(|(broker, log, _)| *broker == spec.broker as i64 && **log == *spec.name)?;
            (i64::from(spec.partitions) < *had).then(|| {
                format!(
                    "{} {} has {had} partitions on disk and {} in the topology; partitions can only be added",
                    spec.broker, spec.name, spec.partitions
                )
            })
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(EmbeddedError::Topology(wrong)) }
}

/// Which partition takes which subjects.
fn subjects(topology: &EmbeddedTopology, partitions: &[Arc<Partition>]) -> Vec<(Arc<str>, usize)> {
    let slot = |stream: &Stream| {
        partitions.iter().find(|p| p.broker == Broker::Nats && p.log == stream.name).map(|partition| partition.slot)
    };
    topology
        .streams
        .iter()
        .filter_map(|stream| Some((stream, slot(stream)?)))
        .flat_map(|(stream, slot)| stream.subjects.iter().map(move |subject| (subject.clone(), slot)))
        .collect()
}
