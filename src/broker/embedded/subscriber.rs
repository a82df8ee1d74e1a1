//! The consuming side of the three faces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::engine::{CLOSED, Engine};
use super::group::{Group, Member, Missing, Mode, Start, Terms};
use super::topology::Reads;
use crate::broker::{AckToken, Delivery, Inbound, Source, Subscriber, Subscription, SubscriptionLost};
use crate::domain::Broker;

/// Messages per page read from the database.
const PAGE: usize = 256;
/// Pages read before what is at hand is given out.
const PAGES: usize = 4;

pub(super) struct EmbeddedSubscriber {
    pub broker: Broker,
    pub engine: Arc<Engine>,
}

#[async_trait]
impl Subscriber for EmbeddedSubscriber {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let lost = |why: String| SubscriptionLost(format!("{}: {why}", subscription.consumer));
        if self.engine.closing.is_cancelled() {
            return Err(lost(CLOSED.into()));
        }
        let reads = Reads::of(subscription).map_err(lost)?;
        if reads.broker != self.broker {
            return Err(lost(format!("{:?} is not a source of {}", subscription.source, self.broker)));
        }
        let private = match subscription.source {
            Source::Queue { exclusive: true, .. } => Some(Mode::Private { lossy: true }),
            Source::Ephemeral { .. } => Some(Mode::Private { lossy: false }),
            Source::Queue { .. } | Source::Topics(_) | Source::WorkQueue { .. } => None,
        };
        let group = match private {
            Some(mode) => self.private(&reads, mode).map_err(lost)?,
            None => self.engine.declare(&reads).await.map_err(lost)?,
        };
        Ok(Box::new(EmbeddedInbound {
            member: group.join(),
            private: private.is_some(),
            engine: self.engine.clone(),
            group,
            prefetch: subscription.prefetch.max(1),
            ack_wait: subscription.ack_wait,
            last_token: 0,
            tokens: BTreeMap::new(),
        }))
    }
}

impl EmbeddedSubscriber {
    /// A group that starts at the present end and ends with its reader.
    fn private(&self, reads: &Reads, mode: Mode) -> Result<Arc<Group>, String> {
        let covered = self.engine.covered(reads)?;
        let starts = covered
            .into_iter()
            .map(|(partition, filter)| Start { next: partition.end(), partition, filter, owed: Vec::new() })
            .collect();
        let group = Arc::new(Group::new(self.broker, reads.group.clone(), mode, starts));
        if self.broker == Broker::Rabbitmq {
            self.engine.bind(reads, Some(&group));
        }
        Ok(group)
    }
}

struct EmbeddedInbound {
    engine: Arc<Engine>,
    group: Arc<Group>,
    member: Member,
    private: bool,
    prefetch: usize,
    ack_wait: Duration,
    last_token: u64,
    /// Cursor and offset of what was handed out, oldest first.
    tokens: BTreeMap<u64, (usize, i64)>,
}

impl EmbeddedInbound {
    fn lost(&self, why: impl std::fmt::Display) -> SubscriptionLost {
        SubscriptionLost(format!("{}: {why}", self.group.name))
    }

    async fn load(&self, missing: &Missing) -> Result<(), SubscriptionLost> {
        let read = self.engine.database.read(missing.partition.id, missing.from, missing.below, PAGE);
        let page = read.await.map_err(|why| self.lost(why))?;
        if let Some(first) = page.first()
            && first.offset > missing.from
        {
            tracing::warn!(
                consumer = %self.group.name, log = %missing.partition.log, partition = missing.partition.number,
                from = missing.from, to = first.offset, "records were gone before this consumer read them"
            );
        }
        self.group.supply(missing, page);
        Ok(())
    }

    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let terms = Terms { now: Instant::now(), prefetch: self.prefetch, ack_wait: self.ack_wait };
        let (taken, passed) = self.group.take(self.member, max, terms);
        if !self.private {
            for cursor in passed {
                self.engine.changed.mark(&self.group, cursor);
            }
        }
        let deliveries = taken
            .into_iter()
            .map(|taken| {
                self.last_token += 1;
                self.tokens.insert(self.last_token, (taken.cursor, taken.message.offset));
                let message = &taken.message;
                Delivery {
                    headers: message.headers.clone(),
                    encoding: message.encoding,
                    body: message.body.clone(),
                    position: taken.position,
                    key: message.key.clone(),
                    token: AckToken(self.last_token),
                    redelivered: taken.redelivered,
                }
            })
            .collect();
        // Tokens beyond twice the prefetch are of messages that were not acknowledged in
        // time, since no more than the prefetch are in hand.
        while self.tokens.len() > 2 * self.prefetch {
            self.tokens.pop_first();
        }
        deliveries
    }
}

#[async_trait]
impl Inbound for EmbeddedInbound {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let wake = self.group.wake.clone();
        let closing = self.engine.closing.clone();
        loop {
            if closing.is_cancelled() {
                return Err(self.lost(CLOSED));
            }
            let mut woken = std::pin::pin!(wake.notified());
            // Before looking, so that nothing between the look and the wait is missed.
            woken.as_mut().enable();

            // Partitions that are behind memory take turns.
            for _ in 0..PAGES {
                let Some(missing) = self.group.missing(self.member, self.prefetch) else { break };
                self.load(&missing).await?;
            }
            // Nothing is awaited from here on: a dropped future has handed out nothing.
            let deliveries = self.take(max.max(1));
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            if self.group.missing(self.member, self.prefetch).is_some() {
                continue;
            }
            let deadline = self.group.next_deadline();
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.max(Instant::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = expiry => {}
                () = closing.cancelled() => {}
            }
        }
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        if self.engine.closing.is_cancelled() {
            return Err(self.lost(CLOSED));
        }
        let places = tokens.iter().filter_map(|token| self.tokens.remove(&token.0));
        let changed = self.group.ack(self.member, places);
        if !self.private {
            for cursor in changed {
                self.engine.changed.mark(&self.group, cursor);
            }
        }
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        Some(self.group.lag())
    }
}

impl Drop for EmbeddedInbound {
    fn drop(&mut self) {
        self.group.leave(self.member);
        if self.private {
            self.engine.unbind(&self.group);
            self.group.close();
            let skipped = self.group.skipped();
            if skipped > 0 {
                tracing::debug!(consumer = %self.group.name, skipped, "messages were dropped before they were read");
            }
        }
    }
}
