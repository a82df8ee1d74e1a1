//! The consuming side: joins a group and turns records into deliveries.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::decoder::{Decoder, Needs};
use super::group::{self, Received, State};
use super::rebalance::Group;
use super::topology::prefixed;
use super::{CLOSED, Shared, connection};
use crate::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Source, Subscriber, Subscription, SubscriptionLost,
};
use crate::schema_registry::RegistryError;

/// Between two questions to a registry that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct KafkaSubscriber {
    pub shared: Arc<Shared>,
}

#[async_trait]
impl Subscriber for KafkaSubscriber {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let lost = |why: String| SubscriptionLost(format!("{}: {why}", subscription.consumer));
        if self.shared.closing.is_cancelled() {
            return Err(lost(CLOSED.to_owned()));
        }
        let Source::Topics(topics) = &subscription.source else {
            return Err(lost(format!("{:?} is not a source of kafka", subscription.source)));
        };
        let config = &self.shared.config;
        let topics: Vec<Arc<str>> = topics.iter().map(|topic| prefixed(config, topic)).collect();
        let state = Arc::new(State::new(subscription.consumer.clone(), subscription.prefetch, config.handover));
        let context = Group { state: state.clone(), complaints: self.shared.complaints.clone() };
        let settings = connection::consumer(config, &prefixed(config, &subscription.consumer));
        let consumer: BaseConsumer<Group> =
            connection::open(settings, context).await.map_err(|error| lost(error.to_string()))?;
        let consumer = self.join(consumer, state.clone(), topics.clone()).await.map_err(lost)?;

        group::start(state.clone(), consumer, topics).map_err(|error| lost(format!("no thread for it: {error}")))?;
        let mut members = self.shared.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(&state));
        drop(members);
        Ok(Box::new(KafkaInbound { decoder: Decoder::new(self.shared.clone()), shared: self.shared.clone(), state }))
    }
}

impl KafkaSubscriber {
    /// Looks whether the topics are there and which they are, and subscribes.
    async fn join(
        &self,
        consumer: BaseConsumer<Group>,
        state: Arc<State>,
        topics: Vec<Arc<str>>,
    ) -> Result<BaseConsumer<Group>, String> {
        let shared = self.shared.clone();
        let joined = tokio::task::spawn_blocking(move || {
            for topic in &topics {
                let known = consumer.fetch_metadata(Some(topic), shared.config.request_timeout);
                let known = known.map_err(|error| shared.unreachable(&error).to_string())?;
                let there = known.topics().iter().any(|known| known.name() == &**topic && known.error().is_none());
                if !there {
                    return Err(format!("there is no topic {topic}"));
                }
            }
            state.reads(shared.identities.of(consumer.client(), &topics));
            let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
            consumer.subscribe(&names).map_err(|error| error.to_string())?;
            Ok(consumer)
        });
        joined.await.map_err(|error| error.to_string())?
    }
}

struct KafkaInbound {
    shared: Arc<Shared>,
    state: Arc<State>,
    decoder: Decoder,
}

impl KafkaInbound {
    fn lost(&self, why: impl std::fmt::Display) -> SubscriptionLost {
        SubscriptionLost(format!("{}: {why}", self.state.consumer))
    }

    /// Is it over?
    fn check(&self) -> Result<(), SubscriptionLost> {
        if self.shared.closing.is_cancelled() {
            self.state.stop();
            return Err(self.lost(CLOSED));
        }
        self.state.lost().map_or(Ok(()), |why| Err(self.lost(why)))
    }

    fn delivery(&self, token: AckToken, received: Received, unknown: Option<u32>) -> Delivery {
        let body = received.body;
        let (headers, body) = match received.headers {
            Err(why) => (Err(why), body),
            Ok(headers) => match self.decoder.decode(&headers.event_type, &body) {
                Ok(record) => (Ok(Arc::new(headers)), record),
                // With what the headers say, so that whoever looks at it knows what it was.
                Err(why) => {
                    tracing::warn!(consumer = %self.state.consumer, ?unknown, event_id = %headers.event_id, why,
                        "a record cannot be read");
                    let (name, id) = (&headers.event_type, headers.event_id);
                    let (aggregate, sequence) = (&headers.aggregate_id, headers.sequence);
                    (Err(format!("{why} ({name} {id}, {aggregate} sequence {sequence})")), body)
                }
            },
        };
        let (log, partition) = received.place;
        Delivery {
            headers,
            encoding: Encoding::Avro,
            body,
            position: Position { log, partition, offset: Some(received.offset) },
            key: received.key,
            token,
            redelivered: false,
        }
    }
}

#[async_trait]
impl Inbound for KafkaInbound {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let state = self.state.clone();
        let closing = self.shared.closing.clone();
        let mut pause = FIRST_PAUSE;
        // A schema that a reachable registry has just said it does not have.
        let mut unknown: Option<u32> = None;
        loop {
            let mut arrived = std::pin::pin!(state.arrived.notified());
            // Before looking, so that nothing between the look and the wait is missed.
            arrived.as_mut().enable();
            self.check()?;
            // Nothing is awaited between taking and answering: a dropped future loses nothing.
            let (taken, needed) = state.take(max.max(1), |message| match &message.headers {
                Ok(headers) => match self.decoder.needs(&headers.event_type, &message.body) {
                    Needs::Schema(id) if unknown != Some(id) => Err(id),
                    _ => Ok(()),
                },
                Err(_) => Ok(()),
            });
            if !taken.is_empty() {
                return Ok(taken.into_iter().map(|(token, message)| self.delivery(token, message, unknown)).collect());
            }
            let Some(id) = needed else {
                tokio::select! {
                    () = arrived => {}
                    () = closing.cancelled() => {}
                }
                continue;
            };
            match self.decoder.load(id).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(RegistryError::NotFound(_)) => unknown = Some(id),
                Err(error) => {
                    tracing::warn!(consumer = %state.consumer, %error, ?pause, "waiting for the schema registry");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = closing.cancelled() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        self.check()?;
        self.state.acknowledge(tokens);
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        self.state.lag()
    }
}

impl Drop for KafkaInbound {
    fn drop(&mut self) {
        self.state.stop();
    }
}
