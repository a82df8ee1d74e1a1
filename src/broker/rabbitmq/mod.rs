//! RabbitMQ: exchanges and quorum queues on a cluster.
//!
//! `topology` says what there is and declares it; `connection` keeps one connection alive over
//! all nodes, for ever, after `greeting` has asked a node who it is; `publisher` settles windows
//! with `confirm`, `subscriber` reads and acknowledges with `acks`, `dead_letters` reads what the
//! server took out of queues; `message` is the mapping of headers; `health` is what readiness
//! shows, `mismatch`, `refusals` and `nodes` are three of its complaints. Publishing and consuming have a
//! connection each: an alarm of the server stops whatever else travels on a connection that publishes.

mod acks;
mod confirm;
mod connection;
mod dead_letters;
mod greeting;
mod health;
mod message;
mod mismatch;
mod nodes;
mod publisher;
mod records;
mod refusals;
mod subscriber;
mod topology;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::health::Health;
pub use self::records::RabbitLog;
pub use self::topology::{Queue, Topology};

use self::connection::{Connector, ConnectorOptions, DownReason, State};
use self::health::{Board, Part};
use super::dead_letters::DeadLetterSource;
use super::{Publisher, Subscriber};
use crate::config;

/// How long `shutdown` waits for the connections to close.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Why RabbitMQ cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RabbitMqError {
    /// What is declared contradicts what the server has; nothing was changed.
    #[error("RabbitMQ: {0}")]
    Topology(String),
    /// A setting cannot be used.
    #[error("{field}: {reason}")]
    Setting { field: &'static str, reason: String },
    /// No node answers. Safe to try again.
    #[error("rabbitmq.urls: {0}")]
    Away(String),
}

/// What the cluster lacks of `topology` or has with other properties; nothing is declared.
/// Bindings are not looked at.
///
/// # Errors
/// A setting cannot be used, or no node answers.
pub async fn check(config: &config::Rabbitmq, topology: &Topology) -> Result<Vec<String>, RabbitMqError> {
    let options = Arc::new(ConnectorOptions::new(config)?);
    let stop = CancellationToken::new();
    let _closed = stop.clone().drop_guard();
    let (connector, _) = Connector::spawn(Part::Consuming, options.clone(), None, &Arc::default(), &stop);
    connector.tried_all().await;
    let session = connector.session().map_err(RabbitMqError::Away)?;
    let differences = topology::differences(&session.connection, topology, session.server);
    match tokio::time::timeout(options.declare_timeout(), differences).await {
        Ok(found) => found.map_err(|error| RabbitMqError::Away(error.to_string())),
        Err(_) => Err(RabbitMqError::Away(format!("no answer within {:?}", options.declare_timeout()))),
    }
}

/// Everything the parts share.
struct Shared {
    publishing: Connector,
    consuming: Connector,
    topology: Arc<Topology>,
    health: Arc<Board>,
    confirm_timeout: Duration,
    declare_timeout: Duration,
    max_message: usize,
    /// Broadcast queues asked for so far; part of their names.
    broadcasts: AtomicU64,
}

/// A RabbitMQ cluster. Cheap to ask; connections live until [`RabbitMq::shutdown`].
pub struct RabbitMq {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl RabbitMq {
    /// Connects and declares `topology`. A cluster that cannot be reached is no error: it is
    /// tried again for ever, and [`RabbitMq::health`] says so.
    ///
    /// # Errors
    /// What the cluster has contradicts `topology`, or a setting cannot be used. Nothing runs then.
    pub async fn open(config: &config::Rabbitmq, topology: Topology) -> Result<Self, RabbitMqError> {
        let options = Arc::new(ConnectorOptions::new(config)?);
        let health = Arc::new(Board::default());
        let topology = Arc::new(topology);
        let stop = CancellationToken::new();
        let (publishing, first) =
            Connector::spawn(Part::Publishing, options.clone(), Some(topology.clone()), &health, &stop);
        let (consuming, second) = Connector::spawn(Part::Consuming, options.clone(), None, &health, &stop);
        let nodes = crate::task::spawn("rabbitmq-nodes", nodes::watch(options.clone(), health.clone(), stop.clone()));
        let shared = Arc::new(Shared {
            publishing,
            consuming,
            topology,
            health,
            confirm_timeout: config.confirm_timeout,
            declare_timeout: options.declare_timeout(),
            max_message: usize::try_from(config.max_message.as_u64()).unwrap_or(usize::MAX),
            broadcasts: AtomicU64::new(0),
        });
        let rabbitmq = Self { shared, stop, tasks: Mutex::new(vec![first, second, nodes]) };
        rabbitmq.shared.consuming.tried_all().await;
        if let State::Down(DownReason::Topology(why)) = rabbitmq.shared.publishing.tried_all().await {
            rabbitmq.shutdown().await;
            return Err(RabbitMqError::Topology(why));
        }
        Ok(rabbitmq)
    }

    pub fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(publisher::RabbitPublisher::new(self.shared.clone()))
    }

    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(subscriber::RabbitSubscriber::new(self.shared.clone()))
    }

    /// Where to read what the server took out of the queues.
    pub fn dead_letters(&self) -> Arc<dyn DeadLetterSource> {
        Arc::new(subscriber::RabbitSubscriber::new(self.shared.clone()))
    }

    /// Does it work, and why not? The receiver sees every change.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.receiver()
    }

    /// Closes the connections. Publishers and subscribers fail from now on.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for mut task in tasks {
            if tokio::time::timeout(SHUTDOWN, &mut task).await.is_err() {
                task.abort();
                tracing::warn!(limit = ?SHUTDOWN, "a connection to RabbitMQ did not close in time");
            }
        }
    }
}

impl Drop for RabbitMq {
    /// The connections close on their own.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
