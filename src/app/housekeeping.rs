//! What must be looked at now and then: figures of the store for metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::{Broker, Timestamp};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::BacklogState;

pub(super) struct Housekeeping {
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
    /// Every consumer, so that an emptied backlog shows as zero.
    pub consumers: Vec<&'static str>,
}

const ROUND: Duration = Duration::from_secs(5);

impl Housekeeping {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            self.figures().await;
        }
    }

    /// Counts in the store what metrics show. Where that takes longer than a read may, as on tables
    /// that PostgreSQL has not analyzed yet, they show what they did before.
    pub async fn figures(&self) {
        let figures = match self.store.figures().await {
            Ok(figures) => figures,
            Err(error) => {
                tracing::warn!(%error, "figures of the store cannot be read");
                return;
            }
        };
        let now = Timestamp::now();
        for broker in Broker::ALL {
            let found = figures.open_legs.iter().find(|(of, ..)| *of == broker);
            let oldest = found.and_then(|(_, _, oldest)| *oldest);
            let open = found.map_or(0, |(_, open, _)| i64::try_from(*open).unwrap_or(i64::MAX));
            self.metrics.outbox_backlog[broker].set(open);
            let age = oldest.map_or(0.0, |at| now.ms_since(at) as f64 / 1000.0);
            self.metrics.outbox_oldest_seconds[broker].set(age);
        }
        for consumer in &self.consumers {
            let metrics = self.metrics.consumer(consumer);
            let rows = |wanted: &str| {
                let found = figures.backlog.iter().find(|(of, state, _)| &**of == *consumer && *state == wanted);
                found.map_or(0, |(_, _, rows)| i64::try_from(*rows).unwrap_or(i64::MAX))
            };
            metrics.backlog_entries[BacklogState::Retrying].set(rows("retrying"));
            metrics.backlog_entries[BacklogState::Parked].set(rows("parked"));
            metrics.dead_letters.set(rows("dead"));
        }
    }
}
