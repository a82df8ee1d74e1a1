//! The producer, replaced by a new one when it can no longer be trusted.
//!
//! An idempotent producer that meets a fatal error (a gap in its sequence numbers, a fenced
//! epoch) refuses everything from then on. Such a producer is purged, so that nothing it
//! still holds goes out behind the retries, and dropped; the next window gets a new one.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::producer::{FutureProducer, Producer as _, PurgeConfig};

use super::KafkaError;
use super::connection::{self, Complaints, Context};
use crate::config::Kafka as KafkaConfig;

/// One producer.
pub(super) struct Generation {
    number: u64,
    /// There until it is dropped.
    producer: Option<FutureProducer<Context>>,
}

impl Generation {
    pub fn producer(&self) -> &FutureProducer<Context> {
        self.producer.as_ref().expect("taken by drop only")
    }

    /// Why it can do nothing any more, if so.
    pub fn fatal(&self) -> Option<String> {
        self.producer().client().fatal_error().map(|(code, why)| format!("{code}: {why}"))
    }

    fn purge(&self) {
        self.producer().purge(PurgeConfig::default().queue().inflight());
    }
}

impl Drop for Generation {
    /// Ending a producer joins its thread: not on a thread of the runtime.
    fn drop(&mut self) {
        let producer = self.producer.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(producer));
        }
    }
}

pub(super) struct Producers {
    config: KafkaConfig,
    complaints: Arc<Complaints>,
    current: Mutex<Option<Arc<Generation>>>,
    /// Held while one is made, so that lanes do not make one each.
    making: tokio::sync::Mutex<u64>,
}

impl Producers {
    pub fn new(config: &KafkaConfig, complaints: Arc<Complaints>) -> Self {
        Self { config: config.clone(), complaints, current: Mutex::default(), making: tokio::sync::Mutex::new(0) }
    }

    /// Can a producer be made of the settings?
    pub async fn check(&self) -> Result<(), KafkaError> {
        self.current().await.map(drop)
    }

    /// The producer to use now.
    pub async fn current(&self) -> Result<Arc<Generation>, KafkaError> {
        if let Some(current) = self.current.lock().clone() {
            return Ok(current);
        }
        let mut last = self.making.lock().await;
        if let Some(current) = self.current.lock().clone() {
            return Ok(current);
        }
        let context = Context(self.complaints.clone());
        let producer = connection::open(connection::producer(&self.config), context).await?;
        *last += 1;
        let made = Arc::new(Generation { number: *last, producer: Some(producer) });
        *self.current.lock() = Some(made.clone());
        Ok(made)
    }

    /// Purges this producer and lets nobody have it any more. What it held fails at once,
    /// for every lane.
    pub fn replace(&self, generation: &Arc<Generation>, why: &str) {
        {
            let mut current = self.current.lock();
            if current.as_ref().is_none_or(|current| current.number != generation.number) {
                return;
            }
            *current = None;
        }
        tracing::warn!(why, "the Kafka producer is replaced");
        generation.purge();
    }

    /// Ends the producer. What it still holds fails.
    pub fn close(&self) {
        if let Some(last) = self.current.lock().take() {
            last.purge();
        }
    }
}
