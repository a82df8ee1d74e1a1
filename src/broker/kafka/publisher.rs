//! The publishing side: a whole window is produced, then its confirmations are awaited for a
//! moment; those that take longer are asked for again (`underway`).
//!
//! Order per key needs no more than this: a window holds a key once, and the relay sends a
//! key's next event after the one before is confirmed. What fails here is never sent again
//! by the producer behind our back: either its time is over, or the producer is purged.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::FutureRecord;

use super::producer::Generation;
use super::topology::prefixed;
use super::underway::Sent;
use super::{CLOSED, Shared, headers, keeper};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::Broker;

/// A cluster that confirms nothing for so long, while records are on their way, is away.
const SILENT: Duration = Duration::from_secs(3);
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

/// What there is of a message before anything of its window is produced.
enum Ready {
    Underway(Sent),
    Encoded(Encoded),
    Refused(PublishError),
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
        let taken = window.iter().zip(self.shared.underway.take(window));
        let ready: Vec<_> = taken.map(|(outgoing, underway)| self.ready(outgoing, underway)).collect();
        let mut results: Results = Vec::with_capacity(window.len());
        let mut sent = Vec::with_capacity(window.len());
        for (index, (outgoing, ready)) in window.iter().zip(ready).enumerate() {
            let produced = match ready {
                Ready::Underway(one) => Ok(one),
                Ready::Encoded(encoded) => self.send(&generation, outgoing, encoded),
                Ready::Refused(why) => Err(why),
            };
            match produced {
                Ok(one) => {
                    sent.push((index, one));
                    // Replaced by what becomes of it.
                    results.push(Err(PublishError::Unsettled { down: None }));
                }
                Err(why) => results.push(Err(why)),
            }
        }
        self.settle(window, sent, &mut results).await;
        if let Some(why) = generation.fatal() {
            self.shared.producers.replace(&generation, &why);
        }
        results
    }
}

impl KafkaPublisher {
    fn ready(&self, outgoing: &Outgoing, underway: Option<Sent>) -> Ready {
        match underway {
            Some(sent) => Ready::Underway(sent),
            None => self.encode(outgoing).map_or_else(Ready::Refused, Ready::Encoded),
        }
    }

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

    fn send(&self, generation: &Arc<Generation>, outgoing: &Outgoing, encoded: Encoded) -> Result<Sent, PublishError> {
        let Encoded { topic, headers, body } = encoded;
        let record = FutureRecord::to(&topic).key(outgoing.route.key.as_bytes()).payload(&body).headers(headers);
        match generation.producer().send_result(record) {
            Ok(delivery) => Ok(Sent::new(topic, generation.clone(), delivery)),
            Err((error, _)) => Err(self.failure(&error)),
        }
    }

    /// Awaits confirmations; replaces a producer that can no longer be trusted. `sent` says where
    /// results go.
    async fn settle(&self, window: &[Outgoing], sent: Vec<(usize, Sent)>, results: &mut Results) {
        let shared = &self.shared;
        let mut late = Vec::new();
        for (index, mut one) in sent {
            let until = one.awaited_until();
            let report = tokio::select! {
                // What is confirmed counts, whatever else has happened.
                biased;
                report = one.report() => report,
                () = shared.closing.cancelled() => {
                    results[index] = Err(PublishError::Down(CLOSED.to_owned()));
                    continue;
                }
                () = tokio::time::sleep_until(until) => {
                    late.push((index, one));
                    continue;
                }
            };
            results[index] = match report {
                Ok(position) => {
                    shared.underway.confirmed(&window[index]);
                    Ok(position)
                }
                Err(Some(error)) => Err(self.considered(self.failure(&error), &window[index], &one)),
                Err(None) => Err(PublishError::Down("the producer has ended".to_owned())),
            };
        }
        let some = results.iter().any(Result::is_ok);
        if some {
            keeper::confirmed(shared);
        }
        for (index, one) in late {
            results[index] = Err(self.left(&window[index], one));
        }
        for result in results.iter_mut() {
            match result {
                // The cluster is there if it has confirmed any, and only the other keys have to wait.
                Err(PublishError::Down(why)) if some => *result = Err(PublishError::Transient(std::mem::take(why))),
                Err(PublishError::Down(why) | PublishError::Unsettled { down: Some(why) }) => {
                    return keeper::unconfirmed(shared, why);
                }
                _ => {}
            }
        }
    }

    /// The cluster is there if it has confirmed anything since.
    fn considered(&self, error: PublishError, outgoing: &Outgoing, sent: &Sent) -> PublishError {
        match error {
            PublishError::Permanent(why) => {
                self.shared.underway.refused(outgoing);
                PublishError::Permanent(why)
            }
            PublishError::Down(why) if self.shared.underway.confirmed_since(sent.since) => PublishError::Transient(why),
            error => error,
        }
    }

    /// What to say of a record that has not been reported on yet.
    fn left(&self, outgoing: &Outgoing, sent: Sent) -> PublishError {
        if sent.is_overdue(self.shared.config.delivery_timeout) {
            self.shared.producers.replace(&sent.generation, "it has not reported what became of its records");
            return PublishError::Down("no answer in time".to_owned());
        }
        // Without a cluster that is known to be there more would only fill the client.
        let silent = !self.shared.underway.confirmed_since(sent.since) && sent.since.elapsed() > SILENT;
        let why = silent.then(|| {
            format!("no record within {}{}", humantime::format_duration(SILENT), self.shared.complaints.in_brackets())
        });
        let down = self.shared.unconfirmed.lock().clone().or(why);
        self.shared.underway.leave(outgoing, sent);
        PublishError::Unsettled { down }
    }

    fn failure(&self, error: &ClientError) -> PublishError {
        let complaint = self.shared.complaints.in_brackets();
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
