//! Kafka, with the schemas of what is in it in a schema registry.
//!
//! `connection` makes clients, `topology` topics, `publisher` and `subscriber` are the two
//! sides of the port, `underway` keeps what is slow to be confirmed, `group` is one member of a
//! consumer group on a thread of its own, `rebalance` what the group gives it, `identity` tells a
//! topic from the one before of the same name, `decoder` and `headers` turn records into
//! deliveries, `keeper` prepares everything and watches it. Everything of librdkafka that blocks
//! runs on blocking threads.

mod connection;
mod decoder;
mod group;
mod headers;
mod identity;
mod keeper;
mod producer;
mod publisher;
mod rebalance;
mod records;
mod schemas;
mod subscriber;
mod topology;
mod underway;

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::error::KafkaError as ClientError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::keeper::{Health, KafkaHealth};
pub use self::records::KafkaLog;
pub use self::topology::{KafkaTopology, TopicSpec};

use self::connection::Complaints;
use self::group::State;
use self::identity::Identities;
use self::producer::Producers;
use self::schemas::Schemas;
use self::underway::Underway;
use super::{Publisher, Subscriber, Subscription};
use crate::config::{Kafka as KafkaConfig, Registry as RegistryConfig};
use crate::domain::catalogue::Catalogue;
use crate::schema_registry::{RegistryError, SchemaRegistry};

/// How long `shutdown` waits for consumers to leave their groups.
const SHUTDOWN: Duration = Duration::from_secs(10);

const CLOSED: &str = "Kafka's client is shut down";

/// Why Kafka is not ready.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// Topics are not as they must be; every difference is listed. Never fixed by waiting.
    #[error("kafka: {}", .0.join("; "))]
    Topology(Vec<String>),
    /// Schemas are not as they must be; every difference is listed. Never fixed by waiting.
    #[error("kafka: {}", .0.join("; "))]
    Schemas(Vec<String>),
    /// Settings that no client can be made of.
    #[error("kafka: {0}")]
    Settings(#[source] ClientError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The cluster or the registry does not answer; the keeper tries again by itself.
    #[error("kafka: {0}")]
    Unreachable(String),
}

impl KafkaError {
    /// Can it work later without anybody changing anything?
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Registry(RegistryError::Unavailable(_)))
    }
}

/// What everything here shares.
struct Shared {
    config: KafkaConfig,
    topology: KafkaTopology,
    schemas: Schemas,
    producers: Producers,
    underway: Underway,
    identities: Identities,
    complaints: Arc<Complaints>,
    health: watch::Sender<KafkaHealth>,
    /// Why nothing of the newest window was confirmed, if so.
    unconfirmed: Mutex<Option<String>>,
    /// Members of groups, to end them.
    members: Mutex<Vec<Weak<State>>>,
    closing: CancellationToken,
}

impl Shared {
    fn new(config: &KafkaConfig, registry: &RegistryConfig, topology: KafkaTopology) -> Result<Self, KafkaError> {
        let schemas = Schemas::new(SchemaRegistry::new(registry)?, &topology, config);
        let complaints = Arc::new(Complaints::default());
        Ok(Self {
            config: config.clone(),
            topology,
            schemas,
            producers: Producers::new(config, complaints.clone()),
            underway: Underway::default(),
            identities: Identities::default(),
            complaints,
            health: watch::Sender::new(KafkaHealth::starting()),
            unconfirmed: Mutex::default(),
            members: Mutex::default(),
            closing: CancellationToken::new(),
        })
    }

    /// A failure of the client, with what it last complained about.
    fn unreachable(&self, error: &ClientError) -> KafkaError {
        KafkaError::Unreachable(match self.complaints.last() {
            Some(why) => format!("{error}: {why}"),
            None => error.to_string(),
        })
    }
}

/// A connection to one cluster and one registry.
pub struct Kafka {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Kafka {
    /// Opens Kafka for the catalogue's routes and these consumers; see [`Kafka::open_with`].
    ///
    /// # Errors
    /// As [`Kafka::open_with`], and when settings or consumers name unknown topics.
    pub async fn open(
        config: &KafkaConfig,
        registry: &RegistryConfig,
        catalogue: &Catalogue,
        consumers: &[Subscription],
    ) -> Result<Self, KafkaError> {
        let topology = KafkaTopology::from_catalogue(catalogue, config, consumers)?;
        Self::open_with(config, registry, topology).await
    }

    /// Creates and checks topics and schemas, and keeps watching them. A cluster or registry
    /// that does not answer is no error: the publisher says that it is down, and the keeper
    /// goes on trying.
    ///
    /// # Errors
    /// What waiting does not help: mismatches and unusable settings.
    pub async fn open_with(
        config: &KafkaConfig,
        registry: &RegistryConfig,
        topology: KafkaTopology,
    ) -> Result<Self, KafkaError> {
        let shared = Arc::new(Shared::new(config, registry, topology)?);
        shared.producers.check().await?;
        let prepared = match keeper::prepare(&shared).await {
            Ok(()) => true,
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "Kafka is not ready; trying again in the background");
                false
            }
            Err(error) => return Err(error),
        };
        let keeper = crate::task::spawn("kafka-keeper", keeper::run(shared.clone(), prepared));
        Ok(Self { shared, keeper: Mutex::new(Some(keeper)) })
    }

    /// What the cluster lacks or has otherwise than [`Kafka::open`] would declare it; nothing is
    /// created. Schemas are not looked at.
    ///
    /// # Errors
    /// Settings that cannot be used, or nobody answers.
    pub async fn check(
        config: &KafkaConfig,
        registry: &RegistryConfig,
        catalogue: &Catalogue,
        consumers: &[Subscription],
    ) -> Result<Vec<String>, KafkaError> {
        let topology = KafkaTopology::from_catalogue(catalogue, config, consumers)?;
        topology::differences_only(Shared::new(config, registry, topology)?).await
    }

    pub fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(publisher::KafkaPublisher { shared: self.shared.clone() })
    }

    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(subscriber::KafkaSubscriber { shared: self.shared.clone() })
    }

    /// What works and what does not, now.
    pub fn health(&self) -> KafkaHealth {
        self.shared.health.borrow().clone()
    }

    /// Follows [`Kafka::health`]: for readiness latches.
    pub fn watch(&self) -> watch::Receiver<KafkaHealth> {
        self.shared.health.subscribe()
    }

    /// How many partitions each consumer of this process has now.
    pub fn partitions(&self) -> Vec<usize> {
        self.shared.members.lock().iter().filter_map(|member| Some(member.upgrade()?.partitions())).collect()
    }

    /// Gives up what is not confirmed, ends every subscription (positions are committed) and
    /// the keeper. Bounded; everything afterwards is refused.
    pub async fn shutdown(&self) {
        self.shared.closing.cancel();
        let members: Vec<Arc<State>> = self.shared.members.lock().iter().filter_map(Weak::upgrade).collect();
        let keeper = self.keeper.lock().take();
        let ended = async {
            members.iter().for_each(|member| member.stop());
            for member in &members {
                member.ended.cancelled().await;
            }
            if let Some(keeper) = keeper {
                // Its panic, if any, was reported.
                let _ = keeper.await;
            }
        };
        if tokio::time::timeout(SHUTDOWN, ended).await.is_err() {
            tracing::error!(limit = ?SHUTDOWN, "a Kafka client did not end in time; positions may be repeated");
        }
        self.shared.producers.close();
    }
}

impl Drop for Kafka {
    /// Members and keeper end on their own.
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}
