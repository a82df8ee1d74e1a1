//! The brokers this gateway was configured for, behind one handle.

mod embedded;
pub(super) mod external;

use std::sync::Arc;

use tokio::task::JoinHandle;

use self::external::External;
use super::core::StartError;
use crate::broker::dead_letters::DeadLetterSource;
use crate::broker::embedded::Embedded;
use crate::broker::{Publisher, Source, Subscriber, Subscription};
use crate::config::{BrokerMode, Config};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;
use crate::store::Store;
use crate::telemetry::readiness::{Latch, Readiness};

/// RabbitMQ, Kafka and NATS JetStream, or what stands in for them.
pub struct Brokers {
    /// For every broker that is not external.
    embedded: Option<Embedded>,
    external: External,
}

impl Brokers {
    /// Opens them and declares `durable` consumers, so that nothing published before they
    /// subscribe is missed.
    ///
    /// # Errors
    /// Nothing runs when it fails.
    pub async fn open(
        config: &Config,
        catalogue: &Catalogue,
        durable: Vec<Subscription>,
        store: &dyn Store,
    ) -> Result<Self, StartError> {
        let external = External::open(config, catalogue, &durable).await?;
        let all_external = Broker::ALL.iter().all(|broker| config.broker_mode(*broker) == BrokerMode::External);
        let embedded =
            if all_external { None } else { Some(embedded::open(&config.data.dir, catalogue, durable, store).await?) };
        Ok(Self { embedded, external })
    }

    /// One for each broker.
    pub fn publishers(&self) -> Vec<Arc<dyn Publisher>> {
        let embedded = |broker| Some(self.embedded.as_ref()?.publisher(broker));
        Broker::ALL.iter().filter_map(|broker| self.external.publisher(*broker).or_else(|| embedded(*broker))).collect()
    }

    /// Where a kind of source is read from.
    pub fn subscriber(&self, source: &Source) -> Arc<dyn Subscriber> {
        let broker = source.broker();
        let embedded = || Some(self.embedded.as_ref()?.subscriber(broker));
        self.external.subscriber(broker).or_else(embedded).expect("a broker that is not external is embedded")
    }

    /// Messages that a broker took out of its queues by its own rules; `None` where none does.
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetterSource>> {
        self.external.dead_letters()
    }

    /// Shows them in readiness, as long as the tasks run: abort them at shutdown.
    pub fn watch(&self, readiness: &Arc<Readiness>) -> Vec<JoinHandle<()>> {
        let mut tasks = self.external.watch(readiness);
        if self.embedded.is_some() {
            let latch = readiness.latch("brokers");
            latch.up();
            tasks.push(crate::task::spawn("brokers-readiness", hold(latch)));
        }
        tasks
    }

    /// Writes out what was confirmed and closes. Publishers and subscribers fail from now on.
    pub async fn shutdown(&self) {
        self.external.shutdown().await;
        if let Some(embedded) = &self.embedded {
            embedded.shutdown().await;
        }
    }
}

/// Embedded brokers share the fate of this process.
async fn hold(_up: Latch) {
    std::future::pending().await
}
