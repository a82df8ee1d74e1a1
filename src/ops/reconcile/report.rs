//! What a comparison found.

use serde::Serialize;

use crate::domain::{Broker, Id, Timestamp};

/// Ledger and brokers side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub at: Timestamp,
    /// The commit position up to which events were judged.
    pub last_position: i64,
    pub brokers: Vec<BrokerReport>,
}

/// One broker's part.
#[derive(Clone, Debug, Serialize)]
pub struct BrokerReport {
    pub broker: Broker,
    /// Whether its messages were read. RabbitMQ's queues cannot be read without consuming them:
    /// there `consumers` says what was compared instead, and nothing is known of repeats.
    pub compared: bool,
    pub legs: LegCounts,
    /// Messages read, repeats included.
    pub messages: u64,
    /// Confirmed, but not there, and nothing explains it; or confirmed, and a consumer has nothing
    /// of it that its queue does not have either.
    pub missing: Findings,
    /// Missing ones that can be published again: a log should still keep them, or a consumer never
    /// had them.
    pub lost: u64,
    /// Missing ones whose legs are open again now.
    pub reopened: u64,
    /// The first message of an event that comes before the first one of an earlier event of the
    /// same aggregate, in one partition; or that a consumer has handled before an earlier one.
    pub out_of_order: Findings,
    /// Messages of events that the store does not have.
    pub unknown: Findings,
    /// Messages without a readable envelope.
    pub unreadable: Findings,
    /// Legs that are neither confirmed nor given up.
    pub waiting: Findings,
    /// Events of which there is more than one message. Consumers drop the repeats.
    pub duplicates: Findings,
    /// Confirmed, and since gone by the log's retention.
    pub retired: u64,
    /// Confirmed, and since taken from the work queue by its consumer.
    pub consumed: u64,
    /// Confirmed, and gone from the work queue, while the job waits in the store for our runner,
    /// which asks there: acknowledged before there was room, or lost, and no harm.
    pub unclaimed: u64,
    /// Messages of events committed after the comparison began.
    pub newer: u64,
    /// Messages of events so old that the store no longer keeps them.
    pub pruned: u64,
    pub queues: Vec<Queue>,
    /// Those of ours that read its queues.
    pub consumers: Vec<ConsumerReport>,
}

/// What one consumer has of the events that its queue was given.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerReport {
    pub name: &'static str,
    pub queue: String,
    /// In its inbox: done, each once.
    pub handled: u64,
    /// To be tried again, or behind such a one.
    pub backlog: u64,
    /// In the dead-letter index.
    pub dead: u64,
    /// Nothing of it yet, but its queue may have it, or the consumer in hand.
    pub on_the_way: u64,
    pub missing: u64,
}

/// Legs by state.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LegCounts {
    pub done: u64,
    pub pending: u64,
    /// In the dead-letter index.
    pub dead: u64,
    pub skipped: u64,
}

/// A queue that cannot be read, and how much waits in it.
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    pub name: String,
    pub messages: u64,
}

/// All of one kind: how many, and the first few.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    pub count: u64,
    pub examples: Vec<Finding>,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Finding {
    pub event_id: Option<Id>,
    pub event_type: Option<String>,
    /// Aggregate type and id, `job/0198...`.
    pub key: Option<String>,
    pub sequence: Option<i64>,
    /// `log/partition@offset`: where it was confirmed, or found.
    pub position: Option<String>,
    pub why: String,
    /// Who has not had it, or too early.
    pub consumer: Option<&'static str>,
}

impl Findings {
    /// Counts it and keeps it while there are fewer than `examples`.
    pub(super) fn add(&mut self, examples: usize, finding: impl FnOnce() -> Finding) {
        self.count += 1;
        if self.examples.len() < examples {
            self.examples.push(finding());
        }
    }
}

impl BrokerReport {
    pub(super) fn new(broker: Broker) -> Self {
        Self {
            broker,
            compared: false,
            legs: LegCounts::default(),
            messages: 0,
            missing: Findings::default(),
            lost: 0,
            reopened: 0,
            out_of_order: Findings::default(),
            unknown: Findings::default(),
            unreadable: Findings::default(),
            waiting: Findings::default(),
            duplicates: Findings::default(),
            retired: 0,
            consumed: 0,
            unclaimed: 0,
            newer: 0,
            pruned: 0,
            queues: Vec::new(),
            consumers: Vec::new(),
        }
    }

    /// What must not be, with the name it is reported under.
    pub fn faults(&self) -> [(&'static str, &Findings); 5] {
        [
            ("missing", &self.missing),
            ("out of order", &self.out_of_order),
            ("unknown", &self.unknown),
            ("unreadable", &self.unreadable),
            ("waiting", &self.waiting),
        ]
    }
}

impl Report {
    /// Everything confirmed is there, in order, and nothing is there that was not
    /// committed. `strict`: nothing is there twice either.
    pub fn is_clean(&self, strict: bool) -> bool {
        let clean = |broker: &BrokerReport| broker.faults().iter().all(|(_, findings)| findings.count == 0);
        self.brokers.iter().all(|broker| clean(broker) && !(strict && broker.duplicates.count > 0))
    }
}
