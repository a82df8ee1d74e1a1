//! Live updates: what this instance commits goes straight to its sockets, what others commit
//! comes through its broadcast queue, and where both fall short the store has it.
//!
//! Unlike other consumers it leaves no rows: what it has delivered is known by channel and
//! offset, and whatever it misses is read again. While the broker is away the sweep keeps
//! sockets live.

mod filler;
mod own;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use filler::Filler;
use own::OwnReader;
pub use own::{Committed, OwnEvents, own_events};

use crate::broker::{AckToken, Delivery, Inbound, Source, Subscriber, Subscription};
use crate::domain::Timestamp;
use crate::domain::catalogue::Catalogue;
use crate::domain::event::Encoding;
use crate::realtime::{Published, Realtime, Update};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::facts::{ComponentChanged, HandlerFailed};
use crate::telemetry::metrics::{ConsumerMetrics, FailureClass};
use crate::telemetry::readiness::ComponentState;

/// The consumer's name, in metrics and to the broker.
pub const NAME: &str = "live";

const BATCH: usize = 512;
const PREFETCH: usize = 2_048;
/// Sockets get their turn at the processor at least this often.
const TURN: Duration = Duration::from_millis(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// What the live consumer works with.
#[derive(Clone)]
pub struct Live {
    pub realtime: Realtime,
    pub store: Arc<dyn Store>,
    pub subscriber: Arc<dyn Subscriber>,
    pub catalogue: Arc<Catalogue>,
    pub metrics: Arc<Metrics>,
    /// This instance and its epoch: the queue is theirs alone.
    pub instance: Arc<str>,
    pub epoch: i64,
}

impl Live {
    /// What it reads. The name holds the epoch, because a half-open old connection keeps
    /// an exclusive queue's name locked.
    pub fn source(&self) -> Source {
        let binding = |exchange: &str, key: &str| (exchange.into(), key.into());
        Source::Queue {
            name: format!("websocket-broadcast.{}-{}", self.instance, self.epoch).into(),
            bindings: vec![
                binding("job.events", "job.#"),
                binding("notifications", "notifications.*"),
                binding("metrics", "metrics.#"),
            ],
            exclusive: true,
        }
    }

    /// Starts the reader of `own` events, that of the queue, and the filler. They end at `stop`;
    /// what they hold is in the store.
    pub fn spawn(self, own: Committed, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let resubscribed = Arc::new(tokio::sync::Notify::new());
        let metrics = self.metrics.consumer(NAME);
        let own = OwnReader { realtime: self.realtime.clone(), metrics: metrics.clone() }.run(own, stop.child_token());
        let reader = Reader { metrics, live: self.clone(), resubscribed: resubscribed.clone() };
        let filler = Filler { realtime: self.realtime, store: self.store, resubscribed };
        vec![
            crate::task::spawn("live-own", own),
            crate::task::spawn("live-reader", reader.run(stop.child_token())),
            crate::task::spawn("live-filler", filler.run(stop.child_token())),
        ]
    }
}

/// From the broadcast queue to rooms.
struct Reader {
    live: Live,
    metrics: ConsumerMetrics,
    resubscribed: Arc<tokio::sync::Notify>,
}

impl Reader {
    async fn run(self, stop: CancellationToken) {
        let subscription = Subscription {
            consumer: NAME.into(),
            source: self.live.source(),
            prefetch: PREFETCH,
            ack_wait: Duration::from_secs(30),
        };
        let mut delay = RETRY_FIRST;
        let mut up = None;
        loop {
            let subscribed = tokio::select! {
                () = stop.cancelled() => return,
                subscribed = self.live.subscriber.subscribe(&subscription) => subscribed,
            };
            let lost = match subscribed {
                Ok(inbound) => {
                    self.changed(&mut up, true, "subscribed to the broadcast queue");
                    delay = RETRY_FIRST;
                    // The queue starts empty: what came before is in the store.
                    self.resubscribed.notify_one();
                    tokio::select! {
                        () = stop.cancelled() => return,
                        lost = self.read(inbound) => lost,
                    }
                }
                Err(error) => error.to_string(),
            };
            self.changed(&mut up, false, &lost);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    fn changed(&self, was: &mut Option<bool>, up: bool, why: &str) {
        if was.replace(up) != Some(up) {
            let state = if up { ComponentState::Up } else { ComponentState::Down };
            ComponentChanged { component: NAME, state, why }.record(&self.live.metrics);
        }
    }

    /// Reads until the subscription breaks; returns why.
    async fn read(&self, mut inbound: Box<dyn Inbound>) -> String {
        loop {
            let batch = match inbound.receive(BATCH).await {
                Ok(batch) => batch,
                Err(error) => return error.to_string(),
            };
            let mut turn = Turn::new();
            for delivery in &batch {
                turn.after(self.publish(delivery)).await;
            }
            let tokens: Vec<AckToken> = batch.iter().map(|delivery| delivery.token).collect();
            if let Err(error) = inbound.ack(&tokens).await {
                return error.to_string();
            }
        }
    }

    fn publish(&self, delivery: &Delivery) -> Published {
        let headers = match &delivery.headers {
            Ok(headers) => headers,
            Err(why) => {
                // Nothing is lost: the sweep finds it in the store by its offset.
                HandlerFailed {
                    consumer: NAME,
                    event_id: None,
                    class: FailureClass::Undecodable,
                    attempt: 1,
                    error: why,
                }
                .record(&self.metrics);
                return Published::Nobody;
            }
        };
        let Some(event_type) = self.live.catalogue.get(&headers.event_type) else { return Published::Nobody };
        if event_type.audience.is_empty() || delivery.encoding != Encoding::Json {
            return Published::Nobody;
        }
        let update = Update::of_message(headers, event_type.clone(), delivery.body.clone());
        observed(self.live.realtime.publish(update), headers.occurred_at, &self.metrics)
    }
}

/// Counts what reached somebody, with its age.
fn observed(published: Published, occurred_at: Timestamp, metrics: &ConsumerMetrics) -> Published {
    if published != Published::Nobody {
        metrics.consume_seconds.observe(Timestamp::now().ms_since(occurred_at) as f64 / 1000.0);
    }
    published
}

/// Leaves the processor to the sockets' tasks, so that they write what was published.
struct Turn(Instant);

impl Turn {
    fn new() -> Self {
        Self(Instant::now())
    }

    async fn after(&mut self, published: Published) {
        let over = match published {
            Published::Nobody => false,
            Published::Sent => self.0.elapsed() >= TURN,
            Published::Crowded => true,
        };
        if over {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
