//! Reads topics for whoever compares them with the store: partitions are assigned, no group
//! is joined, no position is kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use super::connection::{self, Complaints, Context, record_limit};
use super::topology::prefixed;
use super::{KafkaError, KafkaTopology, headers};
use crate::broker::{BrokerLog, Extent, Keeps, LogError, LogReader, LogRecord, Position};
use crate::config::Kafka as KafkaConfig;
use crate::domain::Broker;
use crate::domain::catalogue::{Catalogue, Route};

/// Records handed out at once.
const PAGE: usize = 1000;
/// The longest one call into the client takes.
const POLL: Duration = Duration::from_millis(200);

impl ConsumerContext for Context {}

type Client = BaseConsumer<Context>;

/// What Kafka holds. Declares nothing.
pub struct KafkaLog {
    config: KafkaConfig,
    topology: KafkaTopology,
    complaints: Arc<Complaints>,
    /// Asks for metadata and watermarks.
    client: Arc<Client>,
}

impl KafkaLog {
    /// Makes a client for the catalogue's topics; connects when it is first used.
    ///
    /// # Errors
    /// Settings that no client can be made of, or that name unknown topics.
    pub async fn open(config: &KafkaConfig, catalogue: &Catalogue) -> Result<Self, KafkaError> {
        let topology = KafkaTopology::from_catalogue(catalogue, config, &[])?;
        let complaints = Arc::new(Complaints::default());
        let client = connection::open(settings(config), Context(complaints.clone())).await?;
        Ok(Self { config: config.clone(), topology, complaints, client: Arc::new(client) })
    }

    fn failed(&self, what: &str, why: &ClientError) -> LogError {
        failed(what, explained(&self.complaints, why))
    }

    /// The extents of one topic's partitions; none if it does not exist.
    fn extents_of(client: &Client, topic: &str, keeps: &Keeps, limit: Duration) -> Result<Vec<Extent>, ClientError> {
        let metadata = client.fetch_metadata(Some(topic), limit)?;
        let known = metadata.topics().iter().find(|known| known.name() == topic && known.error().is_none());
        let partitions = known.map(|known| known.partitions()).unwrap_or_default();
        partitions
            .iter()
            .map(|partition| {
                let (start, end) = Self::watermarks(client, topic, partition.id(), limit)?;
                Ok(Extent { log: topic.into(), partition: partition.id(), start, end, keeps: keeps.clone() })
            })
            .collect()
    }

    /// Where a partition begins and ends. While brokers come and go its leader may be another than the
    /// client knows: it is asked for again.
    fn watermarks(client: &Client, topic: &str, partition: i32, limit: Duration) -> Result<(i64, i64), ClientError> {
        let deadline = Instant::now() + limit;
        loop {
            match client.fetch_watermarks(topic, partition, limit) {
                Err(error) if has_moved(&error) && Instant::now() < deadline => {
                    client.fetch_metadata(Some(topic), limit)?;
                    std::thread::sleep(POLL);
                }
                answer => return answer,
            }
        }
    }
}

/// Is it only that another broker leads the partition now?
fn has_moved(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotLeaderForPartition | Code::LeaderNotAvailable | Code::FencedLeaderEpoch | Code::UnknownLeaderEpoch
        )
    )
}

/// A client of no group.
fn settings(config: &KafkaConfig) -> ClientConfig {
    let mut client = connection::client(config);
    client
        // The client assigns nothing without one; it is not joined, and nothing is committed to it.
        .set("group.id", "event-gateway-reconcile")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A position that is gone is an error, not a reason to start elsewhere.
        .set("auto.offset.reset", "error")
        .set("fetch.message.max.bytes", record_limit(config).to_string())
        .set("receive.message.max.bytes", (100_000_000 + record_limit(config)).to_string())
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "16384");
    client
}

fn failed(what: &str, why: impl Into<String>) -> LogError {
    LogError { broker: Broker::Kafka, what: what.to_owned(), why: why.into() }
}

fn explained(complaints: &Complaints, why: &ClientError) -> String {
    complaints.last().map_or_else(|| why.to_string(), |complaint| format!("{why}: {complaint}"))
}

#[async_trait]
impl BrokerLog for KafkaLog {
    fn broker(&self) -> Broker {
        Broker::Kafka
    }

    fn log_of(&self, route: &Route) -> Option<Arc<str>> {
        Some(prefixed(&self.config, &route.target))
    }

    async fn extents(&self) -> Result<Option<Vec<Extent>>, LogError> {
        let mut extents = Vec::new();
        for topic in &self.topology.topics {
            let (client, name, limit) = (self.client.clone(), topic.name.clone(), self.config.request_timeout);
            let keeps = Keeps::For(topic.retention);
            let asked = tokio::task::spawn_blocking(move || Self::extents_of(&client, &name, &keeps, limit)).await;
            let found = asked.map_err(|why| failed(&topic.name, why.to_string()))?;
            extents.extend(found.map_err(|why| self.failed(&topic.name, &why))?);
        }
        Ok(Some(extents))
    }

    async fn read(&self, extent: &Extent) -> Result<Box<dyn LogReader>, LogError> {
        let opened = connection::open(settings(&self.config), Context(self.complaints.clone())).await;
        let client: Client = opened.map_err(|why| failed(&extent.log, why.to_string()))?;
        let mut list = TopicPartitionList::new();
        let assigned = list
            .add_partition_offset(&extent.log, extent.partition, Offset::Offset(extent.start))
            .and_then(|()| client.assign(&list));
        assigned.map_err(|why| self.failed(&extent.log, &why))?;
        Ok(Box::new(KafkaReader {
            client: Some(client),
            complaints: self.complaints.clone(),
            next: extent.start,
            extent: extent.clone(),
            // Finding the partition's leader may take some requests.
            timeout: self.config.request_timeout * 3,
        }))
    }
}

struct KafkaReader {
    /// `None` while it polls.
    client: Option<Client>,
    complaints: Arc<Complaints>,
    next: i64,
    extent: Extent,
    timeout: Duration,
}

impl KafkaReader {
    /// Up to a page; an empty one is the end.
    fn page(client: &Client, extent: &Extent, next: &mut i64, deadline: Instant) -> Result<Vec<LogRecord>, String> {
        let mut records = Vec::new();
        while *next < extent.end && records.len() < PAGE {
            // What has come is handed out before waiting for more.
            let patience = if records.is_empty() { POLL } else { Duration::ZERO };
            let record = match client.poll(patience) {
                Some(Ok(record)) => record,
                Some(Err(ClientError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
                None if !records.is_empty() => break,
                // The client tries again by itself. Nor is the end of the partition an end before
                // ours: a new leader may not know all of it yet.
                None | Some(Err(_)) if Instant::now() < deadline => continue,
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err(format!("nothing came in time from {next} on")),
            };
            *next = record.offset() + 1;
            if *next <= extent.end {
                let position =
                    Position { log: extent.log.clone(), partition: extent.partition, offset: Some(record.offset()) };
                records.push(LogRecord { position, headers: headers::read(record.headers()).map(Arc::new) });
            }
        }
        Ok(records)
    }
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn next(&mut self) -> Result<Vec<LogRecord>, LogError> {
        let log = self.extent.log.clone();
        let Some(client) = self.client.take() else { return Err(failed(&log, "an earlier read was given up")) };
        let (extent, mut next, deadline) = (self.extent.clone(), self.next, Instant::now() + self.timeout);
        let polled = tokio::task::spawn_blocking(move || {
            let page = Self::page(&client, &extent, &mut next, deadline);
            (client, next, page)
        });
        let (client, next, page) = polled.await.map_err(|why| failed(&log, why.to_string()))?;
        (self.client, self.next) = (Some(client), next);
        page.map_err(|why| failed(&log, self.complaints.last().map_or(why.clone(), |last| format!("{why}: {last}"))))
    }
}

impl Drop for KafkaReader {
    /// Closing a client waits for its threads.
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            drop(tokio::task::spawn_blocking(move || drop(client)));
        }
    }
}
