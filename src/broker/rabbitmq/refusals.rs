//! Messages that a queue refuses, followed until it takes them. The queue may be somebody
//! else's: then its limit is not known here, and only the refusals tell that it is full.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;

use super::confirm::{Ready, Settled};

/// A queue between two leaders, or full for a moment, refuses for a shorter time.
const LASTING: Duration = Duration::from_secs(3);
/// Longer than the relay waits before it tries again: who does not come again was published by
/// another gateway.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// Enough to name the exchanges.
const MOST: usize = 1_024;

#[derive(Debug)]
struct Refusal {
    exchange: ShortString,
    key: ShortString,
    first: Instant,
    last: Instant,
}

/// What was refused and not taken since, by message id.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<String, Refusal>);

impl Refusals {
    /// Notes what became of a window. Did that change anything?
    pub fn note(&mut self, window: &[Ready], settled: &[Settled], now: Instant) -> bool {
        if self.0.is_empty() && !settled.contains(&Settled::Refused) {
            return false;
        }
        for (message, settled) in window.iter().zip(settled) {
            if *settled != Settled::Refused {
                self.0.remove(&message.id);
            } else if let Some(refusal) = self.0.get_mut(&message.id) {
                refusal.last = now;
            } else if self.0.len() < MOST {
                let (exchange, key) = (message.exchange.clone(), message.key.clone());
                self.0.insert(message.id.clone(), Refusal { exchange, key, first: now, last: now });
            }
        }
        true
    }

    /// Names the exchanges whose messages have been refused for a while; empty when there are none.
    pub fn lasting(&mut self, now: Instant) -> String {
        self.0.retain(|_, refusal| now.duration_since(refusal.last) < FORGOTTEN);
        // The longest refused of each.
        let mut oldest: BTreeMap<&str, &Refusal> = BTreeMap::new();
        for refusal in self.0.values().filter(|refusal| now.duration_since(refusal.first) >= LASTING) {
            let known = oldest.entry(refusal.exchange.as_str()).or_insert(refusal);
            if refusal.first < known.first {
                *known = refusal;
            }
        }
        let lines = oldest.into_iter().map(|(exchange, refusal)| {
            format!(
                "a queue bound to exchange {exchange} for the routing key {} refuses messages: it is full or has no \
                 leader (`rabbitmqctl list_queues name messages arguments`); consume from it, raise its limit, or \
                 unbind it if nobody reads it",
                refusal.key
            )
        });
        lines.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, exchange: &str) -> Ready {
        Ready {
            exchange: exchange.into(),
            key: format!("key.{id}").into(),
            properties: lapin::BasicProperties::default(),
            body: bytes::Bytes::new(),
            id: id.to_owned(),
        }
    }

    #[test]
    fn what_is_refused_for_long_is_named_until_it_is_taken() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        let window = [message("a", "events"), message("b", "events"), message("c", "metrics")];
        let refused = [Settled::Refused, Settled::Refused, Settled::Confirmed];
        assert!(refusals.note(&window, &refused, begin));
        assert_eq!(refusals.lasting(begin + LASTING / 2), "", "that may pass");
        let shown = refusals.lasting(begin + LASTING);
        assert!(shown.contains("exchange events") && shown.contains("key.a") && !shown.contains("metrics"), "{shown}");
        refusals.note(&window[..1], &[Settled::Confirmed], begin + LASTING);
        assert!(refusals.lasting(begin + LASTING).contains("key.b"), "others of it are taken, this one is not");
        refusals.note(&window[1..2], &[Settled::Confirmed], begin + LASTING);
        assert_eq!(refusals.lasting(begin + LASTING), "");
        assert!(!refusals.note(&window[2..], &[Settled::Confirmed], begin), "nothing to follow");
    }

    #[test]
    fn what_never_comes_again_is_forgotten_and_memory_is_bounded() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        let window: Vec<Ready> = (0..2 * MOST).map(|n| message(&n.to_string(), "events")).collect();
        refusals.note(&window, &vec![Settled::Refused; window.len()], begin);
        assert_eq!(refusals.0.len(), MOST);
        assert_ne!(refusals.lasting(begin + LASTING), "");
        assert_eq!(refusals.lasting(begin + FORGOTTEN), "");
        assert!(refusals.0.is_empty());
    }
}
