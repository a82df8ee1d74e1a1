//! A broker's own dead letters: messages that it took out of a queue by its rules.

use std::sync::Arc;

use async_trait::async_trait;

use super::{AckToken, Delivery, SubscriptionLost};
use crate::domain::Timestamp;

/// Why a message left a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeathReason {
    /// A consumer refused it for good.
    Rejected,
    /// It was in the queue for longer than the queue keeps messages.
    Expired,
    /// The queue was at its limit.
    OverLength,
    /// Anything else the broker calls a reason.
    Other(Arc<str>),
}

impl std::fmt::Display for DeathReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::OverLength => "over length",
            Self::Other(reason) => reason,
        })
    }
}

/// One or more times that a message left the same queue for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub queue: Arc<str>,
    pub reason: DeathReason,
    pub count: u64,
    /// The first time, to the second.
    pub at: Option<Timestamp>,
    /// Where it had been published to.
    pub exchange: Arc<str>,
    pub keys: Vec<Arc<str>>,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { queue, reason, count, at, exchange, keys } = self;
        write!(f, "{reason} in queue {queue}")?;
        if *count > 1 {
            write!(f, " {count} times")?;
        }
        if let Some(at) = at {
            write!(f, " at {at}")?;
        }
        write!(f, " (exchange {exchange}, key {})", keys.join(", "))
    }
}

/// A message with its history.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub delivery: Delivery,
    /// The latest first. Empty when the message came there by another way.
    pub deaths: Vec<Death>,
}

/// Opens the queue of dead letters.
#[async_trait]
pub trait DeadLetterSource: Send + Sync + 'static {
    /// Starts delivery to `consumer`, at most `prefetch` messages unacknowledged. Of several
    /// readers one gets them. Fails when the broker is away.
    async fn dead_letters(
        &self,
        consumer: &str,
        prefetch: usize,
    ) -> Result<Box<dyn DeadLetterInbound>, SubscriptionLost>;
}

/// The open queue, as [`Inbound`](super::Inbound).
#[async_trait]
pub trait DeadLetterInbound: Send + 'static {
    /// Waits for at least one and returns up to `max`, in the order they died.
    async fn receive(&mut self, max: usize) -> Result<Vec<DeadLetter>, SubscriptionLost>;

    /// Acknowledges these. Called after they are committed.
    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost>;
}
