//! What one reader holds: delivered and not yet acknowledged. While it works, the server
//! is told that the work goes on; a message held far too long is given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::Connection;
use crate::broker::AckToken;

pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(super) const NAK: Bytes = Bytes::from_static(b"-NAK");
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// Ends a delivery; the server passes the reason on in an advisory.
pub(super) fn term(reason: &str) -> Bytes {
    format!("+TERM {reason}").into()
}

/// After this many times the subscription's `ack_wait` a reader counts as stuck, and what
/// it holds goes to another.
const PATIENCE: u32 = 10;

#[derive(Default)]
pub(super) struct Held {
    messages: Mutex<BTreeMap<u64, HeldMessage>>,
    /// Something was given back: there is room for more.
    pub freed: Notify,
}

struct HeldMessage {
    reply: Subject,
    since: Instant,
    renewed: Instant,
}

/// What a look at the clock asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    in_progress: Vec<Subject>,
    stuck: Vec<Subject>,
}

impl Held {
    pub fn add(&self, token: AckToken, reply: Subject) {
        let now = Instant::now();
        self.messages.lock().insert(token.0, HeldMessage { reply, since: now, renewed: now });
    }

    /// Forgets these; unknown ones were acknowledged or given back.
    pub fn take(&self, tokens: &[AckToken]) -> Vec<Subject> {
        let mut messages = self.messages.lock();
        tokens.iter().filter_map(|token| messages.remove(&token.0)).map(|held| held.reply).collect()
    }

    /// Everything, in the order of delivery.
    pub fn take_all(&self) -> Vec<Subject> {
        std::mem::take(&mut *self.messages.lock()).into_values().map(|held| held.reply).collect()
    }

    pub fn len(&self) -> usize {
        self.messages.lock().len()
    }

    fn due(&self, now: Instant, renew: Duration, stuck: Duration) -> Due {
        let mut due = Due::default();
        self.messages.lock().retain(|_, held| {
            let keep = now.duration_since(held.since) < stuck;
            if !keep {
                due.stuck.push(held.reply.clone());
            } else if now.duration_since(held.renewed) >= renew {
                held.renewed = now;
                due.in_progress.push(held.reply.clone());
            }
            keep
        });
        due
    }
}

/// The times of one reader.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// The consumer's: without a sign of life the server delivers again.
    pub server: Duration,
    /// The subscription's.
    pub ack_wait: Duration,
}

/// Runs until it is dropped.
pub(super) async fn keep(connection: &Connection, held: Arc<Held>, times: Times, consumer: &str) {
    let stuck = times.ack_wait * PATIENCE;
    let mut ticks = tokio::time::interval((times.server.min(times.ack_wait) / 6).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if connection.generation().is_err() {
            continue;
        }
        let due = held.due(Instant::now(), times.server / 3, stuck);
        send(&connection.client, due.in_progress, &IN_PROGRESS).await;
        if !due.stuck.is_empty() {
            let messages = due.stuck.len();
            tracing::warn!(consumer, messages, held = ?stuck, "messages were held too long; others get them");
            send(&connection.client, due.stuck, &NAK).await;
            held.freed.notify_one();
        }
    }
}

async fn send(client: &Client, replies: Vec<Subject>, what: &Bytes) {
    for reply in replies {
        // A closed client holds nothing: the server delivers again by itself.
        let _ = client.publish(reply, what.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENEW: Duration = Duration::from_secs(10);
    const STUCK: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn long_work_is_told_and_stuck_work_given_back() {
        let held = Held::default();
        held.add(AckToken(1), "first".into());
        tokio::time::advance(RENEW / 2).await;
        held.add(AckToken(2), "second".into());
        let look = || held.due(Instant::now(), RENEW, STUCK);
        assert_eq!(look(), Due::default());
        tokio::time::advance(RENEW / 2).await;
        assert_eq!(look().in_progress, ["first".into()]);
        assert_eq!(look(), Due::default(), "told once");
        tokio::time::advance(RENEW).await;
        assert_eq!(look().in_progress.len(), 2);
        tokio::time::advance(STUCK - 2 * RENEW).await;
        assert_eq!(look(), Due { in_progress: vec!["second".into()], stuck: vec!["first".into()] });
        assert!(held.take(&[AckToken(1)]).is_empty(), "its late acknowledgement is ignored");
        assert_eq!(held.take(&[AckToken(2)]), ["second".into()]);
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn everything_is_given_back_in_the_order_of_delivery() {
        let held = Held::default();
        for token in [3, 1, 2] {
            held.add(AckToken(token), token.to_string().into());
        }
        assert_eq!(held.take_all(), ["1".into(), "2".into(), "3".into()]);
        assert!(held.take_all().is_empty());
    }
}
