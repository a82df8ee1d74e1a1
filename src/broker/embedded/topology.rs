//! What the embedded brokers consist of, as plain data, and the checks on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::pattern::Filter;
use crate::broker::topic_pattern::TopicPattern;
use crate::broker::{Source, Subscription};
use crate::domain::Broker;
use crate::domain::catalogue::{Catalogue, StreamKind, is_subject_filter, overlaps};

/// How long a log keeps records that no consumer still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records older than this go.
    pub max_age: Duration,
    /// Per partition: the oldest beyond this many go.
    pub max_records: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(7 * 24 * 3600), max_records: 1_000_000 }
    }
}

/// A RabbitMQ exchange: one log with one partition.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub name: Arc<str>,
    pub retention: Retention,
}

/// A Kafka topic.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: Arc<str>,
    pub partitions: u32,
    pub retention: Retention,
}

/// A JetStream stream: one log with one partition.
#[derive(Clone, Debug)]
pub struct Stream {
    pub name: Arc<str>,
    /// Filters of the subjects it takes; no two streams take the same subject.
    pub subjects: Vec<Arc<str>>,
    pub retention: Retention,
}

/// Bounds and intervals; the defaults suit a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Body bytes beyond which a message is refused for good.
    pub max_message: usize,
    /// Bytes of recent messages, over all logs, that live consumers read without SQL.
    pub memory: usize,
    /// How long a write waits for its commit before the broker counts as down.
    pub write_timeout: Duration,
    /// The longest an acknowledgement stays in memory only.
    pub ack_interval: Duration,
    /// How often retention runs.
    pub prune_interval: Duration,
    /// The size the database file may reach, in bytes; `None`: what the disk gives.
    pub max_file: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: 1 << 20,
            memory: 64 << 20,
            write_timeout: Duration::from_secs(10),
            ack_interval: Duration::from_millis(50),
            prune_interval: Duration::from_secs(30),
            max_file: None,
        }
    }
}

/// Everything the embedded brokers have from the start.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedTopology {
    pub exchanges: Vec<Exchange>,
    pub topics: Vec<Topic>,
    pub streams: Vec<Stream>,
    /// Durable consumers (queues, groups, work queues): what is published before they
    /// first subscribe is kept for them. Those known from an earlier start but no longer
    /// listed keep their position and hold no records back.
    pub consumers: Vec<Subscription>,
    pub limits: Limits,
}

/// A log and how many partitions it has.
#[derive(Clone, Debug)]
pub(super) struct LogSpec {
    pub broker: Broker,
    pub name: Arc<str>,
    pub partitions: u32,
    pub retention: Retention,
}

/// What one consumer reads: a log and which of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reads {
    pub broker: Broker,
    /// What its positions are kept under.
    pub group: Arc<str>,
    pub logs: Vec<(Arc<str>, Filter)>,
}

impl Reads {
    /// Fails when a subject filter is malformed.
    pub fn of(subscription: &Subscription) -> Result<Self, String> {
        Ok(match &subscription.source {
            Source::Queue { name, bindings, .. } => {
                let mut logs: Vec<(Arc<str>, Vec<TopicPattern>)> = Vec::new();
                for (exchange, pattern) in bindings {
                    let pattern = TopicPattern::parse(pattern);
                    match logs.iter_mut().find(|(log, _)| log == exchange) {
                        Some((_, patterns)) => patterns.push(pattern),
                        None => logs.push((exchange.clone(), vec![pattern])),
                    }
                }
                let logs = logs.into_iter().map(|(log, patterns)| (log, Filter::Topic(patterns))).collect();
                Self { broker: Broker::Rabbitmq, group: name.clone(), logs }
            }
            Source::Topics(topics) => Self {
                broker: Broker::Kafka,
                group: subscription.consumer.clone(),
                logs: topics.iter().map(|topic| (topic.clone(), Filter::All)).collect(),
            },
            Source::WorkQueue { stream, filter } | Source::Ephemeral { stream, filter } => Self {
                broker: Broker::Nats,
                group: subscription.consumer.clone(),
                logs: vec![(stream.clone(), Filter::Subject(subject_filter(filter)?))],
            },
        })
    }
}

fn subject_filter(text: &Arc<str>) -> Result<Arc<str>, String> {
    if is_subject_filter(text) {
        Ok(text.clone())
    } else {
        Err(format!("{text:?} is not a subject filter: tokens between dots, '*' for one, '>' only at the end"))
    }
}

impl EmbeddedTopology {
    /// What the catalogue's routes need. RabbitMQ and work queues drop what is acknowledged;
    /// here it stays a day, for operators.
    pub fn from_catalogue(catalogue: &Catalogue, consumers: Vec<Subscription>) -> Self {
        let day = Retention { max_age: Duration::from_secs(24 * 3600), ..Retention::default() };
        let exchange = |name: &Arc<str>| Exchange { name: name.clone(), retention: day };
        Self {
            exchanges: catalogue.exchanges().iter().map(|e| exchange(&e.name)).collect(),
            topics: (catalogue.topics().iter())
                .map(|topic| Topic {
                    name: topic.name.clone(),
                    partitions: topic.partitions,
                    retention: Retention { max_age: topic.retention, ..Retention::default() },
                })
                .collect(),
            streams: (catalogue.streams().iter())
                .map(|stream| Stream {
                    name: stream.name.clone(),
                    subjects: stream.subjects.clone(),
                    retention: match stream.kind {
                        StreamKind::WorkQueue => day,
                        StreamKind::Limits { max_age } => Retention { max_age, ..Retention::default() },
                    },
                })
                .collect(),
            consumers,
            limits: Limits::default(),
        }
    }

    /// Every log, or everything that is wrong with this topology.
    pub(super) fn check(&self) -> Result<Vec<LogSpec>, Vec<String>> {
        let mut wrong = Vec::new();
        let log = |broker, name: &Arc<str>, partitions, retention| LogSpec {
            broker,
            name: name.clone(),
            partitions,
            retention,
        };
        let logs: Vec<LogSpec> = (self.exchanges.iter().map(|e| log(Broker::Rabbitmq, &e.name, 1, e.retention)))
            .chain(self.topics.iter().map(|t| log(Broker::Kafka, &t.name, t.partitions, t.retention)))
            .chain(self.streams.iter().map(|s| log(Broker::Nats, &s.name, 1, s.retention)))
            .collect();

        let mut seen = HashMap::new();
        for log in &logs {
            if seen.insert((log.broker, log.name.clone()), ()).is_some() {
                wrong.push(format!("{}: {} is declared twice", log.broker, log.name));
            }
            if log.partitions == 0 {
                wrong.push(format!("{}: {} has no partitions; give it at least one", log.broker, log.name));
            }
        }
        self.check_subjects(&mut wrong);
        self.check_consumers(&seen, &mut wrong);
        if wrong.is_empty() { Ok(logs) } else { Err(wrong) }
    }

    fn check_subjects(&self, wrong: &mut Vec<String>) {
        let mut taken: Vec<(&Stream, &Arc<str>)> = Vec::new();
        for stream in &self.streams {
            for subject in &stream.subjects {
                if let Err(why) = subject_filter(subject) {
                    wrong.push(format!("stream {}: {why}", stream.name));
                } else if let Some((other, _)) = taken.iter().find(|(_, other)| overlaps(other, subject)) {
                    wrong.push(format!(
                        "streams {} and {} both take {subject}; a subject belongs to one stream",
                        other.name, stream.name
                    ));
                }
                taken.push((stream, subject));
            }
        }
    }

    fn check_consumers(&self, logs: &HashMap<(Broker, Arc<str>), ()>, wrong: &mut Vec<String>) {
        let mut known: Vec<(&Subscription, Reads)> = Vec::new();
        for consumer in &self.consumers {
            if matches!(consumer.source, Source::Queue { exclusive: true, .. } | Source::Ephemeral { .. }) {
                wrong.push(format!("consumer {} is not durable; subscribe instead of declaring it", consumer.consumer));
                continue;
            }
            let reads = match Reads::of(consumer) {
                Ok(reads) => reads,
                Err(why) => {
                    wrong.push(format!("consumer {}: {why}", consumer.consumer));
                    continue;
                }
            };
            for (log, _) in &reads.logs {
                if !logs.contains_key(&(reads.broker, log.clone())) {
                    wrong.push(format!(
                        "consumer {} reads {log}, which {} does not have",
                        consumer.consumer, reads.broker
                    ));
                }
            }
            for (other, theirs) in &known {
                if theirs.broker != reads.broker {
                    continue;
                }
                if theirs.group == reads.group {
                    wrong.push(format!("{}: {} is declared twice", reads.broker, reads.group));
                } else if let (
                    Source::WorkQueue { stream, .. },
                    [(log, Filter::Subject(filter))],
                    [(_, Filter::Subject(other_filter))],
                ) = (&other.source, &reads.logs[..], &theirs.logs[..])
                    && stream == log
                    && overlaps(filter, other_filter)
                {
                    wrong.push(format!(
                        "consumers {} and {} of work queue {stream} have overlapping filters; a message is one consumer's",
                        other.consumer, consumer.consumer
                    ));
                }
            }
            known.push((consumer, reads));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, source: Source) -> Subscription {
        Subscription { consumer: name.into(), source, prefetch: 1, ack_wait: Duration::from_secs(30) }
    }

    fn work_queue(name: &str, filter: &str) -> Subscription {
        consumer(name, Source::WorkQueue { stream: "COMMANDS".into(), filter: filter.into() })
    }

    fn stream(name: &str, subject: &str) -> Stream {
        Stream { name: name.into(), subjects: vec![subject.into()], retention: Retention::default() }
    }

    #[test]
    fn a_sound_topology_lists_its_logs() {
        let topology = EmbeddedTopology {
            exchanges: vec![Exchange { name: "job.events".into(), retention: Retention::default() }],
            topics: vec![Topic { name: "job-lifecycle".into(), partitions: 10, retention: Retention::default() }],
            streams: vec![stream("COMMANDS", "commands.>")],
            consumers: vec![work_queue("a", "commands.a"), work_queue("b", "commands.b")],
            limits: Limits::default(),
        };
        let logs = topology.check().unwrap();
        assert_eq!(logs.iter().map(|log| log.partitions).collect::<Vec<_>>(), [1, 10, 1]);
    }

    #[test]
    fn every_contradiction_is_reported_at_once() {
        let topology = EmbeddedTopology {
            topics: vec![Topic { name: "t".into(), partitions: 0, retention: Retention::default() }],
            streams: vec![stream("COMMANDS", "commands.>"), stream("OTHER", "commands.job.*")],
            consumers: vec![
                work_queue("a", "commands.*"),
                work_queue("b", "commands.b"),
                work_queue("c", "commands.>.x"),
                consumer("d", Source::Topics(vec!["missing".into()])),
                consumer("e", Source::Ephemeral { stream: "COMMANDS".into(), filter: ">".into() }),
            ],
            ..EmbeddedTopology::default()
        };
        let wrong = topology.check().unwrap_err();
        for expected in ["no partitions", "both take", "overlapping", "'>' only at", "missing", "not durable"] {
            assert!(wrong.iter().any(|line| line.contains(expected)), "{expected}: {wrong:#?}");
        }
        assert_eq!(wrong.len(), 6, "{wrong:#?}");
    }
}
