//! The dead-letter queue, with what the server wrote into `x-death`.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::subscriber::{RabbitInbound, RabbitSubscriber};
use crate::broker::dead_letters::{DeadLetter, DeadLetterInbound, DeadLetterSource, Death, DeathReason};
use crate::broker::{AckToken, Inbound, SubscriptionLost};
use crate::domain::Timestamp;

#[async_trait]
impl DeadLetterSource for RabbitSubscriber {
    async fn dead_letters(
        &self,
        consumer: &str,
        prefetch: usize,
    ) -> Result<Box<dyn DeadLetterInbound>, SubscriptionLost> {
        let opening = self.open_dead_letters(consumer.into(), prefetch);
        Ok(Box::new(Reading(self.within_limit(consumer, opening).await?)))
    }
}

struct Reading(RabbitInbound);

#[async_trait]
impl DeadLetterInbound for Reading {
    async fn receive(&mut self, max: usize) -> Result<Vec<DeadLetter>, SubscriptionLost> {
        let fetched = self.0.fetch(max).await?;
        let read = |delivery: lapin::message::Delivery| {
            let deaths = deaths(&delivery.properties);
            DeadLetter { deaths, delivery: self.0.hand_out(delivery) }
        };
        Ok(fetched.into_iter().map(read).collect())
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        self.0.ack(tokens).await
    }
}

/// The entries of `x-death`; what cannot be read is left out.
fn deaths(properties: &BasicProperties) -> Vec<Death> {
    let table = properties.headers().as_ref();
    let Some(AMQPValue::FieldArray(entries)) = table.and_then(|table| table.inner().get("x-death")) else {
        return Vec::new();
    };
    let tables = entries.as_slice().iter().filter_map(|entry| match entry {
        AMQPValue::FieldTable(table) => death(table),
        _ => None,
    });
    tables.collect()
}

fn death(table: &FieldTable) -> Option<Death> {
    let get = |name: &str| table.inner().get(name);
    let keys = match get("routing-keys") {
        Some(AMQPValue::FieldArray(keys)) => keys.as_slice().iter().filter_map(text).collect(),
        _ => Vec::new(),
    };
    Some(Death {
        queue: get("queue").and_then(text)?,
        reason: reason(get("reason").and_then(text)?),
        count: match get("count") {
            Some(AMQPValue::LongLongInt(count)) => u64::try_from(*count).unwrap_or(1),
            _ => 1,
        },
        at: match get("time") {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok().map(|s| Timestamp(s * 1000)),
            _ => None,
        },
        exchange: get("exchange").and_then(text).unwrap_or_default(),
        keys,
    })
}

fn reason(name: Arc<str>) -> DeathReason {
    match &*name {
        "rejected" => DeathReason::Rejected,
        "expired" => DeathReason::Expired,
        "maxlen" => DeathReason::OverLength,
        _ => DeathReason::Other(name),
    }
}

fn text(value: &AMQPValue) -> Option<Arc<str>> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Into::into),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::FieldArray;

    fn entry(values: &[(&str, AMQPValue)]) -> AMQPValue {
        let mut table = FieldTable::default();
        for (name, value) in values {
            table.insert((*name).into(), value.clone());
        }
        AMQPValue::FieldTable(table)
    }

    fn history(entries: Vec<AMQPValue>) -> BasicProperties {
        let mut table = FieldTable::default();
        table.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(entries)));
        BasicProperties::default().with_headers(table)
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn the_history_is_read_as_the_server_writes_it() {
        let keys = FieldArray::from(vec![long("job.submitted")]);
        let expired = entry(&[
            ("count", AMQPValue::LongLongInt(2)),
            ("reason", long("expired")),
            ("queue", long("job-events-api")),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
            ("exchange", long("job.events")),
            ("routing-keys", AMQPValue::FieldArray(keys)),
        ]);
        let deaths = deaths(&history(vec![expired]));
        let expected = "expired in queue job-events-api 2 times at 2023-11-14T22:13:20.000Z \
                        (exchange job.events, key job.submitted)";
        assert_eq!(deaths.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn reasons_have_their_names() {
        let names = ["rejected", "expired", "maxlen", "delivery_limit"].map(|name| reason(name.into()));
        let other = DeathReason::Other("delivery_limit".into());
        assert_eq!(names, [DeathReason::Rejected, DeathReason::Expired, DeathReason::OverLength, other]);
    }

    #[test]
    fn what_is_no_history_is_none() {
        assert_eq!(deaths(&BasicProperties::default()), []);
        assert_eq!(deaths(&history(vec![AMQPValue::Void, entry(&[("queue", long("q"))])])), []);
    }
}
