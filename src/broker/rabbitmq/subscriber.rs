//! The consuming side: one channel a subscription.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::Instant;

use super::Shared;
use super::acks::Unsettled;
use super::message;
use super::topology::{self, Queue};
use crate::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Source, Subscriber, Subscription, SubscriptionLost,
};

/// How long the number of waiting messages is believed.
const LAG_AGE: Duration = Duration::from_secs(1);
/// How long one command on an open channel may take.
const COMMAND: Duration = Duration::from_secs(10);

pub(super) struct RabbitSubscriber {
    shared: Arc<Shared>,
}

impl RabbitSubscriber {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn open(&self, subscription: &Subscription) -> Result<RabbitInbound, String> {
        let Source::Queue { name, bindings, exclusive } = &subscription.source else {
            return Err(format!("{:?} is not a source of RabbitMQ", subscription.source));
        };
        let session = self.shared.consuming.session()?;
        let channel = session.connection.create_channel().await.map_err(|error| error.to_string())?;
        let topology = &self.shared.topology;
        let mut queue = Queue { name: name.clone(), bindings: bindings.clone() };
        let declared = if *exclusive {
            // A half-open old connection keeps a name locked until its heartbeats run out.
            let number = self.shared.broadcasts.fetch_add(1, Ordering::Relaxed);
            queue.name = format!("{name}.{}-{number}", session.generation).into();
            topology::declare_broadcast(&channel, topology, &queue).await
        } else {
            topology::declare_queue(&channel, topology, &queue, session.server).await.map(drop)
        };
        declared.map_err(|error| error.to_string())?;
        let reader = Reader { consumer: subscription.consumer.clone(), queue: queue.name, exclusive: *exclusive };
        reader.consume(channel, subscription.prefetch).await.map_err(|error| error.to_string())
    }

    pub async fn open_dead_letters(&self, consumer: Arc<str>, prefetch: usize) -> Result<RabbitInbound, String> {
        let session = self.shared.consuming.session()?;
        let queue = self.shared.topology.dead_letter_queue.clone();
        let opening = async {
            let channel = session.connection.create_channel().await?;
            Reader { consumer, queue, exclusive: false }.consume(channel, prefetch).await
        };
        opening.await.map_err(|error: lapin::Error| error.to_string())
    }

    /// Gives `opening` its time.
    pub async fn within_limit(
        &self,
        consumer: &str,
        opening: impl Future<Output = Result<RabbitInbound, String>>,
    ) -> Result<RabbitInbound, SubscriptionLost> {
        let limit = self.shared.declare_timeout;
        let opened = tokio::time::timeout(limit, opening).await;
        let opened = opened.unwrap_or_else(|_| Err(format!("RabbitMQ did not answer within {limit:?}")));
        opened.map_err(|why| SubscriptionLost(format!("{consumer}: {why}")))
    }
}

/// Who reads what.
struct Reader {
    consumer: Arc<str>,
    queue: Arc<str>,
    exclusive: bool,
}

impl Reader {
    async fn consume(self, channel: Channel, prefetch: usize) -> lapin::Result<RabbitInbound> {
        let prefetch = u16::try_from(prefetch.max(1)).unwrap_or(u16::MAX);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions { exclusive: self.exclusive, ..BasicConsumeOptions::default() };
        let mut unconfirmed = Unconfirmed(Some(channel.clone()));
        let stream = channel.basic_consume((&*self.queue).into(), "".into(), options, FieldTable::default()).await?;
        unconfirmed.0 = None;
        Ok(RabbitInbound {
            consumer: self.consumer,
            queue: self.queue,
            channel,
            stream,
            fetched: VecDeque::new(),
            unsettled: Unsettled::default(),
            waiting: None,
        })
    }
}

/// A channel that has asked for messages and is not told yet that it gets them.
///
/// When the asking is given up, lapin keeps the channel, and once the server agrees it has a consumer that
/// nobody reads. Where a queue has one consumer at a time, all others wait for that one.
struct Unconfirmed(Option<Channel>);

impl Drop for Unconfirmed {
    fn drop(&mut self) {
        if let Some(channel) = self.0.take() {
            // Sent with this. The server answers to nobody.
            let _ = channel.close(200, "given up".into()).now_or_never();
        }
    }
}

#[async_trait]
impl Subscriber for RabbitSubscriber {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        Ok(Box::new(self.within_limit(&subscription.consumer, self.open(subscription)).await?))
    }
}

/// Dropped, its channel closes and the server delivers again what is not acknowledged.
pub(super) struct RabbitInbound {
    consumer: Arc<str>,
    queue: Arc<str>,
    channel: Channel,
    stream: Consumer,
    /// Received, not yet handed out.
    fetched: VecDeque<lapin::message::Delivery>,
    unsettled: Unsettled,
    /// Messages the queue had for us, and when that was.
    waiting: Option<(Instant, u64)>,
}

impl RabbitInbound {
    fn lost(&self, why: impl std::fmt::Display) -> SubscriptionLost {
        SubscriptionLost(format!("{}: {why}", self.consumer))
    }

    fn take_in(&mut self, next: Option<lapin::Result<lapin::message::Delivery>>) -> Result<(), SubscriptionLost> {
        match next {
            Some(Ok(delivery)) => {
                self.fetched.push_back(delivery);
                Ok(())
            }
            Some(Err(error)) => Err(self.lost(error)),
            None => Err(self.lost("the server ended the subscription")),
        }
    }

    /// Takes in what has arrived, without waiting.
    fn drain(&mut self, enough: usize) -> Result<(), SubscriptionLost> {
        while self.fetched.len() < enough
            && let Some(next) = self.stream.next().now_or_never()
        {
            self.take_in(next)?;
        }
        Ok(())
    }

    /// Waits for at least one and takes up to `max`. Given up, it has taken none.
    pub async fn fetch(&mut self, max: usize) -> Result<Vec<lapin::message::Delivery>, SubscriptionLost> {
        if self.fetched.is_empty() {
            let next = self.stream.next().await;
            self.take_in(next)?;
        }
        let max = max.max(1);
        self.drain(max)?;
        let count = max.min(self.fetched.len());
        Ok(self.fetched.drain(..count).collect())
    }

    pub fn hand_out(&mut self, delivery: lapin::message::Delivery) -> Delivery {
        self.unsettled.handed_out(delivery.delivery_tag);
        Delivery {
            headers: message::headers(&delivery.properties).map(Arc::new),
            encoding: Encoding::Json,
            position: Position { log: delivery.exchange.as_str().into(), partition: 0, offset: None },
            key: delivery.routing_key.as_str().into(),
            token: AckToken(delivery.delivery_tag),
            redelivered: delivery.redelivered,
            body: delivery.data.into(),
        }
    }

    /// Messages in the queue that are with no consumer.
    async fn ready(&self) -> Option<u64> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asking = self.channel.queue_declare((&*self.queue).into(), options, FieldTable::default());
        let queue = tokio::time::timeout(COMMAND, asking).await.ok()?.ok()?;
        Some(u64::from(queue.message_count()))
    }
}

#[async_trait]
impl Inbound for RabbitInbound {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let fetched = self.fetch(max).await?;
        Ok(fetched.into_iter().map(|delivery| self.hand_out(delivery)).collect())
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        for ack in self.unsettled.settle(tokens.iter().map(|token| token.0)) {
            let options = BasicAckOptions { multiple: ack.multiple };
            match tokio::time::timeout(COMMAND, self.channel.basic_ack(ack.tag, options)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.lost(error)),
                Err(_) => return Err(self.lost(format!("not acknowledged within {COMMAND:?}"))),
            }
        }
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        let known = self.waiting.filter(|(at, _)| at.elapsed() < LAG_AGE);
        let ready = match known {
            Some((_, ready)) => ready,
            None => {
                let ready = self.ready().await?;
                self.waiting = Some((Instant::now(), ready));
                ready
            }
        };
        self.drain(usize::MAX).ok()?;
        Some(ready + (self.unsettled.len() + self.fetched.len()) as u64)
    }
}
