//! What cannot be read: kept with position and reason, so that nothing is lost.

use sha2::Digest;

use crate::broker::Delivery;
use crate::domain::{Id, Timestamp};
use crate::store::{DeliveryClaim, Verdict};

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

/// The same bytes at the same place are the same row, however often they come. RabbitMQ's
/// positions have no number: there, the same bytes by the same key are.
fn id(consumer: &str, delivery: &Delivery) -> Id {
    let mut digest = sha2::Sha256::new();
    digest.update(format!("{consumer}\n{}\n{}\n", delivery.position, delivery.key));
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
