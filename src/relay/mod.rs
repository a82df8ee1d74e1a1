//! The relay: committed events on their way to the brokers, one leg each.
//!
//! After COMMIT the committer hands events over in memory ([`Relay::committed`]). Each
//! broker has lanes; a lane holds all keys with one hash and keeps per-key order
//! ([`keys`]). A lane that is behind drops what is handed over and reads from the store
//! until it has caught up ([`inbox`]), so a slow broker costs neither memory nor others.
//!
//! With several instances on one store each publishes what it has committed, and what those
//! had committed whose lease has ended ([`lease`]). An event whose predecessor is another
//! instance's goes out when the store says that one is out.

mod inbox;
mod keys;
mod lane;
mod lease;
mod pace;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::broker::Publisher;
use crate::domain::{Broker, Event};
use crate::store::Store;
use crate::store::plan::{BUCKETS, bucket};
use crate::telemetry::Metrics;
use inbox::LaneInbox;
use lane::Lane;
use pace::Pressure;

/// Gets every committed event, in commit order, right after its COMMIT. Must not block.
pub trait Handoff: Send + Sync + 'static {
    fn committed(&self, events: &[Arc<Event>]);

    /// How long that request had to wait that waited longest for the last COMMIT; zero when
    /// none did.
    fn waited(&self, longest: Duration);
}

/// An amount of events. The last that is taken in may go beyond the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub events: usize,
    pub bytes: usize,
}

/// How the relay works.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// Lanes per broker, 1 to 64.
    pub lanes: u8,
    /// What a lane holds in memory before it falls back to the store; its inbox as much again.
    pub lane_capacity: Held,
    /// The most messages published, confirmed and marked together.
    pub window: usize,
    /// The least time between two windows of a lane that are not full.
    pub spacing: Duration,
}

/// Takes what was committed. Cheap to share.
pub struct Relay {
    brokers: Vec<(Broker, Vec<Arc<LaneInbox>>)>,
    pressure: Pressure,
    metrics: Arc<Metrics>,
}

/// The lanes' tasks.
pub struct RelayTasks {
    pub handles: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Prepares the inboxes; nothing runs until [`Relay::spawn`].
    pub fn new(brokers: &[Broker], options: RelayOptions, metrics: Arc<Metrics>) -> Arc<Self> {
        let lanes = options.lanes.clamp(1, BUCKETS);
        let brokers = brokers
            .iter()
            .map(|broker| (*broker, (0..lanes).map(|_| LaneInbox::new(options.lane_capacity)).collect()))
            .collect();
        Arc::new(Self { brokers, pressure: Pressure::default(), metrics })
    }

    /// Starts every lane: first what the store still owes, then what is handed over.
    /// They publish while the lease is held, and end after `stop`, when their window in flight is confirmed and marked.
    pub fn spawn(
        self: &Arc<Self>,
        publishers: &[Arc<dyn Publisher>],
        store: &Arc<dyn Store>,
        marks: &Arc<dyn lane::Marks>,
        lease: &watch::Receiver<Lease>,
        options: RelayOptions,
        stop: &CancellationToken,
    ) -> RelayTasks {
        let mut handles = Vec::new();
        for (broker, inboxes) in &self.brokers {
            let Some(publisher) = publishers.iter().find(|publisher| publisher.broker() == *broker) else {
                continue;
            };
            for (index, inbox) in inboxes.iter().enumerate() {
                let lane = Lane::new(lane::LaneParts {
                    broker: *broker,
                    lane: (index as u8, inboxes.len() as u8),
                    inbox: inbox.clone(),
                    publisher: publisher.clone(),
                    store: store.clone(),
                    marks: marks.clone(),
                    metrics: self.metrics.clone(),
                    lease: lease.clone(),
                    pressure: self.pressure.clone(),
                    options,
                });
                handles.push(crate::task::spawn("relay-lane", lane.run(stop.child_token())));
            }
        }
        RelayTasks { handles }
    }
}

pub use lane::Marks;
pub use lease::{Lease, LeaseEnd, LeaseKeeper};

impl Handoff for Relay {
    fn committed(&self, events: &[Arc<Event>]) {
        for (broker, inboxes) in &self.brokers {
            let mut owed = 0;
            for event in events {
                let skipped = event.skip.iter().any(|(skipped, _)| skipped == broker);
                if skipped || !event.event_type.brokers().contains(broker) {
                    continue;
                }
                owed += 1;
                let lane = usize::from(bucket(&event.aggregate_id)) % inboxes.len();
                inboxes[lane].push(event.clone());
            }
            if owed > 0 {
                self.metrics.outbox_backlog[*broker].add(owed);
                inboxes.iter().for_each(|inbox| inbox.wake());
            }
        }
    }

    fn waited(&self, longest: Duration) {
        self.pressure.add(longest);
    }
}
