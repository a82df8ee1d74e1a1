//! The publishing side of the three faces: where an event goes and what its body is.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::engine::Engine;
use super::partitioner::partition_of;
use super::writer::NewRecord;
use crate::broker::{Encoding, Outgoing, Position, PublishError, Publisher};
use crate::domain::Broker;
use crate::domain::catalogue::{Route, covers};

pub(super) struct EmbeddedPublisher {
    pub broker: Broker,
    pub engine: Arc<Engine>,
}

#[async_trait]
impl Publisher for EmbeddedPublisher {
    fn confirms_are_durable(&self) -> bool {
        false
    }

    fn broker(&self) -> Broker {
        self.broker
    }

    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<Position, PublishError>> {
        let mut results = Vec::with_capacity(window.len());
        let mut records = Vec::with_capacity(window.len());
        let mut slots = Vec::with_capacity(window.len());
        for outgoing in window {
            match self.record(outgoing) {
                Ok(record) => {
                    slots.push((results.len(), record.slot));
                    records.push(record);
                    // Replaced below: every record is answered.
                    results.push(Err(PublishError::Down(String::new())));
                }
                Err(why) => results.push(Err(why)),
            }
        }
        if records.is_empty() {
            return results;
        }
        match self.engine.append(records).await {
            Ok(offsets) => {
                for ((at, slot), offset) in slots.into_iter().zip(offsets) {
                    results[at] = Ok(self.engine.partitions[slot].position(offset));
                }
            }
            Err(why) => {
                for (at, _) in slots {
                    results[at] = Err(PublishError::Down(why.clone()));
                }
            }
        }
        results
    }
}

impl EmbeddedPublisher {
    fn record(&self, outgoing: &Outgoing) -> Result<NewRecord, PublishError> {
        let Outgoing { event, route } = outgoing;
        let slot = self.slot(route)?;
        let (encoding, body) = self.body(outgoing)?;
        let most = self.engine.limits.max_message;
        if body.len() > most {
            return Err(PublishError::Permanent(format!(
                "the body has {} bytes, at most {most} are taken",
                body.len()
            )));
        }
        let headers = event.headers();
        let text = serde_json::to_string(&headers)
            .map_err(|why| PublishError::Permanent(format!("the headers cannot be encoded: {why}")))?;
        Ok(NewRecord {
            slot,
            // JetStream has no key: its consumers filter by subject.
            key: if self.broker == Broker::Nats { route.target.clone() } else { route.key.clone() },
            headers: Arc::new(headers),
            headers_text: text.into(),
            encoding,
            body,
        })
    }

    fn body(&self, outgoing: &Outgoing) -> Result<(Encoding, Bytes), PublishError> {
        match self.broker {
            Broker::Rabbitmq | Broker::Nats => Ok((Encoding::Json, outgoing.event.payload.json.clone())),
            Broker::Kafka => outgoing
                .event
                .event_type
                .encode_record(&outgoing.event)
                .map(|record| (Encoding::Avro, record))
                .map_err(|why| PublishError::Permanent(format!("not encodable as Avro: {why}"))),
        }
    }

    /// The partition this goes to.
    fn slot(&self, route: &Route) -> Result<usize, PublishError> {
        let unknown = |what| {
            PublishError::Permanent(format!("{} has no {what} {}; add it to the topology", self.broker, route.target))
        };
        match self.broker {
            Broker::Rabbitmq => match self.engine.slots(self.broker, &route.target) {
                None | Some([]) => Err(unknown("exchange")),
                Some([slot, ..]) if self.engine.is_routable(*slot, &route.key) => Ok(*slot),
                Some(_) => Err(nobody(route, format!("no queue is bound to {} for {}", route.target, route.key))),
            },
            Broker::Kafka => match self.engine.slots(self.broker, &route.target) {
                None | Some([]) => Err(unknown("topic")),
                Some(slots) => Ok(slots[partition_of(route.key.as_bytes(), slots.len())]),
            },
            Broker::Nats => match self.engine.subjects.iter().find(|(filter, _)| covers(filter, &route.target)) {
                Some((_, slot)) => Ok(*slot),
                None => Err(nobody(route, format!("no stream takes subject {}", route.target))),
            },
        }
    }
}

/// Nothing takes the message: fine for an optional copy.
fn nobody(route: &Route, why: String) -> PublishError {
    if route.optional { PublishError::NoQueueBound } else { PublishError::Permanent(why) }
}
