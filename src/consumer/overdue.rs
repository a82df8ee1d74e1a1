//! overdue: finds events whose message was confirmed and never came to its consumer.
//!
//! RabbitMQ confirms a message as soon as one queue takes it. A consumer whose binding or
//! queue was deleted meanwhile gets nothing of it, and nobody hears of that. So one instance
//! looks through the events in the order of their ids, some minutes behind, for those a
//! consumer has nothing of, and hands them to it from the store.
//!
//! A consumer that lags misses nothing. What is overdue was overtaken: the consumer has
//! handled later messages of the same log, or its queue was seen empty.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ConsumerParts, Declaration, Drained};
use crate::broker::Source;
use crate::domain::catalogue::Catalogue;
use crate::domain::{Broker, Id, Timestamp};
use crate::service::committer::CommitError;
use crate::store::{
    Arrival, ArrivalQuery, DeliveryClaim, Duty, Effect, Fold, Handled, LegState, Look, Missing, Outcome, StoreError,
    Unit,
};
use crate::telemetry::facts::Overdue;

/// Read model of how far the search has come: `after`, below which nothing is missing; key =
/// the consumer.
pub const MODEL: &str = "overdue";

/// One instance does it for all.
const DUTY: Duty = Duty { name: "overdue", lease: Duration::from_secs(90) };
/// Of one consumer at a time, so that the duty's lease outlasts all of them.
const SLICE: Duration = Duration::from_secs(15);
const PAGE: u32 = 500;
/// What was accepted in a rush is looked through later, beside other requests: this much of the
/// time, for each page as many times as it took, the store is left to them.
const OTHERS: u32 = 4;
/// Events kept in mind whose leg is open, or whose consumer has not come so far: beyond so
/// many the search waits for them.
const WAITING: usize = 4_096;

/// A consumer whose broker may lose messages.
pub struct Owed {
    pub declaration: Declaration,
    /// Wakes its retries.
    pub retry_soon: Arc<Notify>,
    pub drained: Arc<Drained>,
}

/// When an event is overdue.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its message was confirmed so long ago.
    pub after: Duration,
    /// How long the store keeps events: older ones are let go.
    pub keep: Duration,
}

/// Starts the search. It ends after `stop`, with the page in hand.
pub fn spawn(owed: Vec<Owed>, options: Options, parts: &ConsumerParts, stop: &CancellationToken) -> JoinHandle<()> {
    let search = Search { options, parts: parts.clone() };
    crate::task::spawn("overdue", search.run(owed, stop.child_token()))
}

struct Search {
    options: Options,
    parts: ConsumerParts,
}

/// How far the search has come for one consumer.
struct Progress {
    /// Below this, all is well except for `waiting`.
    after: Id,
    waiting: BTreeSet<Id>,
    /// What the store remembers.
    saved: Option<Id>,
}

impl Progress {
    /// Below this, all is well.
    fn low(&self) -> Id {
        match self.waiting.first() {
            Some(first) => Id(uuid::Uuid::from_u128(first.0.as_u128().saturating_sub(1))),
            None => self.after,
        }
    }
}

/// Why a search broke off; it goes on with the next round.
#[derive(Debug, thiserror::Error)]
enum BrokeOff {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Search {
    async fn run(self, owed: Vec<Owed>, stop: CancellationToken) {
        let round = (self.options.after / 10).clamp(Duration::from_secs(1), Duration::from_secs(30));
        let mut progress = BTreeMap::new();
        while !stop.is_cancelled() {
            let mut behind = false;
            if DUTY.is_ours(&*self.parts.store).await {
                for owed in &owed {
                    behind |= self.look(owed, &mut progress, &stop).await;
                }
            } else {
                // Whoever does it goes on from what the store remembers.
                progress.clear();
            }
            if !behind {
                stop.run_until_cancelled(tokio::time::sleep(round)).await;
            }
        }
    }

    /// Looks for what one consumer misses; says whether there is more to look at.
    async fn look(
        &self,
        owed: &Owed,
        progress: &mut BTreeMap<&'static str, Progress>,
        stop: &CancellationToken,
    ) -> bool {
        let consumer = owed.declaration.name;
        let looked = async {
            let progress = match progress.entry(consumer) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.remembered(consumer).await?),
            };
            let behind = self.slice(owed, progress, stop).await;
            self.remember(consumer, progress).await?;
            behind
        };
        looked.await.unwrap_or_else(|error: BrokeOff| {
            tracing::warn!(consumer, %error, "overdue events cannot be looked for; next try in a while");
            false
        })
    }

    /// A consumer that is new begins now: history is not its own.
    async fn remembered(&self, consumer: &str) -> Result<Progress, StoreError> {
        let row = self.parts.store.read_model(MODEL, consumer).await?;
        let saved = row.and_then(|row| row["after"].as_str()?.parse().ok());
        let after = saved.unwrap_or_else(|| Timestamp::now().first_id());
        Ok(Progress { after, waiting: BTreeSet::new(), saved })
    }

    async fn remember(&self, consumer: &str, progress: &mut Progress) -> Result<(), CommitError> {
        let low = Some(progress.low());
        if progress.saved == low {
            return Ok(());
        }
        let mut fold = Fold { model: MODEL, key: consumer.to_owned(), ..Fold::default() };
        fold.set.insert("after", progress.low().to_string().into());
        let unit = Unit { effects: vec![Effect::Fold(fold)], ..Unit::default() };
        self.parts.committer.background(unit).await?;
        progress.saved = low;
        Ok(())
    }

    async fn slice(&self, owed: &Owed, progress: &mut Progress, stop: &CancellationToken) -> Result<bool, BrokeOff> {
        let began = Instant::now();
        let ago = |time: Duration| Timestamp::now().plus_ms(-i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let before = ago(self.options.after);
        progress.after = progress.after.max(ago(self.options.keep).first_id());

        let waiting: Vec<Id> = progress.waiting.iter().copied().collect();
        if !waiting.is_empty() {
            let seen = self.arrivals(owed, Look::These(&waiting)).await?;
            progress.waiting = self.judge(owed, seen, before).await?;
        }
        loop {
            let asked = Instant::now();
            let range = Look::Between { after: progress.after, before: before.first_id(), limit: PAGE };
            let seen = self.arrivals(owed, range).await?;
            let (end, full) = (seen.last().map(|last| last.event_id), seen.len() == PAGE as usize);
            let open = self.judge(owed, seen, before).await?;
            if progress.waiting.len() + open.len() > WAITING {
                return Ok(false);
            }
            progress.waiting.extend(open);
            progress.after = end.unwrap_or(progress.after);
            if !full || stop.is_cancelled() {
                return Ok(false);
            }
            if began.elapsed() > SLICE {
                return Ok(true);
            }
            stop.run_until_cancelled(tokio::time::sleep(OTHERS * asked.elapsed())).await;
        }
    }

    async fn arrivals(&self, owed: &Owed, events: Look<'_>) -> Result<Vec<Arrival>, StoreError> {
        let types: Vec<&'static str> = owed.declaration.consumes.iter().map(|(name, _)| *name).collect();
        let (consumer, broker) = (owed.declaration.name, owed.declaration.source.broker());
        self.parts.store.arrivals(ArrivalQuery { consumer, broker, types: &types, events }).await
    }

    /// Hands over what is overdue; returns what cannot be told yet.
    async fn judge(&self, owed: &Owed, seen: Vec<Arrival>, before: Timestamp) -> Result<BTreeSet<Id>, BrokeOff> {
        let mut waiting = BTreeSet::new();
        let mut confirmed = Vec::new();
        for Arrival { event_id, missing } in seen {
            match missing {
                Some(missing) if missing.state == LegState::Done && missing.at < before => {
                    confirmed.push((event_id, missing));
                }
                Some(missing) if missing.state != LegState::Skipped => {
                    waiting.insert(event_id);
                }
                _ => {}
            }
        }
        if confirmed.is_empty() {
            return Ok(waiting);
        }
        let source = &owed.declaration.source;
        let newest = Timestamp::now().plus_ms(1).first_id();
        let handled = self.parts.store.last_handled(owed.declaration.name, source.broker(), newest).await?;
        // Of a group, each member sees what is left in its own partitions only.
        let drained = matches!(source, Source::Queue { .. }).then(|| owed.drained.last());
        let passed = Passed::new(source, &self.parts.catalogue, drained, handled);
        let (overdue, lagging): (Vec<_>, Vec<_>) =
            confirmed.into_iter().partition(|(_, missing)| passed.overtook(missing));
        self.hand_over(owed, overdue).await?;
        waiting.extend(lagging.into_iter().map(|(event_id, _)| event_id));
        Ok(waiting)
    }

    async fn hand_over(&self, owed: &Owed, overdue: Vec<(Id, Missing)>) -> Result<(), BrokeOff> {
        let Owed { declaration, retry_soon, .. } = owed;
        let broker = declaration.source.broker();
        let ids: Vec<Id> = overdue.iter().map(|(event_id, _)| *event_id).collect();
        let mut missing: HashMap<Id, Missing> = overdue.into_iter().collect();
        let mut claims = Vec::with_capacity(ids.len());
        // Those deleted with age meanwhile are not owed any more.
        for event in self.parts.store.events_by_id(&ids).await? {
            let Some(missing) = missing.remove(&event.event_id) else { continue };
            let why = format!("overdue: {broker} confirmed it at {}, and it never came", missing.at);
            claims.push((super::redelivery(declaration, &event, why, "the store".to_owned()), missing));
        }
        // The lowest sequence of a key becomes its head, the others park behind it.
        claims.sort_by_key(|(claim, _)| claim.sequence);
        let unit = |claim: &DeliveryClaim| Unit { delivery: Some(claim.clone()), ..Unit::default() };
        let units = claims.iter().map(|(claim, _)| unit(claim)).collect();
        let results = self.parts.committer.background_all(units).await;
        let metrics = self.parts.metrics.consumer(declaration.name);
        for ((claim, missing), result) in claims.into_iter().zip(results) {
            let (consumer, event_id, event_type) = (declaration.name, claim.event_id, &*missing.event_type);
            match result {
                Ok(Outcome::Parked) => {
                    Overdue { consumer, event_id, event_type, broker, confirmed_at: missing.at }.record(&metrics);
                    retry_soon.notify_one();
                }
                // Handled after all.
                Ok(_) => {}
                Err(CommitError::Refused(why)) => {
                    tracing::error!(consumer, %event_id, event_type, why, "overdue, and cannot be handed over");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Up to when a consumer has been through its logs.
struct Passed {
    drained: Option<Timestamp>,
    /// What each type is kept in; empty for a queue, which is one log however many exchanges
    /// fill it.
    topics: HashMap<Arc<str>, String>,
    handled: HashMap<(Option<String>, Option<i32>), Timestamp>,
}

impl Passed {
    fn new(source: &Source, catalogue: &Catalogue, drained: Option<Timestamp>, handled: Vec<Handled>) -> Self {
        let mut topics = HashMap::new();
        if matches!(source, Source::Topics(_)) {
            for event_type in catalogue.types() {
                let topic = event_type.route_templates().find(|(broker, ..)| *broker == Broker::Kafka);
                topics.extend(topic.map(|(_, topic, _)| (event_type.name.clone(), topic)));
            }
        }
        let mut passed = Self { drained, topics, handled: HashMap::new() };
        for Handled { event_type, partition, at } in handled {
            let last = passed.handled.entry(passed.log(&event_type, partition)).or_insert(at);
            *last = at.max(*last);
        }
        passed
    }

    fn log(&self, event_type: &str, partition: Option<i32>) -> (Option<String>, Option<i32>) {
        (self.topics.get(event_type).cloned(), partition)
    }

    /// Was this message, had it come, before others that the consumer has done with?
    fn overtook(&self, missing: &Missing) -> bool {
        let handled = self.handled.get(&self.log(&missing.event_type, missing.partition));
        [self.drained.as_ref(), handled].into_iter().flatten().any(|until| missing.at < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::{audit, metrics};

    fn missing(event_type: &str, partition: i32, at: i64) -> Missing {
        let (event_type, partition) = (event_type.into(), Some(partition));
        Missing { event_type, state: LegState::Done, at: Timestamp(at), partition }
    }

    fn passed(source: &Source, drained: Option<i64>, handled: &[(&str, i32, i64)]) -> Passed {
        let handled = handled.iter().map(|(event_type, partition, at)| Handled {
            event_type: (*event_type).into(),
            partition: Some(*partition),
            at: Timestamp(*at),
        });
        Passed::new(source, &Catalogue::load(&[]).unwrap(), drained.map(Timestamp), handled.collect())
    }

    #[test]
    fn a_queue_is_one_log_and_may_be_seen_empty() {
        let queue = audit::declaration().source;
        let handled = passed(&queue, None, &[("job.failed", 0, 10), ("job.submitted", 0, 5)]);
        assert!(handled.overtook(&missing("job.submitted", 0, 9)));
        assert!(!handled.overtook(&missing("job.submitted", 0, 10)), "not known to be before it");
        assert!(passed(&queue, Some(10), &[]).overtook(&missing("job.submitted", 0, 9)));
        assert!(!passed(&queue, Some(10), &[]).overtook(&missing("job.submitted", 0, 10)));
    }

    #[test]
    fn each_partition_of_a_topic_is_a_log() {
        let topics = metrics::declaration().source;
        let handled = passed(&topics, None, &[("job.failed", 1, 10), ("job.metrics.recorded", 2, 10)]);
        assert!(handled.overtook(&missing("job.submitted", 1, 9)), "of the same topic");
        assert!(!handled.overtook(&missing("job.submitted", 2, 9)), "of another topic");
        assert!(!handled.overtook(&missing("job.submitted", 3, 9)), "of another partition");
    }
}
