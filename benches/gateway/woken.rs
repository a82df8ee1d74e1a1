//! Workers of the `external` agent that a JetStream message wakes (`claim = "jetstream"`,
//! which `scripts/bench external` sets): they take and acknowledge every command, no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, pull};
use futures_util::StreamExt;
use tokio::task::JoinHandle;

const STREAM: &str = "COMMANDS_JOB";
const SUBJECT: &str = "commands.job.submit.external";
/// Their durable consumer.
const WORKERS: &str = "bench-workers";
const BATCH: usize = 256;

/// Running workers; they end when dropped.
pub struct Workers {
    taken: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Workers {
    /// Where `GATEWAY__NATS__URLS` names servers and `GATEWAY__RUNNER__AGENTS` an agent of this
    /// kind; the gateway has made the stream.
    pub async fn start() -> Option<Self> {
        std::env::var("GATEWAY__RUNNER__AGENTS").ok().filter(|agents| agents.contains("jetstream"))?;
        let urls = std::env::var("GATEWAY__NATS__URLS").ok()?;
        let servers: Vec<String> = urls.split(',').map(str::to_owned).collect();
        let client = async_nats::connect(servers).await.expect("a connection");
        let stream = async_nats::jetstream::new(client).get_stream(STREAM).await.expect("it is there");
        let config = pull::Config {
            durable_name: Some(WORKERS.to_owned()),
            filter_subject: SUBJECT.to_owned(),
            ..pull::Config::default()
        };
        let consumer = stream.get_or_create_consumer(WORKERS, config).await.expect("a consumer");
        let taken = Arc::new(AtomicU64::new(0));
        let task = event_gateway::task::spawn(WORKERS, take(consumer, taken.clone()));
        Some(Self { taken, task })
    }

    /// Commands taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(consumer: Consumer<pull::Config>, taken: Arc<AtomicU64>) {
    loop {
        let batch = consumer.batch().max_messages(BATCH).expires(Duration::from_secs(1)).messages().await;
        let mut messages = batch.expect("a batch");
        while let Some(message) = messages.next().await {
            message.expect("a message").ack().await.expect("sent");
            taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}
