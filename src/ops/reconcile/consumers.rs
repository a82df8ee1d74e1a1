//! Compares what queues were given with what our consumers have of it.
//!
//! A queue cannot be read without consuming it. But a consumer commits a row of its inbox or of its
//! backlog for every event that it handles, and acknowledges afterwards. So an event that was
//! confirmed, of which the consumer has neither, must still be in the queue or in the consumer's
//! hands: where both are empty it is missing.
//!
//! In which order a consumer has handled the events of an aggregate is told by the events that
//! it has emitted for them, exactly, else by the times of its inbox rows, which are of several
//! instances' clocks. Repeats are not told by anything: the inbox has one row for each event.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::time::Instant;

use super::scratch::{Handled, OwedLeg, Scratch};
use super::{BrokerReport, Comparison, ConsumerReport, EVENTS, LOOK_AGAIN, ReconcileError, confirmed, finding};
use crate::broker::Source;
use crate::consumer::{Declaration, PREFETCH, declarations};
use crate::domain::{Broker, Id, Timestamp};
use crate::store::{ArrivalQuery, Deliveries, EffectState, LegState, Look, Missing, StoreError};

/// A queue without a leader looks empty and without readers, but not for so long.
const LEADERLESS: Duration = Duration::from_secs(5);
/// Two messages confirmed so far apart were in this order in their queue, whoever published them.
const APART_MS: i64 = 60_000;
/// Clocks of instances do not differ by more.
const CLOCKS_MS: i64 = 5_000;

/// A consumer of ours that reads a queue.
pub(super) struct Reader {
    declaration: Declaration,
    queue: Arc<str>,
    /// The types it handles.
    types: Vec<&'static str>,
    /// The types it may emit for them.
    emits: Vec<&'static str>,
}

/// The consumers of this broker's queues.
pub(super) fn readers(broker: Broker) -> Vec<Reader> {
    let ours = declarations().into_iter().filter(|declaration| declaration.source.broker() == broker);
    ours.filter_map(|declaration| match &declaration.source {
        Source::Queue { name, exclusive: false, .. } => Some(Reader {
            queue: name.clone(),
            types: declaration.consumes.iter().map(|(name, _)| *name).collect(),
            emits: declaration.consumes.iter().flat_map(|(_, emits)| emits.iter().copied()).collect(),
            declaration,
        }),
        _ => None,
    })
    .collect()
}

impl Reader {
    /// Nothing is found yet.
    pub(super) fn report(&self) -> ConsumerReport {
        ConsumerReport {
            name: self.declaration.name,
            queue: self.queue.to_string(),
            handled: 0,
            backlog: 0,
            dead: 0,
            on_the_way: 0,
            missing: 0,
        }
    }
}

/// Where messages for a consumer may be that the store knows nothing of.
#[derive(Clone, Copy, Debug)]
struct Room {
    exists: bool,
    /// In its queue.
    messages: u64,
    /// Those that were taken out of the queues and wait to become dead letters or to be tried again.
    dead_letters: u64,
    /// Who may have some in hand.
    holders: u64,
}

impl Room {
    fn is_empty(self) -> bool {
        self.messages + self.dead_letters == 0
    }

    /// The most it can hold.
    fn most(self) -> u64 {
        self.messages + self.dead_letters + self.holders * PREFETCH as u64
    }
}

/// What the last look at a consumer's queue and at the store has shown.
struct Standstill {
    room: Room,
    /// It was empty for so long that nothing can be in hand either.
    empty: bool,
    /// Events that the consumer had nothing of.
    open: u64,
}

impl Comparison<'_> {
    /// Keeps what the consumers have done with a page of events.
    pub(super) async fn note_handled(
        &self,
        page: &[Deliveries],
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        if self.readers.is_empty() {
            return Ok(());
        }
        let (mut handled, mut emitted) = (Vec::new(), Vec::new());
        for found in page {
            let event = &found.event;
            for (number, reader) in self.readers.iter().enumerate() {
                let counts = &mut report.consumers[number];
                for effect in found.effects.iter().filter(|effect| *effect.consumer == *reader.declaration.name) {
                    *match effect.state {
                        EffectState::Done => &mut counts.handled,
                        EffectState::Retrying | EffectState::Parked => &mut counts.backlog,
                        EffectState::Dead => &mut counts.dead,
                    } += 1;
                    let at = (effect.state == EffectState::Done).then_some(effect.at);
                    handled.push((number, event.event_id, at));
                }
                if let Some(cause) = event.causation_id
                    && reader.emits.contains(&&*event.event_type.name)
                {
                    emitted.push((cause, event.event_type.name.clone(), event.position));
                }
            }
        }
        scratch.add_handled(&handled).await?;
        scratch.add_emitted(&emitted).await?;
        Ok(())
    }

    /// Finds what consumers have missed or handled late, once nothing more comes of itself.
    pub(super) async fn judge_consumers(
        &self,
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        for (number, reader) in self.readers.iter().enumerate() {
            scratch.note_owed(number, &reader.types).await?;
            // Who tells every message counts those in hand, too.
            if let Some(still) = self.wait_for(number, scratch, report.compared).await? {
                self.find_missed(number, &still, scratch, report).await?;
            }
            self.find_late(number, scratch, report).await?;
        }
        self.reopen_lost(scratch, report).await
    }

    /// Waits until the consumer has something of everything. `None`: it has. `exact`: the depth
    /// of the queue counts what is in hand, and is never wrong.
    async fn wait_for(
        &self,
        number: usize,
        scratch: &mut Scratch,
        exact: bool,
    ) -> Result<Option<Standstill>, ReconcileError> {
        let deadline = Instant::now() + self.options.wait;
        let mut empty_since = None;
        loop {
            // First: what has left the queue by now has left a row in the store, or is lost.
            let room = self.room(&self.readers[number]).await?;
            let now = Instant::now();
            empty_since = room.is_empty().then(|| empty_since.unwrap_or(now));
            let open = self.look(number, scratch).await?;
            if open == 0 {
                return Ok(None);
            }
            let patience = match room.holders {
                _ if exact => Duration::ZERO,
                0 => LEADERLESS,
                // Nobody has a message in hand for so long.
                _ => self.options.wait.max(LEADERLESS),
            };
            let empty = empty_since.is_some_and(|since| since + patience <= now);
            // An empty queue takes no more than the rest of its patience.
            if empty || (now >= deadline && empty_since.is_none()) {
                return Ok(Some(Standstill { room, empty, open }));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn room(&self, reader: &Reader) -> Result<Room, ReconcileError> {
        let mut room = Room { exists: false, messages: 0, dead_letters: 0, holders: 0 };
        for queue in self.log.queues().await? {
            if queue.name == reader.queue {
                room = Room { exists: true, messages: queue.messages, holders: room.holders + queue.holders, ..room };
            } else if !self.readers.iter().any(|other| other.queue == queue.name) {
                // Rejected, expired and over-length ones of all queues go there.
                room.dead_letters += queue.messages;
                room.holders += queue.holders;
            }
        }
        Ok(room)
    }

    /// Drops from what is owed what the store has something of by now; returns how many are left.
    async fn look(&self, number: usize, scratch: &mut Scratch) -> Result<u64, ReconcileError> {
        let (mut after, mut open) = (i64::MIN, 0);
        loop {
            let page = scratch.owed(number, after, EVENTS).await?;
            let Some(last) = page.last() else { return Ok(open) };
            after = last.committed;
            let missing = self.still_missing(number, &page).await?;
            let settled = page.iter().filter(|leg| !missing.contains_key(&leg.event_id));
            let settled: Vec<i64> = settled.map(|leg| leg.committed).collect();
            open += (page.len() - settled.len()) as u64;
            scratch.settle(number, &settled).await?;
        }
    }

    /// Of which of these the consumer has nothing, though their legs are done.
    async fn still_missing(&self, number: usize, page: &[OwedLeg]) -> Result<HashMap<Id, Missing>, StoreError> {
        let reader = &self.readers[number];
        let ids: Vec<Id> = page.iter().map(|leg| leg.event_id).collect();
        let query = ArrivalQuery {
            consumer: reader.declaration.name,
            broker: self.log.broker(),
            types: &reader.types,
            events: Look::These(&ids),
        };
        let seen = self.store.arrivals(query).await?;
        let missing = seen.into_iter().filter_map(|arrival| Some((arrival.event_id, arrival.missing?)));
        Ok(missing.filter(|(_, missing)| missing.state == LegState::Done).collect())
    }

    /// Judges what is left, the oldest first.
    async fn find_missed(
        &self,
        number: usize,
        still: &Standstill,
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        let (name, queue) = (self.readers[number].declaration.name, self.readers[number].queue.clone());
        let newest = Timestamp::now().plus_ms(1).first_id();
        let handled = self.store.last_handled(name, self.log.broker(), newest).await?;
        let handled = handled.into_iter().map(|handled| handled.at).max();
        let room = still.room;
        let beyond = still.open.saturating_sub(room.most());
        let mut after = i64::MIN;
        loop {
            let page = scratch.owed(number, after, EVENTS).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.committed;
            let open = self.still_missing(number, &page).await?;
            let mut lost = Vec::new();
            for leg in &page {
                let Some(missing) = open.get(&leg.event_id) else { continue };
                let overtaken =
                    room.dead_letters == 0 && handled.is_some_and(|handled| missing.at.plus_ms(APART_MS) < handled);
                let counts = &mut report.consumers[number];
                let why = if still.empty {
                    let queue = if room.exists { format!("{queue} is empty") } else { format!("there is no {queue}") };
                    format!("{name} has nothing of it, and {queue}")
                } else if overtaken {
                    format!("{name} has nothing of it, and has handled what came to {queue} later")
                } else if counts.missing < beyond {
                    let (open, most) = (still.open, room.most());
                    format!("{name} has nothing of {open} events, {queue} has {most} at most: the oldest must be lost")
                } else {
                    counts.on_the_way += 1;
                    continue;
                };
                counts.missing += 1;
                // Which ones a queue has that is not empty is only a guess.
                if still.empty || overtaken {
                    lost.push(leg.committed);
                }
                report.missing.add(self.options.examples, || super::Finding {
                    consumer: Some(name),
                    ..finding(leg, leg.offset.and_then(|_| confirmed(leg)), why)
                });
            }
            scratch.add_lost(&lost).await?;
        }
    }

    /// Has their messages published again, to all queues: whoever has handled them drops them.
    async fn reopen_lost(&self, scratch: &mut Scratch, report: &mut BrokerReport) -> Result<(), ReconcileError> {
        let mut lost = scratch.lost().try_chunks(EVENTS as usize);
        while let Some(page) = lost.try_next().await.map_err(|broken| broken.1)? {
            report.lost += page.len() as u64;
            if self.options.reopen {
                report.reopened += self.store.publish_again(self.log.broker(), &page).await?;
            }
        }
        Ok(())
    }

    async fn find_late(
        &self,
        number: usize,
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        let reader = &self.readers[number];
        let name = reader.declaration.name;
        let mut handled = scratch.handled(number, &reader.emits);
        let mut before: Option<Progress> = None;
        while let Some(this) = handled.try_next().await? {
            let key = (&this.leg.aggregate, &this.leg.aggregate_id);
            match before.as_mut().filter(|before| (&before.aggregate, &before.id) == key) {
                None => before = Some(Progress::new(&this)),
                Some(before) => {
                    if let Some(earlier) = before.add(&this) {
                        report.out_of_order.add(self.options.examples, || super::Finding {
                            consumer: Some(name),
                            ..finding(&this.leg, None, format!("{name} has handled it before sequence {earlier}"))
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// How far a consumer has come with an aggregate; the furthest stays the measure.
struct Progress {
    aggregate: Arc<str>,
    id: Arc<str>,
    /// When, and which sequence that was.
    at: (Timestamp, i64),
    emitted: Option<(i64, i64)>,
}

impl Progress {
    fn new(first: &Handled) -> Self {
        let leg = &first.leg;
        Self {
            aggregate: leg.aggregate.clone(),
            id: leg.aggregate_id.clone(),
            at: (first.at, leg.sequence),
            emitted: first.emitted.map(|position| (position, leg.sequence)),
        }
    }

    /// Takes in the event of the next sequence; which earlier one was handled after it, if one was.
    fn add(&mut self, next: &Handled) -> Option<i64> {
        let sequence = next.leg.sequence;
        let emitted = self.emitted.zip(next.emitted).filter(|(furthest, this)| furthest.0 > *this);
        let by_clock = self.at.0 > next.at.plus_ms(CLOCKS_MS);
        let earlier = emitted.map(|(furthest, _)| furthest.1).or_else(|| by_clock.then_some(self.at.1));
        if next.at > self.at.0 {
            self.at = (next.at, sequence);
        }
        if let Some(position) = next.emitted
            && self.emitted.is_none_or(|furthest| furthest.0 < position)
        {
            self.emitted = Some((position, sequence));
        }
        earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reconcile::tests::leg;

    fn handled(sequence: i64, at: i64, emitted: Option<i64>) -> Handled {
        let leg = OwedLeg { sequence, ..leg(1, Duration::ZERO) };
        Handled { leg, at: Timestamp(at), emitted }
    }

    #[test]
    fn what_was_emitted_tells_the_order_and_the_clock_only_where_it_is_clear() {
        let mut progress = Progress::new(&handled(1, 10_000, Some(100)));
        assert_eq!(progress.add(&handled(2, 9_000, Some(101))), None, "clocks differ");
        assert_eq!(progress.add(&handled(3, 10_000, Some(99))), Some(2), "in the same moment, but before");
        assert_eq!(progress.add(&handled(4, 30_000, None)), None);
        assert_eq!(progress.add(&handled(5, 20_000, None)), Some(4));
        assert_eq!(progress.add(&handled(6, 21_000, Some(102))), Some(4), "the furthest stays the measure");
    }

    #[test]
    fn queues_of_instances_are_not_compared() {
        let names: Vec<&str> = readers(Broker::Rabbitmq).iter().map(|reader| reader.declaration.name).collect();
        assert_eq!(names, ["orchestrator", "audit"]);
        assert!(readers(Broker::Kafka).is_empty() && readers(Broker::Nats).is_empty());
    }
}
