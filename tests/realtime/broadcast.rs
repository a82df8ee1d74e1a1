//! The broadcast queue of one instance: delivers what it is given, loses it, or is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use event_gateway::broker::{AckToken, Delivery, Inbound, Subscriber, Subscription, SubscriptionLost};
use event_gateway::domain::Event;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::gateway::until;
use crate::held::Held;
use crate::rabbit::Rabbit;

/// What happens to events that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Deliver,
    /// The queue is full, or the relay has not sent them yet.
    Lose,
}

/// What carries it.
pub enum Carrier {
    Held(Arc<Held>),
    Rabbit(Rabbit),
}

pub struct Broadcast {
    carrier: Carrier,
    mode: Mutex<Mode>,
    away: AtomicBool,
    /// Messages that a queue has taken.
    taken: AtomicU64,
    reader: Arc<Reader>,
}

/// What the live consumer has done.
#[derive(Default)]
struct Reader {
    subscribed: Notify,
    acknowledged: AtomicU64,
}

impl Broadcast {
    pub fn over(carrier: Carrier) -> Arc<Self> {
        Arc::new(Self {
            carrier,
            mode: Mutex::new(Mode::Deliver),
            away: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            reader: Arc::default(),
        })
    }

    /// For the live consumer.
    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        let carrier: Arc<dyn Subscriber> = match &self.carrier {
            Carrier::Held(held) => held.clone(),
            Carrier::Rabbit(rabbit) => rabbit.subscriber(),
        };
        Arc::new(Watched { carrier, reader: self.reader.clone() })
    }

    /// Waits for the next time that it subscribes.
    pub async fn subscribed(&self) {
        self.reader.subscribed.notified().await;
    }

    pub fn set_mode(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// The broker goes away, or comes back.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
        match &self.carrier {
            Carrier::Held(held) => held.set_away(away),
            Carrier::Rabbit(rabbit) => rabbit.set_away(away),
        }
    }

    /// Takes committed events, in the order given, those that browsers see.
    pub async fn send(&self, events: &[Arc<Event>]) {
        if *self.mode.lock() == Mode::Lose || self.away.load(Ordering::Relaxed) {
            return;
        }
        for event in events.iter().filter(|event| !event.event_type.audience.is_empty()) {
            let taken = match &self.carrier {
                Carrier::Held(held) => held.send(event),
                Carrier::Rabbit(rabbit) => rabbit.send(event).await,
            };
            self.taken.fetch_add(taken.into(), Ordering::Relaxed);
        }
    }

    /// Waits until the live consumer is done with everything that was sent.
    pub async fn drained(&self) {
        until("the queue to be empty", || {
            self.reader.acknowledged.load(Ordering::Relaxed) >= self.taken.load(Ordering::Relaxed)
        })
        .await;
    }

    pub async fn stop(&self) {
        if let Carrier::Rabbit(rabbit) = &self.carrier {
            rabbit.stop().await;
        }
    }
}

/// Notes what its reader does.
struct Watched<C> {
    reader: Arc<Reader>,
    carrier: C,
}

#[async_trait]
impl Subscriber for Watched<Arc<dyn Subscriber>> {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let carrier = self.carrier.subscribe(subscription).await?;
        self.reader.subscribed.notify_one();
        Ok(Box::new(Watched { reader: self.reader.clone(), carrier }))
    }
}

#[async_trait]
impl Inbound for Watched<Box<dyn Inbound>> {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        self.carrier.receive(max).await
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        self.reader.acknowledged.fetch_add(tokens.len() as u64, Ordering::Relaxed);
        self.carrier.ack(tokens).await
    }

    async fn lag(&mut self) -> Option<u64> {
        self.carrier.lag().await
    }
}
