//! Why a confirmed message is not there: may it have gone, or was it lost?

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SLACK;
use super::scratch::OwedLeg;
use crate::broker::{Extent, Keeps};
use crate::domain::catalogue::covers;
use crate::domain::job::{Job, JobStatus, RunnerKind};
use crate::domain::payload::{Payload, SubmitJobRequested};
use crate::domain::{Broker, Event, Timestamp};
use crate::store::Deliveries;

/// Where logs are now, by name and partition.
pub(super) type Extents<'a> = HashMap<(&'a str, i32), &'a Extent>;

/// Why a confirmed message is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Absence {
    Retired,
    Consumed,
    /// Handed out or lost: nobody can tell, and nothing depends on it.
    Unclaimed,
    Missing(String),
}

/// What the log alone tells.
pub(super) fn absence(leg: &OwedLeg, extents: &Extents, now: Timestamp) -> Absence {
    let Some(log) = &leg.log else { return Absence::Missing(format!("no log takes {}", leg.target)) };
    let Some(extent) = extents.get(&(&**log, leg.partition.unwrap_or_default())) else {
        return Absence::Missing(format!("{log} does not exist"));
    };
    // Without a position only the time tells.
    let offset = leg.offset.unwrap_or(extent.start - 1);
    if offset >= extent.end {
        return Absence::Missing(format!("{log} ends at {}", extent.end));
    }
    let left = offset < extent.start;
    match &extent.keeps {
        Keeps::UntilConsumed(handed_out) => {
            let given = handed_out.iter().any(|(filter, end)| offset < *end && covers(filter, &leg.target));
            if given { Absence::Consumed } else { Absence::Missing("no consumer was given it".into()) }
        }
        Keeps::Bounded if left => Absence::Retired,
        Keeps::For(age) if left && is_over(leg.occurred_at, *age, now) => Absence::Retired,
        Keeps::For(_) if left => Absence::Missing(format!("{log} begins at {} already", extent.start)),
        Keeps::Bounded | Keeps::For(_) => Absence::Missing(format!("{log} has others before and after it")),
    }
}

/// Would the log of a missing message keep it, if it came again? What a work queue has lost is
/// found by whoever waits for the work; what else it had is done.
pub(super) fn is_published_again(broker: Broker, leg: &OwedLeg, extents: &Extents) -> bool {
    let Some(log) = &leg.log else { return false };
    match extents.get(&(&**log, leg.partition.unwrap_or_default())) {
        Some(extent) => !matches!(extent.keeps, Keeps::UntilConsumed(_)),
        // A topic that is gone: running gateways declare it again, else the next start.
        None => broker == Broker::Kafka,
    }
}

/// Has something of this time been kept for `age`?
pub(super) fn is_over(time: Timestamp, age: Duration, now: Timestamp) -> bool {
    let age = i64::try_from(age.saturating_sub(SLACK).as_millis()).unwrap_or(i64::MAX);
    time.0.saturating_add(age) <= now.0
}

/// A command to run a job: whoever takes it from its work queue claims the job first, and that
/// is in the store. That later ones were handed out proves nothing: this one may have been
/// deleted before.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Command {
    attempt: u32,
    runner: RunnerKind,
    /// It is a dead letter.
    buried: bool,
}

impl Command {
    /// `None`: it is no such command.
    pub fn of(found: &Deliveries) -> Option<Self> {
        let event: &Event = &found.event;
        if &*event.event_type.name != SubmitJobRequested::TYPE {
            return None;
        }
        let command: SubmitJobRequested = serde_json::from_slice(&event.payload.json).ok()?;
        Some(Self { attempt: command.attempt, runner: command.runner, buried: !found.effects.is_empty() })
    }

    /// What became of it once it was handed out, as far as its job tells. `None`: a job that had
    /// ended, and was deleted with age.
    pub fn after_handout(self, job: Option<&Job>) -> Absence {
        let Some(job) = job else { return Absence::Consumed };
        let claimed = job.status != JobStatus::Queued || job.claimant.is_some();
        if self.buried || job.attempt > self.attempt || (job.attempt == self.attempt && claimed) {
            return Absence::Consumed;
        }
        match self.runner {
            // Our runner acknowledges what it has no room for: it asks the store for the job later.
            RunnerKind::Process => Absence::Unclaimed,
            RunnerKind::Tapis | RunnerKind::External => {
                let why =
                    format!("later ones were handed out, but attempt {} of its job was never claimed", self.attempt);
                Absence::Missing(why)
            }
        }
    }
}
