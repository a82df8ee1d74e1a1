//! Reads the file for whoever compares it with the store; a gateway may be writing it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::database::Database;
use super::topology::{EmbeddedTopology, LogSpec, Reads, Retention};
use crate::broker::{BrokerLog, Extent, Keeps, LogError, LogReader, LogRecord, Position, QueueDepth, Source};
use crate::domain::Broker;
use crate::domain::catalogue::{Route, covers};

/// Records read at once.
const PAGE: usize = 500;

/// What one embedded broker holds.
pub struct EmbeddedLog {
    broker: Broker,
    database: Database,
    specs: Vec<LogSpec>,
    /// Subject filters and their streams.
    subjects: Vec<(Arc<str>, Arc<str>)>,
    /// What this broker's queues are filled from.
    queues: Vec<Reads>,
}

impl EmbeddedLog {
    /// Opens the file read-only when it is first read. `topology` says how long each log
    /// is kept and which queues there are; a contradiction in it is found by [`super::Embedded::open`].
    pub fn new(path: &Path, broker: Broker, topology: &EmbeddedTopology) -> Self {
        let subjects = topology
            .streams
            .iter()
            .flat_map(|stream| stream.subjects.iter().map(|subject| (subject.clone(), stream.name.clone())))
            .collect();
        let queues = topology.consumers.iter().filter(|consumer| matches!(consumer.source, Source::Queue { .. }));
        let queues = queues.filter_map(|queue| Reads::of(queue).ok()).filter(|reads| reads.broker == broker).collect();
        let (database, specs) = (Database::open_read_only(path), topology.check().unwrap_or_default());
        Self { broker, database, specs, subjects, queues }
    }

    /// What lies before this queue: all of it, whether it is for the queue or not.
    async fn depth(&self, queue: &Reads) -> Result<u64, sqlx::Error> {
        let standings = self.database.standings(self.broker, &queue.group).await?;
        let mut messages = 0;
        for (id, log, _) in self.database.partitions(self.broker).await? {
            if queue.logs.iter().any(|(name, _)| **name == *log) {
                let end = self.database.extent(id).await?.1;
                let (next, unacked) = standings.get(&id).map_or((0, 0), |at| (at.next, at.unacked.len() as u64));
                messages += u64::try_from(end - next).unwrap_or(0) + unacked;
            }
        }
        Ok(messages)
    }

    fn keeps(&self, log: &str, records: i64) -> Keeps {
        let spec = self.specs.iter().find(|spec| spec.broker == self.broker && *spec.name == *log);
        // A log that no topology names any more is kept as it is.
        let Retention { max_age, max_records } = spec.map(|spec| spec.retention).unwrap_or_default();
        if u64::try_from(records).is_ok_and(|records| records >= max_records) {
            Keeps::Bounded
        } else {
            Keeps::For(max_age)
        }
    }
}

fn failed(broker: Broker, database: &Database, why: &sqlx::Error) -> LogError {
    LogError { broker, what: database.path().display().to_string(), why: why.to_string() }
}

#[async_trait]
impl BrokerLog for EmbeddedLog {
    fn broker(&self) -> Broker {
        self.broker
    }

    fn log_of(&self, route: &Route) -> Option<Arc<str>> {
        match route.broker {
            Broker::Rabbitmq | Broker::Kafka => Some(route.target.clone()),
            Broker::Nats => {
                self.subjects.iter().find(|(filter, _)| covers(filter, &route.target)).map(|(_, stream)| stream.clone())
            }
        }
    }

    async fn extents(&self) -> Result<Option<Vec<Extent>>, LogError> {
        let failed = |why| failed(self.broker, &self.database, &why);
        let mut extents = Vec::new();
        for (id, log, partition) in self.database.partitions(self.broker).await.map_err(failed)? {
            let (start, end) = self.database.extent(id).await.map_err(failed)?;
            let keeps = self.keeps(&log, end - start);
            extents.push(Extent { log: log.into(), partition, start, end, keeps });
        }
        Ok(Some(extents))
    }

    async fn read(&self, extent: &Extent) -> Result<Box<dyn LogReader>, LogError> {
        let partitions = self.database.partitions(self.broker).await;
        let partitions = partitions.map_err(|why| failed(self.broker, &self.database, &why))?;
        let found = partitions.into_iter().find(|(_, log, number)| **log == *extent.log && *number == extent.partition);
        let id = found.map(|(id, ..)| id).ok_or_else(|| LogError {
            broker: self.broker,
            what: extent.log.to_string(),
            why: format!("there is no partition {}", extent.partition),
        })?;
        Ok(Box::new(EmbeddedReader {
            broker: self.broker,
            database: self.database.clone(),
            id,
            next: extent.start,
            extent: extent.clone(),
        }))
    }

    /// What was handed out and not acknowledged is counted, too.
    async fn queues(&self) -> Result<Vec<QueueDepth>, LogError> {
        let mut depths = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let depth = self.depth(queue).await.map_err(|why| failed(self.broker, &self.database, &why))?;
            depths.push(QueueDepth { name: queue.group.clone(), messages: depth, holders: 0 });
        }
        Ok(depths)
    }
}

struct EmbeddedReader {
    broker: Broker,
    database: Database,
    id: i64,
    next: i64,
    extent: Extent,
}

#[async_trait]
impl LogReader for EmbeddedReader {
    async fn next(&mut self) -> Result<Vec<LogRecord>, LogError> {
        let page = self.database.read(self.id, self.next, self.extent.end, PAGE).await;
        let page = page.map_err(|why| failed(self.broker, &self.database, &why))?;
        if let Some(last) = page.last() {
            self.next = last.offset + 1;
        }
        let Extent { log, partition, .. } = &self.extent;
        let position = |offset| Position { log: log.clone(), partition: *partition, offset: Some(offset) };
        Ok(page
            .iter()
            .map(|message| LogRecord { position: position(message.offset), headers: message.headers.clone() })
            .collect())
    }
}
