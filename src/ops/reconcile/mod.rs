//! Compares the ledger with what the brokers really hold.
//!
//! Per broker: the legs as the store has them, then every message as the broker has it,
//! both into a [`scratch`] file, then what does not match. The ledger is read first: what
//! is confirmed by then must be found afterwards, unless the log may have dropped it since
//! (which is why extents are looked at again at the end). So nothing has to stand still,
//! and memory stays bounded however many events there are.
//!
//! The judgement is the relay's promise: the first message of each event comes in the
//! order of its aggregate, and repeats may follow. Queues cannot be read without consuming
//! them: there [`consumers`] compares what our consumers have had. Work queues forget what is
//! consumed: there the store has to show what came of it (see [`absence`]).
//!
//! Where messages were lost their legs can be opened again, in the order of their commits,
//! so that relays publish them behind what is there.

mod absence;
mod consumers;
mod report;
mod scratch;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;

use absence::{Absence, Command, Extents, absence, is_over, is_published_again};
use consumers::Reader;
pub use report::{BrokerReport, ConsumerReport, Finding, Findings, LegCounts, Queue, Report};
use scratch::{OwedLeg, Scratch, Seen};

use crate::broker::{BrokerLog, Extent, Keeps, LogError, Position};
use crate::domain::catalogue::Order;
use crate::domain::job::Job;
use crate::domain::{Broker, Id, Timestamp};
use crate::store::{Deliveries, EventFilter, LegState, Page, Store, StoreError};

/// Events read at once.
const EVENTS: u32 = 500;
/// Open legs looked at when waiting for them.
const OPEN_LEGS: u32 = 500;
/// From one look at open legs to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Clocks differ, and retention runs when it runs: an old message may be gone this early.
const SLACK: Duration = Duration::from_secs(300);

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub struct ReconcileOptions {
    /// Findings of one kind that are listed; all are counted.
    pub examples: usize,
    /// How long to wait for legs that are open at the beginning, and then for consumers that have
    /// messages in hand.
    pub wait: Duration,
    /// How long the store keeps events.
    pub store_keeps: Duration,
    /// Whether what was lost is to be published again.
    pub reopen: bool,
}

/// Why there is no report. Trying again is safe: at most, legs are open again that were to be.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the file to compare in: {0}; is the directory for temporary files (SQLITE_TMPDIR, TMPDIR) full?")]
    Scratch(#[from] sqlx::Error),
}

/// What is going on, for people who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Legs(Broker, u64),
    Messages(Broker, u64),
    Comparing(Broker),
}

/// Compares the ledger with `logs`, one of each broker.
///
/// # Errors
/// Something could not be read to its end. A report is never partial.
pub async fn reconcile(
    store: &dyn Store,
    logs: &[Arc<dyn BrokerLog>],
    options: ReconcileOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, ReconcileError> {
    let newest = store.events(&EventFilter::default(), Page { before: None, limit: 1 }).await?;
    let last_position = newest.first().map_or(0, |event| event.position);
    settle(store, logs, last_position, options.wait).await?;
    let at = Timestamp::now();
    let mut brokers = Vec::with_capacity(logs.len());
    for log in logs {
        let readers = consumers::readers(log.broker());
        let comparison = Comparison { store, log: &**log, readers, options, at, last_position, progress };
        brokers.push(comparison.run().await?);
    }
    Ok(Report { at, last_position, brokers })
}

/// Waits until nothing up to `last` is on its way, but no longer than `limit`.
async fn settle(
    store: &dyn Store,
    logs: &[Arc<dyn BrokerLog>],
    last: i64,
    limit: Duration,
) -> Result<(), ReconcileError> {
    let deadline = tokio::time::Instant::now() + limit;
    for log in logs {
        loop {
            let open = store.open_legs(log.broker(), None, 0, OPEN_LEGS).await?;
            let waiting = open.iter().any(|(event, leg)| event.position <= last && leg.state == LegState::Pending);
            if !waiting || tokio::time::Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

/// One broker's comparison.
struct Comparison<'a> {
    store: &'a dyn Store,
    log: &'a dyn BrokerLog,
    /// Consumers of its queues.
    readers: Vec<Reader>,
    options: ReconcileOptions,
    at: Timestamp,
    last_position: i64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Comparison<'_> {
    async fn run(&self) -> Result<BrokerReport, ReconcileError> {
        let mut report = BrokerReport::new(self.log.broker());
        report.consumers = self.readers.iter().map(Reader::report).collect();
        let mut scratch = Scratch::new().await?;
        self.read_legs(&mut scratch, &mut report).await?;
        if let Some(extents) = self.log.extents().await? {
            report.compared = true;
            for extent in &extents {
                self.read_messages(extent, &mut scratch, &mut report).await?;
            }
            (self.progress)(Progress::Comparing(self.log.broker()));
            let extents = self.log.extents().await?.unwrap_or_default();
            self.find_missing(&extents, &mut scratch, &mut report).await?;
            self.find_disorder(&extents, &mut scratch, &mut report).await?;
            self.find_repeats(&mut scratch, &mut report).await?;
            self.find_unknown(&mut scratch, &mut report).await?;
        }
        self.judge_consumers(&mut scratch, &mut report).await?;
        self.find_waiting(&mut scratch, &mut report).await?;
        for queue in self.log.queues().await? {
            report.queues.push(Queue { name: queue.name.to_string(), messages: queue.messages });
        }
        Ok(report)
    }

    async fn read_legs(&self, scratch: &mut Scratch, report: &mut BrokerReport) -> Result<(), ReconcileError> {
        let (mut before, mut count) = (self.last_position.saturating_add(1), 0);
        loop {
            let page = self.store.deliveries(Page { before: Some(before), limit: EVENTS }).await?;
            let Some(oldest) = page.last() else { return Ok(()) };
            before = oldest.event.position;
            let legs: Vec<OwedLeg> = page.iter().filter_map(|found| self.owed(found)).collect();
            for leg in &legs {
                *match leg.state {
                    LegState::Done => &mut report.legs.done,
                    LegState::Pending => &mut report.legs.pending,
                    LegState::Dead => &mut report.legs.dead,
                    LegState::Skipped => &mut report.legs.skipped,
                } += 1;
            }
            scratch.add_legs(&legs).await?;
            self.note_handled(&page, scratch, report).await?;
            count += legs.len() as u64;
            (self.progress)(Progress::Legs(self.log.broker(), count));
        }
    }

    /// The event's leg of this broker.
    fn owed(&self, found: &Deliveries) -> Option<OwedLeg> {
        let event = &found.event;
        let leg = found.legs.iter().find(|leg| leg.broker == self.log.broker())?;
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let route = routes.iter().find(|route| route.broker == leg.broker);
        Some(OwedLeg {
            event_id: event.event_id,
            committed: event.position,
            event_type: event.event_type.name.clone(),
            aggregate: event.event_type.aggregate.clone(),
            aggregate_id: event.aggregate_id.clone(),
            sequence: event.sequence,
            ordered: event.event_type.order == Order::Aggregate,
            state: leg.state,
            log: route.and_then(|route| self.log.log_of(route)),
            target: route.map_or_else(|| "".into(), |route| route.target.clone()),
            partition: leg.partition,
            offset: leg.offset,
            occurred_at: event.occurred_at,
            command: Command::of(found).filter(|_| leg.broker == Broker::Nats),
        })
    }

    async fn read_messages(
        &self,
        extent: &Extent,
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        let mut reader = self.log.read(extent).await?;
        loop {
            let page = reader.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut seen = Vec::with_capacity(page.len());
            for record in page {
                report.messages += 1;
                match record.headers {
                    Ok(headers) => seen.push((headers.event_id, record.position)),
                    Err(why) => report.unreadable.add(self.options.examples, || Finding {
                        position: Some(record.position.to_string()),
                        why,
                        ..Finding::default()
                    }),
                }
            }
            scratch.add_seen(&seen).await?;
            (self.progress)(Progress::Messages(self.log.broker(), report.messages));
        }
    }

    /// `extents`: as they are after everything was read.
    async fn find_missing(
        &self,
        extents: &[Extent],
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        let extents: Extents = extents.iter().map(|extent| ((&*extent.log, extent.partition), extent)).collect();
        let mut legs = scratch.without_message().try_chunks(EVENTS as usize);
        while let Some(page) = legs.try_next().await.map_err(|broken| broken.1)? {
            let mut lost = Vec::new();
            for (leg, absence) in page.iter().zip(self.absences(&page, &extents).await?) {
                match absence {
                    Absence::Retired => report.retired += 1,
                    Absence::Consumed => report.consumed += 1,
                    Absence::Unclaimed => report.unclaimed += 1,
                    Absence::Missing(why) => {
                        report.missing.add(self.options.examples, || finding(leg, confirmed(leg), why));
                        if is_published_again(report.broker, leg, &extents) {
                            lost.push(leg.committed);
                        }
                    }
                }
            }
            report.lost += lost.len() as u64;
            if self.options.reopen && !lost.is_empty() {
                report.reopened += self.store.publish_again(report.broker, &lost).await?;
            }
        }
        Ok(())
    }

    /// Why each of these is not there. A command that was handed out must have left traces.
    async fn absences(&self, page: &[OwedLeg], extents: &Extents<'_>) -> Result<Vec<Absence>, ReconcileError> {
        let by_log: Vec<Absence> = page.iter().map(|leg| absence(leg, extents, self.at)).collect();
        let handed_out = |(leg, absence): (&OwedLeg, &Absence)| {
            let command = leg.command.filter(|_| *absence == Absence::Consumed)?;
            Some((command, leg.aggregate_id.parse::<Id>().ok()?))
        };
        let commands: Vec<Option<(Command, Id)>> = page.iter().zip(&by_log).map(handed_out).collect();
        let mut ids: Vec<Id> = commands.iter().flatten().map(|(_, job)| *job).collect();
        ids.sort_unstable();
        ids.dedup();
        let jobs = if ids.is_empty() { Vec::new() } else { self.store.jobs_by_id(&ids).await? };
        let jobs: HashMap<Id, Job> = jobs.into_iter().map(|job| (job.id, job)).collect();
        let traced = |(absence, command): (Absence, Option<(Command, Id)>)| match command {
            Some((command, job)) => command.after_handout(jobs.get(&job)),
            None => absence,
        };
        Ok(by_log.into_iter().zip(commands).map(traced).collect())
    }

    /// What a work queue has forgotten counts with the position at which it was confirmed.
    async fn find_disorder(
        &self,
        extents: &[Extent],
        scratch: &mut Scratch,
        report: &mut BrokerReport,
    ) -> Result<(), ReconcileError> {
        let forgets = |extent: &&Extent| matches!(extent.keeps, Keeps::UntilConsumed(_));
        let forgetful: Vec<&str> = extents.iter().filter(forgets).map(|extent| &*extent.log).collect();
        let mut events = scratch.in_sequence(&forgetful);
        let mut latest: Option<(OwedLeg, Seen)> = None;
        while let Some((leg, seen)) = events.try_next().await? {
            let before = latest.as_ref().filter(|(other, first)| {
                (&other.aggregate, &other.aggregate_id) == (&leg.aggregate, &leg.aggregate_id)
                    && (&first.position.log, first.position.partition) == (&seen.position.log, seen.position.partition)
            });
            match before {
                Some((earlier, first)) if first.position.offset > seen.position.offset => {
                    let why = format!("comes before sequence {}, which is at {}", earlier.sequence, first.position);
                    report
                        .out_of_order
                        .add(self.options.examples, || finding(&leg, Some(seen.position.to_string()), why));
                    // The furthest stays the measure.
                }
                _ => latest = Some((leg, seen)),
            }
        }
        Ok(())
    }

    async fn find_repeats(&self, scratch: &mut Scratch, report: &mut BrokerReport) -> Result<(), ReconcileError> {
        let mut events = scratch.repeated();
        while let Some((leg, seen)) = events.try_next().await? {
            let why = format!("there are {} of it", seen.copies);
            report.duplicates.add(self.options.examples, || finding(&leg, Some(seen.position.to_string()), why));
        }
        Ok(())
    }

    async fn find_unknown(&self, scratch: &mut Scratch, report: &mut BrokerReport) -> Result<(), ReconcileError> {
        let mut messages = scratch.without_leg().try_chunks(EVENTS as usize);
        while let Some(page) = messages.try_next().await.map_err(|broken| broken.1)? {
            let ids: Vec<Id> = page.iter().map(|seen| seen.event_id).collect();
            let stored = self.store.events_by_id(&ids).await?;
            let stored: HashSet<Id> = stored.iter().map(|event| event.event_id).collect();
            for seen in page {
                if stored.contains(&seen.event_id) {
                    report.newer += 1;
                } else if self.is_pruned(seen.event_id) {
                    report.pruned += 1;
                } else {
                    report.unknown.add(self.options.examples, || Finding {
                        event_id: Some(seen.event_id),
                        position: Some(seen.position.to_string()),
                        why: "the store does not have this event".into(),
                        ..Finding::default()
                    });
                }
            }
        }
        Ok(())
    }

    /// Is an event that was made when this id was older than the store keeps?
    fn is_pruned(&self, id: Id) -> bool {
        let made = id.timestamp_ms().and_then(|ms| i64::try_from(ms).ok());
        made.is_some_and(|made| is_over(Timestamp(made), self.options.store_keeps, self.at))
    }

    async fn find_waiting(&self, scratch: &mut Scratch, report: &mut BrokerReport) -> Result<(), ReconcileError> {
        let mut legs = scratch.pending();
        while let Some((leg, found)) = legs.try_next().await? {
            let why = match &found {
                Some(_) => "is there, but not marked as confirmed: it will be published again",
                None => "is not published yet",
            };
            let position = found.map(|position| position.to_string());
            report.waiting.add(self.options.examples, || finding(&leg, position, why.into()));
        }
        Ok(())
    }
}

fn confirmed(leg: &OwedLeg) -> Option<String> {
    let (log, partition) = (leg.log.clone()?, leg.partition.unwrap_or_default());
    Some(Position { log, partition, offset: leg.offset }.to_string())
}

fn finding(leg: &OwedLeg, position: Option<String>, why: String) -> Finding {
    Finding {
        event_id: Some(leg.event_id),
        event_type: Some(leg.event_type.to_string()),
        key: Some(format!("{}/{}", leg.aggregate, leg.aggregate_id)),
        sequence: Some(leg.sequence),
        position,
        why,
        consumer: None,
    }
}
