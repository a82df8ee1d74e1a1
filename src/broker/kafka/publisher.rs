//! The publishing side: a whole window is produced, then every confirmation awaited.
//!
//! Order per key needs no more than this: a window holds a key once, and the relay sends a
//! key's next event after the one before is confirmed. What fails here is never sent again
//! by the producer behind our back: either its time is over, or the producer is purged.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{DeliveryFuture, FutureRecord};

use super::producer::Generation;
use super::topology::prefixed;
use super::{CLOSED, Shared, headers, keeper};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::Broker;

/// librdkafka reports a time-out within a second of it; later, the producer has stalled.
const GRACE: Duration = Duration::from_secs(5);
/// The magic byte of Confluent's wire format, before the schema's id.
pub(super) const MAGIC: u8 = 0;

pub(super) struct KafkaPublisher {
    pub shared: Arc<Shared>,
}

/// A record that is ready to be produced.
struct Encoded {
    topic: Arc<str>,
    headers: OwnedHeaders,
    body: Vec<u8>,
}

/// A record that was produced and where its result goes.
struct Sent {
    index: usize,
    topic: Arc<str>,
    delivery: DeliveryFuture,
}

type Results = Vec<Result<Position, PublishError>>;

#[async_trait]
impl Publisher for KafkaPublisher {
    fn broker(&self) -> Broker {
        Broker::Kafka
    }

    async fn publish(&self, window: &[Outgoing]) -> Results {
        if window.is_empty() {
            return Vec::new();
        }
        if self.shared.closing.is_cancelled() {
            return all_down(window, CLOSED);
        }
        if let Some(why) = self.shared.health.borrow().not_prepared() {
            return all_down(window, &why);
        }
        let generation = match self.shared.producers.current().await {
            Ok(generation) => generation,
            Err(error) => return all_down(window, &error.to_string()),
        };
        // All are encoded before the first is produced: what comes in one go leaves in full batches.
        let encoded: Vec<_> = window.iter().map(|outgoing| self.encode(outgoing)).collect();
        let mut results: Results = Vec::with_capacity(window.len());
        let mut sent = Vec::with_capacity(window.len());
        for (index, (outgoing, encoded)) in window.iter().zip(encoded).enumerate() {
            match encoded.and_then(|encoded| self.send(&generation, outgoing, encoded)) {
                Ok((topic, delivery)) => {
                    sent.push(Sent { index, topic, delivery });
                    // Replaced by its confirmation.
                    results.push(Err(PublishError::Down(String::new())));
                }
                Err(why) => results.push(Err(why)),
            }
        }
        self.settle(&generation, sent, &mut results).await;
        results
    }
}

impl KafkaPublisher {
    fn encode(&self, Outgoing { event, route }: &Outgoing) -> Result<Encoded, PublishError> {
        let config = &self.shared.config;
        let topic = prefixed(config, &route.target);
        if !self.shared.topology.topics.iter().any(|known| known.name == topic) {
            return Err(PublishError::Permanent(format!("kafka has no topic {topic}; add it to the catalogue")));
        }
        let Some(id) = self.shared.schemas.id(&route.target, &event.event_type.name) else {
            return Err(PublishError::Permanent(format!(
                "the catalogue has no route of {} to topic {}",
                event.event_type.name, route.target
            )));
        };
        let mut body = vec![MAGIC];
        body.extend_from_slice(&id.to_be_bytes());
        let prefix = body.len();
        let written = event.event_type.write_record(event, &mut body);
        written.map_err(|why| PublishError::Permanent(format!("not encodable as Avro: {why}")))?;
        let (length, most) = (body.len() - prefix, config.max_message.as_u64());
        if length as u64 > most {
            return Err(PublishError::Permanent(format!("the body has {length} bytes, at most {most} are taken")));
        }
        Ok(Encoded { topic, headers: headers::write(&event.headers()), body })
    }

    fn send(
        &self,
        generation: &Generation,
        outgoing: &Outgoing,
        encoded: Encoded,
    ) -> Result<(Arc<str>, DeliveryFuture), PublishError> {
        let Encoded { topic, headers, body } = encoded;
        let record = FutureRecord::to(&topic).key(outgoing.route.key.as_bytes()).payload(&body).headers(headers);
        match generation.producer().send_result(record) {
            Ok(delivery) => Ok((topic, delivery)),
            Err((error, _)) => Err(self.failure(&error)),
        }
    }

    /// Awaits every confirmation; replaces the producer if it can no longer be trusted.
    async fn settle(&self, generation: &Arc<Generation>, sent: Vec<Sent>, results: &mut Results) {
        let limit = tokio::time::Instant::now() + self.shared.config.delivery_timeout + GRACE;
        let mut given_up = None;
        for Sent { index, topic, delivery } in sent {
            let settled = tokio::select! {
                // What is confirmed counts, whatever else has happened.
                biased;
                settled = delivery => settled,
                () = self.shared.closing.cancelled(), if given_up.is_none() => {
                    given_up = Some(CLOSED);
                    results[index] = Err(PublishError::Down(CLOSED.to_owned()));
                    continue;
                }
                () = tokio::time::sleep_until(limit), if given_up.is_none() => {
                    given_up = Some("it has not reported what became of its records");
                    results[index] = Err(PublishError::Down("no answer in time".to_owned()));
                    continue;
                }
                () = std::future::ready(()), if given_up.is_some() => {
                    results[index] = Err(PublishError::Down(given_up.unwrap_or_default().to_owned()));
                    continue;
                }
            };
            results[index] = match settled {
                Ok(Ok(at)) => Ok(Position { log: topic, partition: at.partition, offset: Some(at.offset) }),
                Ok(Err((error, _))) => Err(self.failure(&error)),
                Err(_) => Err(PublishError::Down("the producer has ended".to_owned())),
            };
        }
        if let Some(why) = generation.fatal().or_else(|| given_up.map(str::to_owned)) {
            self.shared.producers.replace(generation, &why);
        }
        if results.iter().any(Result::is_ok) {
            // The cluster is there, and only these keys have to wait.
            for result in results.iter_mut() {
                if let Err(PublishError::Down(why)) = result {
                    *result = Err(PublishError::Transient(std::mem::take(why)));
                }
            }
            keeper::confirmed(&self.shared);
        } else if let Some(Err(PublishError::Down(why))) =
            results.iter().find(|r| matches!(r, Err(PublishError::Down(_))))
        {
            keeper::unconfirmed(&self.shared, why);
        }
    }

    fn failure(&self, error: &ClientError) -> PublishError {
        let complaint = self.shared.complaints.last().map(|why| format!(" ({why})")).unwrap_or_default();
        match error.rdkafka_error_code() {
            Some(code @ (Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord)) => {
                PublishError::Permanent(format!("the cluster does not take it: {code}"))
            }
            // Its queue is bounded by bytes: later there is room.
            Some(Code::QueueFull) => PublishError::Transient("too much is on its way to Kafka".to_owned()),
            Some(Code::MessageTimedOut) => PublishError::Down(format!(
                "not confirmed within {}{complaint}",
                humantime::format_duration(self.shared.config.delivery_timeout)
            )),
            Some(code) => PublishError::Down(format!("{code}{complaint}")),
            None => PublishError::Down(format!("{error}{complaint}")),
        }
    }
}

fn all_down(window: &[Outgoing], why: &str) -> Results {
    window.iter().map(|_| Err(PublishError::Down(why.to_owned()))).collect()
}
