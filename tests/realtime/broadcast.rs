//! The broadcast queue of one instance: delivers what it is given, loses it, or is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use event_gateway::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Subscriber, Subscription, SubscriptionLost,
};
use event_gateway::domain::Event;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// What happens to events that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Deliver,
    /// The queue is full, or the relay has not sent them yet.
    Lose,
}

pub struct Broadcast {
    queue: Mutex<Option<mpsc::UnboundedSender<Delivery>>>,
    mode: Mutex<Mode>,
    /// Subscribing fails.
    away: Mutex<bool>,
    token: AtomicU64,
    pub subscribed: tokio::sync::Notify,
}

impl Broadcast {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(None),
            mode: Mutex::new(Mode::Deliver),
            away: Mutex::new(false),
            token: AtomicU64::new(0),
            subscribed: tokio::sync::Notify::new(),
        })
    }

    pub fn set_mode(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// The broker goes away, or comes back.
    pub fn set_away(&self, away: bool) {
        *self.away.lock() = away;
        if away {
            *self.queue.lock() = None;
        }
    }

    /// Takes committed events, in the order given, those that browsers see.
    pub fn send(&self, events: &[Arc<Event>]) {
        if *self.mode.lock() == Mode::Lose {
            return;
        }
        let queue = self.queue.lock();
        let Some(queue) = &*queue else { return };
        for event in events.iter().filter(|event| !event.event_type.audience.is_empty()) {
            let delivery = Delivery {
                headers: Ok(Arc::new(event.headers())),
                encoding: Encoding::Json,
                body: event.payload.json.clone(),
                position: Position { log: "test".into(), partition: 0, offset: None },
                key: event.event_type.name.clone(),
                token: AckToken(self.token.fetch_add(1, Ordering::Relaxed)),
                redelivered: false,
            };
            // The subscriber has gone meanwhile: as if the queue were.
            let _ = queue.send(delivery);
        }
    }
}

#[async_trait]
impl Subscriber for Broadcast {
    async fn subscribe(&self, _subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        if *self.away.lock() {
            return Err(SubscriptionLost("away".into()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.queue.lock() = Some(sender);
        self.subscribed.notify_one();
        Ok(Box::new(Queue(receiver)))
    }
}

struct Queue(mpsc::UnboundedReceiver<Delivery>);

#[async_trait]
impl Inbound for Queue {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let mut batch = Vec::new();
        match self.0.recv_many(&mut batch, max).await {
            0 => Err(SubscriptionLost("the broker went away".into())),
            _ => Ok(batch),
        }
    }

    async fn ack(&mut self, _tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        None
    }
}
