//! Topics: what there must be, created where it is missing and compared where it is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

use super::connection::{self, Context, record_limit};
use super::{KafkaError, Shared};
use crate::broker::{Source, Subscription};
use crate::config::Kafka as KafkaConfig;
use crate::domain::Broker;
use crate::domain::catalogue::{Catalogue, EventType};

/// How long a new topic may take to be known everywhere.
const SETTLE: Duration = Duration::from_secs(15);

/// A topic as it must be. The name has the prefix of the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: Arc<str>,
    pub partitions: u32,
    pub retention: Duration,
}

/// Everything Kafka must have.
#[derive(Clone, Debug, Default)]
pub struct KafkaTopology {
    pub topics: Vec<TopicSpec>,
    /// Which types are written to which topic, by the topic's name without prefix.
    pub types: Vec<(Arc<str>, Arc<EventType>)>,
}

impl KafkaTopology {
    /// What the catalogue's routes need, with the numbers that the settings change.
    ///
    /// # Errors
    /// Settings or consumers that name topics which the catalogue has not.
    pub fn from_catalogue(
        catalogue: &Catalogue,
        config: &KafkaConfig,
        consumers: &[Subscription],
    ) -> Result<Self, KafkaError> {
        let topics = (catalogue.topics().iter())
            .map(|topic| TopicSpec {
                name: prefixed(config, &topic.name),
                partitions: (config.partitions.iter())
                    .find(|other| *other.topic == *topic.name)
                    .map_or(topic.partitions, |other| other.partitions),
                retention: (config.retention.iter())
                    .find(|other| *other.topic == *topic.name)
                    .map_or(topic.retention, |other| other.retention),
            })
            .collect();
        let mut types = Vec::new();
        for event_type in catalogue.types() {
            for (broker, target, _) in event_type.route_templates() {
                if broker == Broker::Kafka {
                    types.push((target.into(), event_type.clone()));
                }
            }
        }
        let named = (config.partitions.iter().map(|other| (&other.topic, "kafka.partitions")))
            .chain(config.retention.iter().map(|other| (&other.topic, "kafka.retention")))
            .map(|(topic, setting)| (topic.clone(), setting.to_owned()));
        let read = consumers.iter().flat_map(|consumer| {
            let topics = if let Source::Topics(topics) = &consumer.source { topics.as_slice() } else { &[] };
            topics.iter().map(|topic| (topic.to_string(), format!("consumer {}", consumer.consumer)))
        });
        let unknown: Vec<String> = named
            .chain(read)
            .filter(|(topic, _)| !catalogue.topics().iter().any(|known| *known.name == **topic))
            .map(|(topic, who)| format!("{who} names topic {topic}, which the catalogue does not have"))
            .collect();
        if unknown.is_empty() { Ok(Self { topics, types }) } else { Err(KafkaError::Topology(unknown)) }
    }
}

/// A name of the catalogue or of a consumer as it is in the cluster.
pub(super) fn prefixed(config: &KafkaConfig, name: &str) -> Arc<str> {
    if config.topic_prefix.is_empty() { name.into() } else { format!("{}{name}", config.topic_prefix).into() }
}

/// Creates what is missing (if that is allowed) and compares everything else.
///
/// # Errors
/// [`KafkaError::Topology`] lists every mismatch; [`KafkaError::Unreachable`] when the
/// cluster does not answer.
pub(super) async fn declare(shared: &Shared) -> Result<(), KafkaError> {
    let context = Context(shared.complaints.clone());
    let admin: Arc<AdminClient<Context>> =
        Arc::new(connection::open(connection::client(&shared.config), context).await?);
    let before = metadata(&admin, shared).await?;
    let missing: Vec<&TopicSpec> =
        shared.topology.topics.iter().filter(|topic| found(&before, &topic.name).is_none()).collect();
    if !missing.is_empty() {
        create(&admin, shared, &missing).await?;
    }
    compare(&admin, shared).await
}

/// What is missing or differs; creates nothing.
pub(super) async fn differences_only(mut shared: Shared) -> Result<Vec<String>, KafkaError> {
    let context = Context(shared.complaints.clone());
    let admin = Arc::new(connection::open(connection::client(&shared.config), context).await?);
    let now = metadata(&admin, &shared).await?;
    let (there, missing): (Vec<_>, Vec<_>) =
        std::mem::take(&mut shared.topology.topics).into_iter().partition(|topic| found(&now, &topic.name).is_some());
    shared.topology.topics = there;
    let mut wrong: Vec<String> = missing.iter().map(|topic| format!("topic {} is missing", topic.name)).collect();
    if !shared.topology.topics.is_empty() {
        match compare(&admin, &shared).await {
            Err(KafkaError::Topology(more)) => wrong.extend(more),
            other => other?,
        }
    }
    Ok(wrong)
}

async fn metadata(admin: &Arc<AdminClient<Context>>, shared: &Shared) -> Result<Metadata, KafkaError> {
    let (client, timeout) = (admin.clone(), shared.config.request_timeout);
    let fetched = tokio::task::spawn_blocking(move || client.inner().fetch_metadata(None, timeout)).await;
    fetched.map_err(|error| KafkaError::Unreachable(error.to_string()))?.map_err(|error| shared.unreachable(&error))
}

fn found<'m>(metadata: &'m Metadata, topic: &str) -> Option<&'m rdkafka::metadata::MetadataTopic> {
    metadata.topics().iter().find(|known| known.name() == topic && known.error().is_none())
}

async fn create(admin: &Arc<AdminClient<Context>>, shared: &Shared, missing: &[&TopicSpec]) -> Result<(), KafkaError> {
    let config = &shared.config;
    if !config.create_topics {
        let missing = missing.iter().map(|topic| {
            format!("topic {} is missing and kafka.create_topics is off; create it, or switch that on", topic.name)
        });
        return Err(KafkaError::Topology(missing.collect()));
    }
    let wanted: Vec<Wanted> = missing.iter().map(|topic| Wanted::of(topic, config)).collect();
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .zip(&wanted)
        .map(|(topic, wanted)| {
            let replication = TopicReplication::Fixed(config.replication as i32);
            (wanted.settings())
                .fold(NewTopic::new(&topic.name, topic.partitions as i32, replication), |new, (key, value)| {
                    new.set(key, value)
                })
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(config.request_timeout))
        .operation_timeout(Some(config.request_timeout));
    let results = admin.create_topics(&topics, &options).await.map_err(|error| shared.unreachable(&error))?;
    let mut wrong = Vec::new();
    for result in results {
        match result {
            // Another instance was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, RDKafkaErrorCode::InvalidReplicationFactor)) => wrong.push(format!(
                "topic {topic} cannot have {} replicas: there are fewer brokers; start more, or set kafka.replication",
                config.replication
            )),
            Err((topic, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed)) => {
                wrong.push(format!("topic {topic} may not be created by this user; create it, or grant that"));
            }
            Err((topic, code)) => {
                return Err(KafkaError::Unreachable(format!("topic {topic} was not created: {code}")));
            }
        }
    }
    if wrong.is_empty() { settled(admin, shared).await } else { Err(KafkaError::Topology(wrong)) }
}

/// Waits until every topic is known with leaders.
async fn settled(admin: &Arc<AdminClient<Context>>, shared: &Shared) -> Result<(), KafkaError> {
    let limit = tokio::time::Instant::now() + SETTLE;
    loop {
        let now = metadata(admin, shared).await?;
        let unsettled = shared.topology.topics.iter().find(|topic| {
            found(&now, &topic.name).is_none_or(|known| {
                known.partitions().len() < topic.partitions as usize
                    || known.partitions().iter().any(|partition| partition.leader() < 0)
            })
        });
        let Some(topic) = unsettled else { return Ok(()) };
        if tokio::time::Instant::now() > limit {
            return Err(KafkaError::Unreachable(format!("topic {} was created, but has no leaders yet", topic.name)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The settings of one topic as text.
struct Wanted {
    retention: String,
    min_insync: String,
    max_message: String,
}

impl Wanted {
    fn of(topic: &TopicSpec, config: &KafkaConfig) -> Self {
        Self {
            retention: topic.retention.as_millis().to_string(),
            min_insync: config.min_insync.to_string(),
            max_message: record_limit(config).to_string(),
        }
    }

    fn settings(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("cleanup.policy", "delete"),
            ("retention.ms", &self.retention),
            ("min.insync.replicas", &self.min_insync),
            ("max.message.bytes", &self.max_message),
        ]
        .into_iter()
    }
}

/// Brokers learn of a new topic one after the other, and any of them may be asked.
async fn compare(admin: &Arc<AdminClient<Context>>, shared: &Shared) -> Result<(), KafkaError> {
    let limit = tokio::time::Instant::now() + SETTLE;
    loop {
        match differences(admin, shared).await? {
            Ok(wrong) if wrong.is_empty() => return Ok(()),
            Ok(wrong) => return Err(KafkaError::Topology(wrong)),
            Err(unknown) if tokio::time::Instant::now() > limit => {
                return Err(KafkaError::Unreachable(format!(
                    "topic {unknown} is not described: a broker does not know it yet, or this user may not describe it"
                )));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What is not as it must be, or a topic that the broker asked does not describe.
async fn differences(
    admin: &Arc<AdminClient<Context>>,
    shared: &Shared,
) -> Result<Result<Vec<String>, Arc<str>>, KafkaError> {
    let now = metadata(admin, shared).await?;
    let topics = &shared.topology.topics;
    let specifiers: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(shared.config.request_timeout));
    let described = admin.describe_configs(&specifiers, &options).await.map_err(|error| shared.unreachable(&error))?;
    let mut configs: HashMap<String, ConfigResource> = HashMap::new();
    for resource in described {
        let resource = resource.map_err(|code| KafkaError::Unreachable(format!("topics are not described: {code}")))?;
        // Without entries (the client keeps the reason to itself) it was not described.
        if let (OwnedResourceSpecifier::Topic(name), false) = (&resource.specifier, resource.entries.is_empty()) {
            configs.insert(name.clone(), resource);
        }
    }
    let mut wrong = Vec::new();
    for topic in topics {
        let (Some(known), Some(config)) = (found(&now, &topic.name), configs.get(&*topic.name)) else {
            return Ok(Err(topic.name.clone()));
        };
        let replicas = known.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        let actual = Actual { partitions: known.partitions().len(), replicas, config };
        actual.compare(topic, &shared.config, &mut wrong);
    }
    Ok(Ok(wrong))
}

/// A topic as it is.
struct Actual<'c> {
    partitions: usize,
    replicas: usize,
    config: &'c ConfigResource,
}

impl Actual<'_> {
    fn compare(&self, topic: &TopicSpec, config: &KafkaConfig, wrong: &mut Vec<String>) {
        let name = topic.name.strip_prefix(&*config.topic_prefix).unwrap_or(&topic.name);
        let mut differs = |what: &str, is: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display, fix: String| {
            wrong.push(format!("topic {}: {what} is {is}, wanted is {wanted}; {fix}", topic.name));
        };
        if self.partitions != topic.partitions as usize {
            let fix = if self.partitions > topic.partitions as usize {
                format!("set kafka.partitions={name}={}: partitions cannot be taken away", self.partitions)
            } else {
                "add partitions while nothing is written (keys move to other partitions), or set kafka.partitions"
                    .to_owned()
            };
            differs("the number of partitions", &self.partitions, &topic.partitions, fix);
        }
        if self.replicas < config.replication as usize {
            let fix = "reassign its partitions, or set kafka.replication".to_owned();
            differs("the number of replicas", &self.replicas, &config.replication, fix);
        }
        let retention = topic.retention.as_millis() as i64;
        match self.number("retention.ms") {
            Some(is) if is == retention => {}
            is => {
                let shown = is.map_or("not known".to_owned(), |is| is.to_string());
                differs(
                    "retention.ms",
                    &shown,
                    &retention,
                    format!("alter the topic, or set kafka.retention={name}=…"),
                );
            }
        }
        let least = i64::from(config.min_insync);
        match self.number("min.insync.replicas") {
            Some(is) if is >= least => {}
            is => {
                let fix = "alter the topic, or set kafka.min_insync: a record could be confirmed and lost".to_owned();
                differs("min.insync.replicas", &is.unwrap_or_default(), &least, fix);
            }
        }
        let largest = record_limit(config) as i64;
        match self.number("max.message.bytes") {
            Some(is) if is >= largest => {}
            is => {
                let fix = "alter the topic, or lower kafka.max_message".to_owned();
                differs("max.message.bytes", &is.unwrap_or_default(), &format!("at least {largest}"), fix);
            }
        }
        let policy = self.config.get("cleanup.policy").and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        if policy != "delete" {
            let fix = "alter the topic: compaction would drop all but the newest event of a key".to_owned();
            differs("cleanup.policy", &policy, &"delete", fix);
        }
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.config.get(key)?.value.as_ref()?.parse().ok()
    }
}
