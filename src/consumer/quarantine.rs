//! What cannot be read: kept with position and reason, so that nothing is lost.

use std::sync::Arc;

use sha2::Digest;

use crate::broker::Delivery;
use crate::domain::{Id, Timestamp};
use crate::service::committer::{CommitError, Committer};
use crate::store::{DeliveryClaim, StoredMessage, Unit, Verdict};
use crate::telemetry::Metrics;
use crate::telemetry::facts::DeadLettered;

/// The dead letters of a reader that is no [`Handler`](super::Handler).
pub struct Quarantine {
    /// Whose they are, in the index and in metrics.
    pub consumer: &'static str,
    pub committer: Committer,
    pub metrics: Arc<Metrics>,
}

impl Quarantine {
    /// Keeps deliveries, each with what is wrong with it; all are committed when it returns. The
    /// same delivery again is the same row.
    ///
    /// # Errors
    /// The store is away. Some may be committed.
    pub async fn keep(&self, letters: &[(Delivery, String)]) -> Result<(), CommitError> {
        let claims: Vec<DeliveryClaim> = letters.iter().map(|(delivery, why)| self.letter(delivery, why)).collect();
        let unit = |claim: &DeliveryClaim| Unit { delivery: Some(claim.clone()), ..Unit::default() };
        let results = self.committer.background_all(claims.iter().map(unit).collect()).await;
        let metrics = self.metrics.consumer(self.consumer);
        for (((delivery, why), claim), result) in letters.iter().zip(claims).zip(results) {
            match result {
                Ok(_) => {}
                Err(CommitError::Refused(refusal)) => {
                    let bare = bare(self.consumer, delivery, &format!("{why}; {refusal}"));
                    self.committer.background(unit(&bare)).await?;
                }
                Err(error) => return Err(error),
            }
            let event_id = delivery.headers.as_ref().ok().map(|headers| headers.event_id);
            DeadLettered { consumer: self.consumer, key: &claim.key, event_id, attempts: 1, error: why }
                .record(&metrics);
        }
        Ok(())
    }

    /// Where the envelope can be read, the event's: the ledger shows it there.
    fn letter(&self, delivery: &Delivery, why: &str) -> DeliveryClaim {
        let claim = claim(self.consumer, delivery, why);
        let Ok(headers) = &delivery.headers else { return claim };
        DeliveryClaim {
            event_id: headers.event_id,
            key: headers.event_id.to_string().into(),
            sequence: headers.sequence,
            verdict: Verdict::Failed { error: why.to_owned(), attempts: 1, retry_at: None },
            ..claim
        }
    }
}

/// The dead letter that keeps these bytes for `consumer`. Its order is unknown.
pub(super) fn claim(consumer: &str, delivery: &Delivery, why: &str) -> DeliveryClaim {
    DeliveryClaim {
        consumer: consumer.into(),
        event_id: id(consumer, delivery),
        key: format!("quarantine:{}", delivery.position).into(),
        sequence: 0,
        ordered: false,
        from_backlog: false,
        verdict: Verdict::Failed { error: format!("order unknown: {why}"), attempts: 1, retry_at: None },
        message: Some(super::as_it_came(delivery)),
        at: Timestamp::now(),
    }
}

/// As [`claim`], of a delivery that the store refuses with its headers: they are told in the reason,
/// where any text can be kept.
pub(super) fn bare(consumer: &str, delivery: &Delivery, why: &str) -> DeliveryClaim {
    let headers = delivery.headers.as_ref().ok().and_then(|headers| serde_json::to_string(&**headers).ok());
    let why = headers.map_or_else(|| why.to_owned(), |headers| format!("{why}; its headers: {headers}"));
    let claim = claim(consumer, delivery, &why);
    let message = claim.message.map(|message| StoredMessage { headers: None, ..message });
    DeliveryClaim { message, ..claim }
}

/// The same bytes at the same place are the same row, however often they come. RabbitMQ's
/// positions have no number: there, the same bytes by the same key are, of the same event if they say which.
fn id(consumer: &str, delivery: &Delivery) -> Id {
    let mut digest = sha2::Sha256::new();
    digest.update(format!("{consumer}\n{}\n{}\n", delivery.position, delivery.key));
    if let Ok(headers) = &delivery.headers {
        digest.update(headers.event_id.0);
    }
    digest.update(&delivery.body);
    let digest = digest.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Id(uuid::Uuid::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{AckToken, Encoding, Position};

    fn unreadable(offset: Option<i64>, body: &'static str) -> Delivery {
        Delivery {
            headers: Err("no headers".into()),
            encoding: Encoding::Json,
            body: body.into(),
            position: Position { log: "log".into(), partition: 0, offset },
            key: "key".into(),
            token: AckToken(1),
            redelivered: false,
        }
    }

    #[test]
    fn a_repeat_is_the_same_row_and_others_are_not() {
        let id = |offset, body| id("reader", &unreadable(offset, body));
        assert_eq!(id(None, "a"), id(None, "a"));
        assert_ne!(id(None, "a"), id(None, "b"), "no number tells them apart");
        assert_ne!(id(Some(1), "a"), id(Some(2), "a"));
    }
}
