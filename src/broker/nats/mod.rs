//! NATS JetStream: commands on their way to whoever does the work.
//!
//! `connection` holds on to the cluster, `topology` says what there must be, `publisher`
//! and `subscriber` are the port, `headers` the envelope on the wire, `records` what streams hold. [`Nats`] owns the
//! task that declares the topology again after every reconnect, since a cluster may come
//! back empty.

mod connection;
mod headers;
mod hold;
mod publisher;
mod records;
mod subscriber;
mod topology;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::records::NatsLog;
pub use self::topology::{Mismatch, NatsTopology};

use self::connection::{Connection, Link};
use self::topology::{DeclareError, Keeping};
use super::{Publisher, Subscriber};
use crate::config;

/// How long `shutdown` waits for what is on its way.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// From one look at a topology that is not as it must be to the next.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// While all is well. Who publishes nothing hears of a lost majority from nobody else.
const LOOK_NOW_AND_THEN: Duration = Duration::from_secs(10);
const DECLARE_FIRST: Duration = Duration::from_millis(250);

/// Why NATS was not opened.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error("{field}: {reason}; {fix}")]
    Setup { field: &'static str, reason: String, fix: &'static str },
    /// No server answers. Safe to try again.
    #[error("nats.urls: {0}; start the servers or correct the addresses")]
    Away(String),
    /// The catalogue and the consumers contradict each other; every contradiction is listed.
    #[error("NATS topology: {}", .0.join("; "))]
    Topology(Vec<String>),
    /// The cluster has something else; every difference is listed.
    #[error("NATS: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mismatch(Vec<Mismatch>),
}

/// What the cluster lacks of `topology` or has otherwise; nothing is declared.
///
/// # Errors
/// A setting that cannot work, or no server answers.
pub async fn check(config: &config::Nats, topology: &NatsTopology) -> Result<Vec<String>, NatsError> {
    let connection = Connection::open(config).await?;
    connection.wait(config.connect_timeout).await.map_err(NatsError::Away)?;
    let found = topology.differences(&connection.jetstream, Keeping::new(config)).await;
    found.map_err(|error| NatsError::Away(error.to_string()))
}

/// Whether NATS can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsHealth {
    /// Connected, and everything is declared.
    pub up: bool,
    /// Why not, or what is wrong although it works; holds no secrets.
    pub why: String,
}

/// What the two faces share.
struct Shared {
    connection: Connection,
    topology: NatsTopology,
    keeping: Keeping,
    publish_timeout: Duration,
    request_timeout: Duration,
    health: watch::Sender<NatsHealth>,
    /// Somebody found the topology wanting.
    recheck: Notify,
    closing: CancellationToken,
    /// What subscriptions leave behind to be given back.
    releases: TaskTracker,
}

/// NATS JetStream behind the ports. One per process.
pub struct Nats {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Nats {
    /// Connects and declares `topology`. A cluster that does not answer within
    /// `connect_timeout` is no error: connecting goes on in the background, publishers say
    /// [`Down`](super::PublishError::Down) and [`Nats::health`] says why.
    ///
    /// # Errors
    /// A setting that cannot work, or a cluster that has something else under our names.
    pub async fn open(config: &config::Nats, topology: NatsTopology) -> Result<Self, NatsError> {
        let wrong = topology.check();
        if !wrong.is_empty() {
            return Err(NatsError::Topology(wrong));
        }
        let connection = Connection::open(config).await?;
        let shared = Arc::new(Shared {
            connection,
            topology,
            keeping: Keeping::new(config),
            publish_timeout: config.publish_timeout,
            request_timeout: config.request_timeout,
            health: watch::Sender::new(NatsHealth { up: false, why: "not connected yet".into() }),
            recheck: Notify::new(),
            closing: CancellationToken::new(),
            releases: TaskTracker::new(),
        });
        match shared.connection.wait(config.connect_timeout).await {
            Ok(()) => match shared.declare().await {
                Ok(()) => {}
                Err(DeclareError::Mismatch(all)) => return Err(NatsError::Mismatch(all)),
                Err(DeclareError::Away(why)) => tracing::warn!(why, "NATS cannot be used yet; trying on"),
            },
            Err(why) => {
                shared.down(why.clone());
                tracing::warn!(why, "NATS does not answer yet; trying on");
            }
        }
        let supervisor = crate::task::spawn("nats-supervisor", supervise(shared.clone()));
        Ok(Self { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    pub fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(publisher::NatsPublisher::new(self.shared.clone()))
    }

    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(subscriber::NatsSubscriber { shared: self.shared.clone() })
    }

    /// Whether NATS can be used, now and at every change.
    pub fn health(&self) -> watch::Receiver<NatsHealth> {
        self.shared.health.subscribe()
    }

    /// Gives back what subscriptions held and closes the connection. Publishers and
    /// subscribers fail from now on.
    pub async fn shutdown(&self) {
        self.shared.closing.cancel();
        let supervisor = self.supervisor.lock().take();
        let ended = async {
            if let Some(supervisor) = supervisor {
                // A panic is in the log already.
                let _ = supervisor.await;
            }
            // Not earlier: it may just be saying that everything is declared.
            self.shared.down("shut down".into());
            self.shared.releases.close();
            self.shared.releases.wait().await;
            let connection = &self.shared.connection;
            if let Ok(generation) = connection.generation()
                && connection.client.drain().await.is_ok()
            {
                connection.lost(generation).await;
            }
        };
        if tokio::time::timeout(SHUTDOWN, ended).await.is_err() {
            tracing::warn!(limit = ?SHUTDOWN, "NATS was not drained in time; unacknowledged messages come again");
        }
    }
}

impl Drop for Nats {
    /// The supervisor ends on its own.
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    /// The number of the present connection, or why nothing can be done.
    fn usable(&self) -> Result<u64, String> {
        if self.closing.is_cancelled() { Err("shut down".into()) } else { self.connection.generation() }
    }

    fn down(&self, why: String) {
        self.health.send_if_modified(|health| {
            let changed = health.up || health.why != why;
            (health.up, health.why) = (false, why);
            changed
        });
    }

    async fn declare(&self) -> Result<(), DeclareError> {
        let declared = self.topology.declare(&self.connection.jetstream, self.keeping).await;
        match &declared {
            Ok(away) => {
                let now = NatsHealth { up: true, why: named(away) };
                self.health.send_if_modified(|health| {
                    let changed = *health != now;
                    *health = now;
                    changed
                });
            }
            Err(why) => self.down(why.to_string()),
        }
        declared.map(drop)
    }
}

/// What to say of servers that are away; nothing when there are none.
fn named(away: &BTreeSet<String>) -> String {
    if away.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = away.iter().map(String::as_str).collect();
    format!("streams have not all of their replicas: {} is away", names.join(" and "))
}

/// Declares the topology after every reconnect, whenever somebody misses something, and now and then.
async fn supervise(shared: Arc<Shared>) {
    let closing = shared.closing.clone();
    closing.run_until_cancelled(watch_over(&shared)).await;
}

async fn watch_over(shared: &Shared) {
    let mut link = shared.connection.link();
    while connected(shared, &mut link).await {
        let Ok(generation) = shared.connection.generation() else { continue };
        if !declared(shared, generation).await {
            continue;
        }
        tokio::select! {
            why = shared.connection.lost(generation) => tracing::warn!(why, "NATS is away; connecting again"),
            // Whoever misses a stream tells so for every message: a look now and then will do.
            () = shared.recheck.notified() => tokio::time::sleep(DECLARE_FIRST).await,
            () = tokio::time::sleep(LOOK_NOW_AND_THEN) => {}
        }
    }
}

/// Waits for a connection and keeps the reason up to date meanwhile; `false` when there
/// will never be one again.
async fn connected(shared: &Shared, link: &mut watch::Receiver<Link>) -> bool {
    loop {
        let Link { connected, why, .. } = link.borrow_and_update().clone();
        if connected {
            return true;
        }
        shared.down(why);
        if link.changed().await.is_err() {
            return false;
        }
    }
}

/// Declares until everything is there; `false` when the connection is lost meanwhile.
async fn declared(shared: &Shared, generation: u64) -> bool {
    let mut delay = DECLARE_FIRST;
    while let Err(why) = shared.declare().await {
        let pause = match why {
            DeclareError::Mismatch(_) => LOOK_AGAIN,
            DeclareError::Away(_) => delay,
        };
        tracing::warn!(%why, "NATS cannot be used; trying again");
        tokio::time::sleep(pause).await;
        delay = (delay * 2).min(LOOK_AGAIN);
        if shared.connection.generation() != Ok(generation) {
            return false;
        }
    }
    true
}
