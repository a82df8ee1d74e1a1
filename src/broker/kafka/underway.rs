//! Records that were produced and not yet reported on. A window waits a moment for its own; what
//! needs longer stays here until the lane asks again, so that one broker that does not answer
//! holds up the keys of its own partitions only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::DeliveryFuture;
use tokio::time::Instant;

use super::producer::Generation;
use crate::broker::{Outgoing, Position};
use crate::domain::Id;

/// How long a window waits for a record.
const PATIENCE: Duration = Duration::from_secs(1);
/// librdkafka reports a time-out within a second of it; later, the producer has stalled.
const GRACE: Duration = Duration::from_secs(5);

/// Where it is, or why it is not; `None`: its producer has ended.
pub(super) type Report = Result<Position, Option<ClientError>>;

/// A record that was produced.
pub(super) struct Sent {
    pub topic: Arc<str>,
    pub since: Instant,
    pub generation: Arc<Generation>,
    delivery: DeliveryFuture,
    /// What was reported before anybody asked.
    report: Option<Report>,
}

impl Sent {
    pub fn new(topic: Arc<str>, generation: Arc<Generation>, delivery: DeliveryFuture) -> Self {
        Self { topic, since: Instant::now(), generation, delivery, report: None }
    }

    /// Until when a window waits for it.
    pub fn awaited_until(&self) -> Instant {
        self.since + PATIENCE
    }

    /// Is its producer too late with a report?
    pub fn is_overdue(&self, delivery_timeout: Duration) -> bool {
        self.since.elapsed() > delivery_timeout + GRACE
    }

    /// Waits for what became of it; to be asked until it answers.
    pub async fn report(&mut self) -> Report {
        if let Some(report) = self.report.take() {
            return report;
        }
        match (&mut self.delivery).await {
            Ok(Ok(at)) => Ok(Position { log: self.topic.clone(), partition: at.partition, offset: Some(at.offset) }),
            Ok(Err((error, _))) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    fn is_confirmed(&mut self) -> bool {
        if self.report.is_none() {
            self.report = self.report().now_or_never();
        }
        matches!(self.report, Some(Ok(_)))
    }
}

/// By topic of the catalogue and event.
type Key = (Arc<str>, Id);

fn key(outgoing: &Outgoing) -> Key {
    (outgoing.route.target.clone(), outgoing.event.event_id)
}

/// One that a window did not wait for, until it is confirmed, however often it fails meanwhile.
struct Late {
    since: Instant,
    /// When it was last left; for long: somebody else publishes it by now.
    left: Instant,
}

#[derive(Default)]
pub(super) struct Underway(Mutex<State>);

#[derive(Default)]
struct State {
    records: HashMap<Key, Sent>,
    late: HashMap<Key, Late>,
    /// When a record was last confirmed.
    confirmed: Option<Instant>,
}

/// Longer than a lane waits before it tries again.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// A lane may come back late to ask what became of its record: the store was away.
const REPORTED: Duration = Duration::from_secs(900);

impl Underway {
    /// Which messages of a window are under way already.
    pub fn take(&self, window: &[Outgoing]) -> Vec<Option<Sent>> {
        let mut state = self.0.lock();
        if state.records.is_empty() {
            return window.iter().map(|_| None).collect();
        }
        window.iter().map(|outgoing| state.records.remove(&key(outgoing))).collect()
    }

    /// Keeps it until it is asked for again.
    pub fn leave(&self, outgoing: &Outgoing, sent: Sent) {
        let mut state = self.0.lock();
        let (since, left) = (sent.since, Instant::now());
        state.late.entry(key(outgoing)).or_insert(Late { since, left }).left = left;
        state.records.insert(key(outgoing), sent);
    }

    pub fn confirmed(&self, outgoing: &Outgoing) {
        let mut state = self.0.lock();
        state.confirmed = Some(Instant::now());
        if !state.late.is_empty() {
            state.late.remove(&key(outgoing));
        }
    }

    /// It never will be.
    pub fn refused(&self, outgoing: &Outgoing) {
        self.0.lock().late.remove(&key(outgoing));
    }

    /// Was anything confirmed after this?
    pub fn confirmed_since(&self, then: Instant) -> bool {
        self.0.lock().confirmed.is_some_and(|last| last > then)
    }

    /// How many records are late, and for how long the first of them.
    pub fn late(&self, delivery_timeout: Duration) -> Option<(usize, Duration)> {
        let mut state = self.0.lock();
        // Nobody asks again for what another instance owes by now.
        state.records.retain(|_, sent| match sent.is_confirmed() {
            true => sent.since.elapsed() < REPORTED,
            false => sent.since.elapsed() < delivery_timeout + FORGOTTEN,
        });
        state.late.retain(|_, late| late.left.elapsed() < FORGOTTEN);
        Some((state.late.len(), state.late.values().map(|late| late.since.elapsed()).max()?))
    }
}
