//! The brokers this gateway was configured for, behind one handle.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::core::StartError;
use crate::broker::embedded::{Embedded, EmbeddedTopology};
use crate::broker::{Publisher, Source, Subscriber, Subscription};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;
use crate::store::{BrokerEnd, Store};

/// RabbitMQ, Kafka and NATS JetStream, or what stands in for them.
pub struct Brokers {
    embedded: Embedded,
}

impl Brokers {
    /// Opens the embedded brokers in `data_dir`, declares `durable` consumers, so that
    /// nothing published before they subscribe is missed, and has the store re-open the
    /// legs of what a power cut took from the logs.
    ///
    /// # Errors
    /// Nothing runs when it fails.
    pub async fn embedded(
        data_dir: &Path,
        catalogue: &Catalogue,
        durable: Vec<Subscription>,
        store: &dyn Store,
    ) -> Result<Self, StartError> {
        let topology = EmbeddedTopology::from_catalogue(catalogue, durable);
        let embedded = Embedded::open(&data_dir.join("brokers.db"), topology).await?;
        reopen_lost(store, &embedded).await?;
        Ok(Self { embedded })
    }

    /// One for each broker.
    pub fn publishers(&self) -> Vec<Arc<dyn Publisher>> {
        Broker::ALL.iter().map(|broker| self.embedded.publisher(*broker)).collect()
    }

    /// Where a kind of source is read from.
    pub fn subscriber(&self, source: &Source) -> Arc<dyn Subscriber> {
        self.embedded.subscriber(broker_of(source))
    }

    /// Writes out what was confirmed and closes. Publishers and subscribers fail from now on.
    pub async fn shutdown(&self) {
        self.embedded.shutdown().await;
    }
}

fn broker_of(source: &Source) -> Broker {
    match source {
        Source::Queue { .. } => Broker::Rabbitmq,
        Source::Topics(_) => Broker::Kafka,
        Source::WorkQueue { .. } | Source::Ephemeral { .. } => Broker::Nats,
    }
}

/// The embedded logs confirm before they sync. What one lost in a power cut is published
/// again: its legs, marked done, become pending.
async fn reopen_lost(store: &dyn Store, embedded: &Embedded) -> Result<(), StartError> {
    let actual = embedded.ends();
    let lost: Vec<BrokerEnd> = store
        .broker_ends()
        .await?
        .into_iter()
        .filter_map(|known| {
            let end = actual
                .iter()
                .find(|end| end.broker == known.broker && end.log == known.log && end.partition == known.partition)
                .map_or(0, |end| end.end);
            (end < known.end).then_some(BrokerEnd { end, ..known })
        })
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let logs: HashSet<&str> = lost.iter().map(|end| &*end.log).collect();
    let reopened = store.reopen_legs(&lost).await?;
    tracing::warn!(reopened, ?logs, "the embedded logs had lost their unsynced tail; publishing it again");
    Ok(())
}
