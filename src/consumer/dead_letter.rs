//! dead-letter: drains what RabbitMQ has taken out of the consumers' queues.
//!
//! A message that a consumer rejected is a dead letter of that consumer: it goes to the
//! dead-letter index with the history of its death, and stays there. One that expired or was
//! over length is only late: it goes to that consumer's backlog, due at once and with the
//! bytes the store has, so that it is handled in key order like any retry.
//! What the consumer has handled meanwhile, its inbox knows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ConsumerParts, Declaration, quarantine};
use crate::broker::dead_letters::{DeadLetter, DeadLetterInbound, DeadLetterSource, DeathReason};
use crate::broker::{AckToken, Source};
use crate::domain::catalogue::EventType;
use crate::domain::event::Headers;
use crate::domain::{Event, Id, Timestamp};
use crate::service::committer::CommitError;
use crate::store::{DeliveryClaim, Outcome, Unit, Verdict};
use crate::telemetry::facts::{DeadLettered, HandlerFailed};
use crate::telemetry::metrics::FailureClass;

/// The consumer's name, in metrics and to the broker. Its own backlog holds what no other
/// consumer answers for.
pub const NAME: &str = "dead-letter";

const BATCH: usize = 256;
const PREFETCH: usize = 512;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// A consumer whose queue may lose messages.
#[derive(Clone)]
pub struct Owner {
    pub declaration: Declaration,
    /// Wakes its retries: [`ConsumerTasks::retry_soon`](super::ConsumerTasks::retry_soon).
    pub retry_soon: Arc<Notify>,
}

/// Starts the reader. It ends after `stop`, when its batch in hand is committed and
/// acknowledged.
pub fn spawn(
    source: Arc<dyn DeadLetterSource>,
    owners: Vec<Owner>,
    parts: &ConsumerParts,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let drain = Drain { source, owners, parts: parts.clone() };
    crate::task::spawn(NAME, drain.run(stop.child_token()))
}

struct Drain {
    source: Arc<dyn DeadLetterSource>,
    owners: Vec<Owner>,
    parts: ConsumerParts,
}

/// The store is away: nothing is acknowledged, the same batch is tried again.
struct Paused(String);

impl Drain {
    async fn run(self, stop: CancellationToken) {
        let mut delay = RETRY_FIRST;
        while !stop.is_cancelled() {
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = self.source.dead_letters(NAME, PREFETCH) => opened,
            };
            let lost = match opened {
                Ok(inbound) => {
                    delay = RETRY_FIRST;
                    self.read(inbound, &stop).await
                }
                Err(error) => error.to_string(),
            };
            tracing::debug!(consumer = NAME, lost, "subscribing again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    /// Reads until the subscription breaks or `stop`; says why.
    async fn read(&self, mut inbound: Box<dyn DeadLetterInbound>, stop: &CancellationToken) -> String {
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return "stopping".to_owned(),
                batch = inbound.receive(BATCH) => batch,
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return error.to_string(),
            };
            let mut delay = RETRY_FIRST;
            while let Err(Paused(why)) = self.keep(&batch).await {
                tracing::warn!(consumer = NAME, why, "paused");
                tokio::select! {
                    () = stop.cancelled() => return "stopping".to_owned(),
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(RETRY_LAST);
            }
            let tokens: Vec<AckToken> = batch.iter().map(|letter| letter.delivery.token).collect();
            if let Err(error) = inbound.ack(&tokens).await {
                return error.to_string();
            }
        }
    }

    /// Commits a batch to its consumers' backlogs.
    async fn keep(&self, batch: &[DeadLetter]) -> Result<(), Paused> {
        let late = self.late(batch).await?;
        let claim = |letter| Some((letter, self.claim(letter, &late)?));
        let mut claims: Vec<(&DeadLetter, DeliveryClaim)> = batch.iter().filter_map(claim).collect();
        // The lowest sequence of a key becomes its head, the others park behind it.
        claims.sort_by_key(|(_, claim)| claim.sequence);
        let unit = |claim: &DeliveryClaim| Unit { delivery: Some(claim.clone()), ..Unit::default() };
        let units = claims.iter().map(|(_, claim)| unit(claim)).collect();
        let results = self.parts.committer.background_all(units).await;
        for ((letter, claim), result) in claims.into_iter().zip(results) {
            match result {
                Ok(Outcome::Parked) => self.kept(&claim),
                // Handled after all.
                Ok(_) => {}
                Err(CommitError::Refused(why)) => self.quarantine(letter, &claim.consumer, &why).await?,
                Err(error) => return Err(Paused(error.to_string())),
            }
        }
        Ok(())
    }

    fn kept(&self, claim: &DeliveryClaim) {
        let Verdict::Failed { error, attempts, retry_at } = &claim.verdict else { return };
        let event_id = Some(claim.event_id);
        if retry_at.is_some() {
            tracing::warn!(consumer = %claim.consumer, event_id = %claim.event_id, error, "late; redelivering it");
            self.wake(&claim.consumer);
        } else {
            DeadLettered { consumer: &claim.consumer, key: &claim.key, event_id, attempts: *attempts, error }
                .record(&self.parts.metrics.consumer(&claim.consumer));
        }
    }

    fn wake(&self, consumer: &str) {
        if let Some(owner) = self.owners.iter().find(|owner| owner.declaration.name == consumer) {
            owner.retry_soon.notify_one();
        }
    }

    /// The events of letters that no consumer refused, as the store has them.
    async fn late(&self, batch: &[DeadLetter]) -> Result<HashMap<Id, Arc<Event>>, Paused> {
        let late = batch.iter().filter(|letter| is_late(letter));
        let known = late.filter_map(|letter| {
            let headers = letter.delivery.headers.as_ref().ok()?;
            // The store cannot read an event of another type either.
            self.parts.catalogue.get(&headers.event_type).map(|_| headers.event_id)
        });
        let ids: Vec<Id> = known.collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let events = self.parts.store.events_by_id(&ids).await.map_err(|error| Paused(error.to_string()))?;
        Ok(events.into_iter().map(|event| (event.event_id, event)).collect())
    }

    /// The row that keeps a letter; `None` where nobody wants it.
    fn claim(&self, letter: &DeadLetter, late: &HashMap<Id, Arc<Event>>) -> Option<DeliveryClaim> {
        let delivery = &letter.delivery;
        let owner = self.owner(letter);
        let name = owner.map_or(NAME, |owner| owner.declaration.name);
        let headers = match &delivery.headers {
            Ok(headers) => headers,
            Err(why) => return Some(self.unreadable(letter, name, why)),
        };
        let Some(event_type) = self.parts.catalogue.get(&headers.event_type) else {
            return Some(self.unreadable(letter, name, "its type is not in the catalogue"));
        };
        let Some(owner) = owner else {
            return Some(self.dead(NAME, headers.event_id.to_string().into(), false, letter, headers));
        };
        if !owner.declaration.handles(&headers.event_type) {
            return None;
        }
        Some(self.owned(&owner.declaration, event_type, letter, headers, late))
    }

    fn owned(
        &self,
        declaration: &Declaration,
        event_type: &EventType,
        letter: &DeadLetter,
        headers: &Arc<Headers>,
        late: &HashMap<Id, Arc<Event>>,
    ) -> DeliveryClaim {
        let ordered = declaration.orders(event_type);
        let key = declaration.key(event_type, headers);
        let mut claim = self.dead(declaration.name, key, ordered, letter, headers);
        if is_late(letter) {
            let error = format!("late: {}", history(letter));
            if let Some(event) = late.get(&headers.event_id) {
                return super::redelivery(declaration, event, error, letter.delivery.position.to_string());
            }
            claim.verdict = Verdict::Failed { error, attempts: 0, retry_at: Some(claim.at) };
        }
        claim
    }

    fn dead(
        &self,
        consumer: &str,
        key: Arc<str>,
        ordered: bool,
        letter: &DeadLetter,
        headers: &Arc<Headers>,
    ) -> DeliveryClaim {
        DeliveryClaim {
            consumer: consumer.into(),
            event_id: headers.event_id,
            key,
            sequence: headers.sequence,
            ordered,
            from_backlog: false,
            verdict: Verdict::Failed { error: history(letter), attempts: 1, retry_at: None },
            message: Some(super::as_it_came(&letter.delivery)),
            at: Timestamp::now(),
        }
    }

    /// Whose queue it was in at last.
    fn owner(&self, letter: &DeadLetter) -> Option<&Owner> {
        let death = letter.deaths.first()?;
        self.owners
            .iter()
            .find(|owner| matches!(&owner.declaration.source, Source::Queue { name, .. } if *name == death.queue))
    }

    fn unreadable(&self, letter: &DeadLetter, consumer: &str, why: &str) -> DeliveryClaim {
        let metrics = self.parts.metrics.consumer(consumer);
        HandlerFailed { consumer, event_id: None, class: FailureClass::Undecodable, attempt: 1, error: why }
            .record(&metrics);
        quarantine::claim(consumer, &letter.delivery, &format!("{why}; {}", history(letter)))
    }

    /// What the store refuses as it is.
    async fn quarantine(&self, letter: &DeadLetter, consumer: &str, why: &str) -> Result<(), Paused> {
        let bare = quarantine::bare(consumer, &letter.delivery, &format!("{why}; {}", history(letter)));
        let unit = Unit { delivery: Some(bare), ..Unit::default() };
        self.parts.committer.background(unit).await.map(drop).map_err(|error| Paused(error.to_string()))
    }
}

/// Only what a consumer refused is dead.
fn is_late(letter: &DeadLetter) -> bool {
    letter.deaths.first().is_some_and(|death| death.reason != DeathReason::Rejected)
}

fn history(letter: &DeadLetter) -> String {
    if letter.deaths.is_empty() {
        return "published to the dead-letter queue itself".to_owned();
    }
    letter.deaths.iter().map(ToString::to_string).collect::<Vec<_>>().join("; before that: ")
}
