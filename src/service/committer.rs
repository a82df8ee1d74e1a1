//! Group commit: one task gathers the units that arrive while the previous COMMIT is in
//! flight and commits them together. Everyone is answered after that COMMIT.
//!
//! Where the store takes two at a time, what makes no events (marks of legs, plain effects) is
//! committed beside: nobody's order depends on it, and requests do not wait for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use async_trait::async_trait;

use crate::domain::Event;
use crate::relay::{Handoff, Marks};
use crate::store::{BrokerEnd, LegMark, Outcome, Store, StoreError, Unit};
use crate::telemetry::Metrics;

/// Bounds of the intake.
#[derive(Clone, Copy, Debug)]
pub struct CommitterOptions {
    /// Bytes of units that may wait; beyond, accepts are refused and others wait.
    pub max_bytes: usize,
    /// Rows a COMMIT gathers before it goes; a larger unit goes alone.
    pub batch_rows: usize,
}

/// Why a unit was not committed. Nothing of it was written unless said otherwise.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The intake is full.
    #[error("the intake is full")]
    Overloaded,
    /// The store cannot take it now.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// It may or may not be committed.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The store refused the data of this unit.
    #[error("refused by the store: {0}")]
    Refused(String),
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

impl From<&StoreError> for CommitError {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) | StoreError::Conflict(why) | StoreError::LeaseLost(why) => {
                Self::Unavailable(why.clone())
            }
            StoreError::OutcomeUnknown(why) => Self::OutcomeUnknown(why.clone()),
            StoreError::Data(why) | StoreError::Corrupt(why) => Self::Refused(why.clone()),
        }
    }
}

struct Waiting {
    unit: Unit,
    weight: usize,
    /// When a request handed it in; `None` for the background's.
    asked: Option<Instant>,
    answer: oneshot::Sender<Result<Outcome, CommitError>>,
    /// Gives the bytes back when the unit is answered.
    _bytes: OwnedSemaphorePermit,
}

/// Where units are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Committer {
    accepts: mpsc::UnboundedSender<Waiting>,
    background: mpsc::UnboundedSender<Waiting>,
    /// For background units that make no events.
    beside: mpsc::UnboundedSender<Waiting>,
    /// One permit is 64 bytes; this, not the channels, is what bounds the intake.
    accept_bytes: Arc<Semaphore>,
    background_bytes: Arc<Semaphore>,
    closing: CancellationToken,
    failed: LastFailure,
    metrics: Arc<Metrics>,
}

/// The last COMMIT that the store could not take, when, and why.
#[derive(Clone, Debug, Default)]
struct LastFailure(Arc<Mutex<Option<(Instant, String)>>>);

impl LastFailure {
    fn note(&self, error: &StoreError) {
        match error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) | StoreError::LeaseLost(_) => {
                *self.0.lock() = Some((Instant::now(), error.to_string()));
            }
            // It was these units.
            StoreError::Conflict(_) | StoreError::Data(_) | StoreError::Corrupt(_) => {}
        }
    }

    fn within(&self, time: Duration) -> Option<String> {
        self.0.lock().as_ref().filter(|(at, _)| at.elapsed() < time).map(|(_, why)| why.clone())
    }
}

const PERMIT_BYTES: usize = 64;

impl Committer {
    /// Starts the task. It ends after [`Committer::close`], when what waited is committed.
    pub fn spawn(
        store: Arc<dyn Store>,
        handoff: Arc<dyn Handoff>,
        options: CommitterOptions,
        metrics: Arc<Metrics>,
    ) -> (Self, JoinHandle<()>) {
        let (accepts, accept_queue) = mpsc::unbounded_channel();
        let (background, background_queue) = mpsc::unbounded_channel();
        let (beside, beside_queue) = match store.commits_in_parallel() {
            true => {
                let (beside, queue) = mpsc::unbounded_channel();
                (beside, Some(queue))
            }
            false => (background.clone(), None),
        };
        let permits = (options.max_bytes / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let committer = Self {
            accepts,
            background,
            beside,
            accept_bytes: Arc::new(Semaphore::new(permits)),
            background_bytes: Arc::new(Semaphore::new(permits)),
            closing: CancellationToken::new(),
            failed: LastFailure::default(),
            metrics: metrics.clone(),
        };
        let spacing = if store.commits_in_parallel() { SPACING } else { Duration::ZERO };
        let writer = Writer { store, handoff, failed: committer.failed.clone(), metrics };
        let (_, no_accepts) = mpsc::unbounded_channel();
        let task = |accepts, background, takes_accepts| Task {
            writer: writer.clone(),
            takes_accepts,
            spacing,
            batch_rows: options.batch_rows,
            accepts: Source::new(accepts),
            background: Source::new(background),
            closing: committer.closing.clone(),
        };
        let first = task(accept_queue, background_queue, true);
        let second = beside_queue.map(|queue| task(no_accepts, queue, false));
        // Owner: app, which joins the handle at shutdown.
        let handle = crate::task::spawn("committer", async move {
            let beside = async {
                if let Some(second) = second {
                    second.run().await;
                }
            };
            tokio::join!(first.run(), beside);
        });
        (committer, handle)
    }

    /// Takes no more; what waits is committed.
    pub fn close(&self) {
        self.accept_bytes.close();
        self.background_bytes.close();
        self.closing.cancel();
    }

    /// Why a COMMIT failed, if one did within `time`: a server may be readable and take nothing, as
    /// with a full disk or as a standby.
    pub fn failed_within(&self, time: Duration) -> Option<String> {
        self.failed.within(time)
    }

    fn permits(unit: &Unit) -> u32 {
        u32::try_from(unit.bytes().div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
    }

    /// A request's unit: first in its COMMIT, refused when the intake is full.
    pub async fn accept(&self, unit: Unit) -> Result<Outcome, CommitError> {
        let permits = Self::permits(&unit);
        let bytes = self.accept_bytes.clone().try_acquire_many_owned(permits).map_err(|error| match error {
            TryAcquireError::Closed => CommitError::Stopping,
            TryAcquireError::NoPermits => CommitError::Overloaded,
        })?;
        self.metrics.intake_queue_bytes.add(i64::from(permits) * PERMIT_BYTES as i64);
        let result = Self::enqueue(&self.accepts, unit, Some(Instant::now()), bytes).await;
        self.metrics.intake_queue_bytes.sub(i64::from(permits) * PERMIT_BYTES as i64);
        result
    }

    /// A relay's or consumer's unit: waits for room, has a guaranteed share.
    pub async fn background(&self, unit: Unit) -> Result<Outcome, CommitError> {
        let bytes = self
            .background_bytes
            .clone()
            .acquire_many_owned(Self::permits(&unit))
            .await
            .map_err(|_| CommitError::Stopping)?;
        let queue = self.queue_of(std::slice::from_ref(&unit));
        Self::enqueue(queue, unit, None, bytes).await
    }

    /// Units that belong together go the same way: it is their order that counts.
    fn queue_of(&self, units: &[Unit]) -> &mpsc::UnboundedSender<Waiting> {
        match units.iter().all(|unit| unit.jobs.is_empty() && unit.events.is_empty()) {
            true => &self.beside,
            false => &self.background,
        }
    }

    /// Several background units, in order, in as few COMMITs as possible; one result each.
    pub async fn background_all(&self, units: Vec<Unit>) -> Vec<Result<Outcome, CommitError>> {
        let mut answers = Vec::with_capacity(units.len());
        let queue = self.queue_of(&units);
        for unit in units {
            let bytes = self.background_bytes.clone().acquire_many_owned(Self::permits(&unit)).await;
            answers.push(match bytes {
                Ok(bytes) => Self::send(queue, unit, None, bytes),
                Err(_) => Err(CommitError::Stopping),
            });
        }
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(match answer {
                Ok(answer) => answer.await.unwrap_or(Err(CommitError::Stopping)),
                Err(error) => Err(error),
            });
        }
        results
    }

    fn send(
        queue: &mpsc::UnboundedSender<Waiting>,
        unit: Unit,
        asked: Option<Instant>,
        bytes: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Result<Outcome, CommitError>>, CommitError> {
        let (answer, answered) = oneshot::channel();
        let weight = unit.weight();
        queue.send(Waiting { unit, weight, asked, answer, _bytes: bytes }).map_err(|_| CommitError::Stopping)?;
        Ok(answered)
    }

    async fn enqueue(
        queue: &mpsc::UnboundedSender<Waiting>,
        unit: Unit,
        asked: Option<Instant>,
        bytes: OwnedSemaphorePermit,
    ) -> Result<Outcome, CommitError> {
        Self::send(queue, unit, asked, bytes)?.await.unwrap_or(Err(CommitError::Stopping))
    }
}

#[async_trait]
impl Marks for Committer {
    async fn mark(&self, marks: Vec<LegMark>, ends: Vec<BrokerEnd>) -> Result<(), String> {
        let unit = Unit { marks, ends, ..Unit::default() };
        self.background(unit).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// A queue whose head can be looked at.
struct Source {
    queue: mpsc::UnboundedReceiver<Waiting>,
    head: VecDeque<Waiting>,
}

impl Source {
    fn new(queue: mpsc::UnboundedReceiver<Waiting>) -> Self {
        Self { queue, head: VecDeque::new() }
    }

    /// Waits until there is a head. Cancel-safe. The task outlives the last sender only
    /// while it closes.
    async fn ready(&mut self) {
        if self.head.is_empty() {
            match self.queue.recv().await {
                Some(waiting) => self.head.push_back(waiting),
                None => std::future::pending().await,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.queue.is_empty()
    }

    /// Moves units into `batch` while they fit into `room`; a unit larger than the
    /// whole cap goes when the batch is still empty.
    fn take(&mut self, batch: &mut Vec<Waiting>, used: &mut usize, room: usize) {
        loop {
            if self.head.is_empty() {
                match self.queue.try_recv() {
                    Ok(waiting) => self.head.push_back(waiting),
                    Err(_) => return,
                }
            }
            let fits = self.head.front().is_some_and(|next| *used + next.weight <= room || batch.is_empty());
            if !fits {
                return;
            }
            if let Some(next) = self.head.pop_front() {
                *used += next.weight;
                batch.push(next);
            }
        }
    }
}

/// Where a COMMIT goes to a server, most of what it costs does not depend on what it carries.
/// So what nobody's answer depends on is committed no more often than this; requests that came
/// together are followed by a rest as long as their COMMIT took, but not beyond this after its
/// start. One client alone never waits.
const SPACING: Duration = Duration::from_millis(8);

struct Task {
    writer: Writer,
    takes_accepts: bool,
    /// Between the starts of COMMITs: [`SPACING`], or none.
    spacing: Duration,
    batch_rows: usize,
    accepts: Source,
    background: Source,
    closing: CancellationToken,
}

impl Task {
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.accepts.ready() => {}
                () = self.background.ready() => {}
                () = self.closing.cancelled() => {
                    if self.accepts.is_empty() && self.background.is_empty() {
                        return;
                    }
                }
            }
            let started = Instant::now();
            let mut batch = Vec::new();
            let mut used = 0;
            // Accepts first, but a third of the rows is kept for relays and consumers.
            self.accepts.take(&mut batch, &mut used, self.batch_rows * 2 / 3);
            self.background.take(&mut batch, &mut used, self.batch_rows);
            self.accepts.take(&mut batch, &mut used, self.batch_rows);
            let asked = batch.iter().filter_map(|waiting| waiting.asked).min();
            let requests = batch.iter().filter(|waiting| waiting.asked.is_some()).count();
            self.writer.commit(batch).await;
            let took = started.elapsed();
            let rest = match self.takes_accepts {
                true => {
                    self.writer.handoff.waited(asked.map_or(Duration::ZERO, |asked| asked.elapsed()));
                    rest(self.spacing, requests, took)
                }
                false => self.spacing.saturating_sub(took),
            };
            if !rest.is_zero() {
                self.closing.run_until_cancelled(tokio::time::sleep(rest)).await;
            }
        }
    }
}

/// How long to gather requests after a COMMIT of so many that took so long.
fn rest(spacing: Duration, requests: usize, took: Duration) -> Duration {
    match requests {
        0 | 1 => Duration::ZERO,
        _ => spacing.saturating_sub(took).min(took),
    }
}

#[derive(Clone)]
struct Writer {
    store: Arc<dyn Store>,
    handoff: Arc<dyn Handoff>,
    failed: LastFailure,
    metrics: Arc<Metrics>,
}

impl Writer {
    async fn commit(&self, batch: Vec<Waiting>) {
        // Those who no longer wait (their connection is gone) are committed all the same:
        // their retry is answered from the idempotency key.
        let (units, answers): (Vec<Unit>, Vec<_>) =
            batch.into_iter().map(|waiting| (waiting.unit, (waiting.answer, waiting._bytes))).unzip();
        let rows: usize = units.iter().map(Unit::weight).sum();
        self.metrics.commit_batch_rows.observe(rows as f64);
        let started = std::time::Instant::now();
        let units = Arc::new(units);
        let results = self.commit_units(units).await;
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        for ((answer, bytes), result) in answers.into_iter().zip(results) {
            // Nobody waits any more: nothing to tell.
            let _ = answer.send(result);
            drop(bytes);
        }
    }

    async fn commit_units(&self, units: Arc<Vec<Unit>>) -> Vec<Result<Outcome, CommitError>> {
        match self.store.commit(units.clone()).await {
            Ok(outcomes) => {
                let events: Vec<Arc<Event>> = outcomes
                    .iter()
                    .filter_map(|outcome| match outcome {
                        Outcome::Committed { events, .. } => Some(events.iter().cloned()),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                if !events.is_empty() {
                    self.metrics.committed_events.inc_by(events.len() as u64);
                    self.handoff.committed(&events);
                }
                outcomes.into_iter().map(Ok).collect()
            }
            // Bad data of one unit must not take the others down: halve until it is alone.
            Err(StoreError::Data(why)) if units.len() > 1 => {
                tracing::warn!(units = units.len(), why, "data error in a batch; splitting it");
                let middle = units.len() / 2;
                let mut results = Box::pin(self.commit_units(Arc::new(units[..middle].to_vec()))).await;
                results.extend(Box::pin(self.commit_units(Arc::new(units[middle..].to_vec()))).await);
                results
            }
            Err(error) => {
                tracing::error!(%error, units = units.len(), "commit failed");
                self.failed.note(&error);
                units.iter().map(|_| Err(CommitError::from(&error))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_gathered_only_where_several_came_together() {
        const MS: Duration = Duration::from_millis(1);
        assert_eq!(rest(8 * MS, 1, 2 * MS), Duration::ZERO, "one client alone");
        assert_eq!(rest(8 * MS, 2, 2 * MS), 2 * MS, "as long as it took");
        assert_eq!(rest(8 * MS, 2, 6 * MS), 2 * MS);
        assert_eq!(rest(8 * MS, 50, 15 * MS), Duration::ZERO, "it took long enough for more to come");
        assert_eq!(rest(Duration::ZERO, 50, 2 * MS), Duration::ZERO, "a store in the same process");
    }
}
