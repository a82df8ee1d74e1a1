//! The queue in the test's hand: a channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use event_gateway::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Subscriber, Subscription, SubscriptionLost,
};
use event_gateway::domain::Event;
use parking_lot::Mutex;
use tokio::sync::mpsc;

#[derive(Default)]
pub struct Held {
    queue: Mutex<Option<mpsc::UnboundedSender<Delivery>>>,
    /// Subscribing fails.
    away: Mutex<bool>,
    token: AtomicU64,
}

impl Held {
    /// The broker goes away, or comes back.
    pub fn set_away(&self, away: bool) {
        *self.away.lock() = away;
        if away {
            *self.queue.lock() = None;
        }
    }

    /// Whether there was a queue to take it.
    pub fn send(&self, event: &Arc<Event>) -> bool {
        let delivery = Delivery {
            headers: Ok(Arc::new(event.headers())),
            encoding: Encoding::Json,
            body: event.payload.json.clone(),
            position: Position { log: "test".into(), partition: 0, offset: None },
            key: event.event_type.name.clone(),
            token: AckToken(self.token.fetch_add(1, Ordering::Relaxed)),
            redelivered: false,
        };
        // The subscriber may have gone meanwhile: as if the queue were.
        self.queue.lock().as_ref().is_some_and(|queue| queue.send(delivery).is_ok())
    }
}

#[async_trait]
impl Subscriber for Held {
    async fn subscribe(&self, _subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        if *self.away.lock() {
            return Err(SubscriptionLost("away".into()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.queue.lock() = Some(sender);
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
