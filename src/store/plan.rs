//! What a batch of units does to what was found under lock. Pure, shared by all adapters.
//!
//! An adapter asks [`Needs`] what to load, loads it, calls [`plan`], and writes the
//! [`Plan`] in multi-row statements. Nothing else runs between the first lock and COMMIT.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::unit::{
    AuditRow, BrokerEnd, DeliveryClaim, Effect, IdempotencyClaim, IdempotencyKey, JobWritten, LegMark, LegState,
    Outcome, StoredMessage, StoredResponse, Unit, Verdict,
};
use crate::domain::event::{Origin, SkipReason};
use crate::domain::factory::EventFactory;
use crate::domain::job::{Job, JobCommand, decide};
use crate::domain::{Broker, Event, EventDraft, Id, Timestamp};

/// A row of `heads`: an aggregate's sequence, or a user channel's offset (kind `user`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeadKey {
    pub kind: Arc<str>,
    pub id: Arc<str>,
}

/// (consumer, key) of a backlog.
pub type BacklogKey = (Arc<str>, Arc<str>);
/// (model, key) of a read model.
pub type ModelKey = (&'static str, String);

/// The number of key buckets that lanes are made of.
pub const BUCKETS: u8 = 64;

/// The bucket of an aggregate: FNV-1a, stable across versions because it is stored.
pub fn bucket(aggregate_id: &str) -> u8 {
    let hash = aggregate_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    ((hash ^ (hash >> 32)) % u64::from(BUCKETS)) as u8
}

/// What must be read, and locked, before the units can be applied.
#[derive(Debug, Default)]
pub struct Needs<'u> {
    pub idempotency: Vec<&'u IdempotencyKey>,
    pub inbox: Vec<(&'u Arc<str>, Id)>,
    pub backlog_keys: BTreeSet<BacklogKey>,
    pub jobs: BTreeSet<Id>,
    pub models: BTreeSet<ModelKey>,
}

impl<'u> Needs<'u> {
    pub fn of(units: &'u [Unit]) -> Self {
        let mut needs = Self::default();
        for unit in units {
            if let Some(claim) = &unit.idempotency {
                needs.idempotency.push(&claim.key);
            }
            if let Some(delivery) = &unit.delivery {
                needs.inbox.push((&delivery.consumer, delivery.event_id));
                if delivery.ordered {
                    needs.backlog_keys.insert((delivery.consumer.clone(), delivery.key.clone()));
                }
            }
            for write in &unit.jobs {
                if !matches!(write.command, JobCommand::Submit(_)) {
                    needs.jobs.insert(write.job_id);
                }
            }
            for effect in &unit.effects {
                if let Effect::Fold(fold) = effect {
                    needs.models.insert((fold.model, fold.key.clone()));
                }
            }
        }
        needs
    }

    /// The heads that may be advanced, given the jobs that were found. Those of jobs
    /// being submitted are new and need no read.
    pub fn heads(units: &[Unit], jobs: &HashMap<Id, Job>) -> BTreeSet<HeadKey> {
        let mut heads = BTreeSet::new();
        let mut drafts = |draft: &EventDraft, fresh: bool| {
            if !fresh {
                heads.insert(aggregate_head(draft));
            }
            if draft.event_type.audience.user {
                heads.insert(user_head(&draft.user_id));
            }
        };
        for unit in units {
            unit.events.iter().for_each(|draft| drafts(draft, false));
            for write in &unit.jobs {
                write.drafts.iter().for_each(|draft| drafts(draft, true));
            }
        }
        for unit in units {
            for write in &unit.jobs {
                if let Some(job) = jobs.get(&write.job_id) {
                    let id: Arc<str> = write.job_id.to_string().into();
                    heads.insert(HeadKey { kind: "job".into(), id: id.clone() });
                    heads.insert(HeadKey { kind: "job_command".into(), id });
                    heads.insert(user_head(&job.user_id));
                }
            }
        }
        heads
    }
}

fn aggregate_head(draft: &EventDraft) -> HeadKey {
    HeadKey { kind: draft.event_type.aggregate.clone(), id: draft.aggregate_id.clone() }
}

fn user_head(user: &Arc<str>) -> HeadKey {
    HeadKey { kind: "user".into(), id: user.clone() }
}

/// What was found under lock.
#[derive(Debug, Default)]
pub struct Found {
    pub idempotency: HashMap<IdempotencyKey, ([u8; 32], StoredResponse)>,
    pub inbox: HashSet<(Arc<str>, Id)>,
    pub blocked: HashSet<BacklogKey>,
    pub jobs: HashMap<Id, Job>,
    pub heads: HashMap<HeadKey, i64>,
    /// Who commits; 0 in a store that serves one process alone.
    pub owner: i32,
    /// Heads whose last event another owner has committed.
    pub of_others: HashSet<HeadKey>,
    pub models: HashMap<ModelKey, Map<String, Value>>,
    /// The commit position of the last event.
    pub last_position: i64,
}

/// A new leg.
#[derive(Debug)]
pub struct NewLeg {
    pub position: i64,
    pub broker: Broker,
    pub bucket: u8,
    pub skip: Option<SkipReason>,
    pub at: Timestamp,
}

/// A row to put into the backlog (insert or replace).
#[derive(Debug)]
pub struct BacklogPut {
    pub claim: DeliveryClaim,
    pub state: BacklogState,
}

/// The discriminants are stored: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BacklogState {
    Retrying = 1,
    Parked = 2,
    Dead = 3,
}

impl BacklogState {
    pub fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            1 => Self::Retrying,
            2 => Self::Parked,
            3 => Self::Dead,
            _ => return None,
        })
    }
}

/// The rows to write.
#[derive(Debug, Default)]
pub struct Plan {
    pub outcomes: Vec<Outcome>,
    pub idempotency: Vec<IdempotencyClaim>,
    pub inbox: Vec<(Arc<str>, Id, Timestamp)>,
    pub new_jobs: Vec<Job>,
    pub changed_jobs: HashMap<Id, Job>,
    pub heads: BTreeMap<HeadKey, i64>,
    pub events: Vec<Arc<Event>>,
    pub legs: Vec<NewLeg>,
    pub models: BTreeMap<ModelKey, Map<String, Value>>,
    pub audit: Vec<AuditRow>,
    pub marks: Vec<LegMark>,
    pub ends: Vec<BrokerEnd>,
    pub backlog: Vec<BacklogPut>,
    /// Handled from the backlog: the row goes, the key's next one wakes.
    pub released: Vec<(Arc<str>, Arc<str>, Id)>,
    pub blocked: BTreeSet<BacklogKey>,
}

impl Plan {
    /// Nothing to write at all.
    pub fn is_empty(&self) -> bool {
        self.idempotency.is_empty()
            && self.inbox.is_empty()
            && self.new_jobs.is_empty()
            && self.changed_jobs.is_empty()
            && self.events.is_empty()
            && self.models.is_empty()
            && self.audit.is_empty()
            && self.marks.is_empty()
            && self.ends.is_empty()
            && self.backlog.is_empty()
            && self.released.is_empty()
    }
}

/// Applies the units in order. Losers drop out whole and leave nothing in the plan.
pub fn plan(units: &[Unit], mut found: Found, factory: &EventFactory, now: Timestamp) -> Plan {
    let mut plan = Plan { outcomes: Vec::with_capacity(units.len()), ..Plan::default() };
    let mut position = found.last_position;
    for unit in units {
        let outcome = apply(unit, &mut plan, &mut found, &mut position, factory, now);
        plan.outcomes.push(outcome);
    }
    plan
}

fn apply(
    unit: &Unit,
    plan: &mut Plan,
    found: &mut Found,
    position: &mut i64,
    factory: &EventFactory,
    now: Timestamp,
) -> Outcome {
    if let Some(claim) = &unit.idempotency
        && let Some((fingerprint, response)) = found.idempotency.get(&claim.key)
    {
        return if *fingerprint == claim.fingerprint {
            Outcome::Repeated(response.clone())
        } else {
            Outcome::KeyReused
        };
    }
    if let Some(delivery) = &unit.delivery
        && let Some(outcome) = check_delivery(delivery, plan, found)
    {
        return outcome;
    }

    // Staged until every command of the unit is accepted.
    let mut written: Vec<JobWritten> = Vec::with_capacity(unit.jobs.len());
    let mut drafts: Vec<EventDraft> = Vec::with_capacity(unit.events.len() + 2 * unit.jobs.len());
    for (index, write) in unit.jobs.iter().enumerate() {
        let submit = matches!(write.command, JobCommand::Submit(_));
        let staged = written.iter().rev().map(|w| &w.job).find(|job| !submit && job.id == write.job_id);
        let current = staged.or_else(|| found.jobs.get(&write.job_id));
        let decision = match decide(current, &write.command, now, rand::random()) {
            Ok(decision) => decision,
            Err(refusal) => return Outcome::Refused { index, refusal },
        };
        drafts.extend(write.drafts.iter().cloned());
        for event in &decision.events {
            match factory.job_event(&decision.job, event, &write.cause, now) {
                Ok(draft) => drafts.push(draft),
                Err(error) => return Outcome::Invalid(error.to_string()),
            }
        }
        written.push(JobWritten { job: decision.job, changed: decision.changed });
    }
    drafts.extend(unit.events.iter().cloned());

    if let Some(claim) = &unit.idempotency {
        found.idempotency.insert(claim.key.clone(), (claim.fingerprint, claim.response.clone()));
        plan.idempotency.push(claim.clone());
    }
    if let Some(delivery) = &unit.delivery {
        found.inbox.insert((delivery.consumer.clone(), delivery.event_id));
        plan.inbox.push((delivery.consumer.clone(), delivery.event_id, delivery.at));
        if delivery.from_backlog {
            plan.released.push((delivery.consumer.clone(), delivery.key.clone(), delivery.event_id));
        }
    }
    for (write, result) in unit.jobs.iter().zip(&written) {
        if matches!(write.command, JobCommand::Submit(_)) {
            plan.new_jobs.push(result.job.clone());
        } else if result.changed {
            plan.changed_jobs.insert(result.job.id, result.job.clone());
        }
        if result.changed {
            found.jobs.insert(result.job.id, result.job.clone());
        }
    }
    for effect in &unit.effects {
        match effect {
            Effect::Fold(fold) => {
                let row = found.models.entry((fold.model, fold.key.clone())).or_default();
                fold.apply(row);
                plan.models.insert((fold.model, fold.key.clone()), row.clone());
            }
            Effect::Audit(row) => plan.audit.push(row.clone()),
        }
    }
    plan.marks.extend(unit.marks.iter().cloned());
    plan.ends.extend(unit.ends.iter().cloned());

    let first = plan.events.len();
    for draft in drafts {
        *position += 1;
        let event = number(draft, *position, plan, found);
        add_legs(&event, plan, now);
        plan.events.push(Arc::new(event));
    }
    Outcome::Committed { jobs: written, events: plan.events[first..].to_vec() }
}

/// Decides about the message itself; `None` lets the unit's effects through.
fn check_delivery(delivery: &DeliveryClaim, plan: &mut Plan, found: &mut Found) -> Option<Outcome> {
    if found.inbox.contains(&(delivery.consumer.clone(), delivery.event_id)) {
        if delivery.from_backlog {
            plan.released.push((delivery.consumer.clone(), delivery.key.clone(), delivery.event_id));
        }
        return Some(Outcome::Duplicate);
    }
    let key = (delivery.consumer.clone(), delivery.key.clone());
    let state = match &delivery.verdict {
        Verdict::Done if delivery.ordered && !delivery.from_backlog && found.blocked.contains(&key) => {
            BacklogState::Parked
        }
        Verdict::Done => return None,
        // A fresh failure behind a blocked key is not the key's turn yet.
        Verdict::Failed { .. } if delivery.ordered && !delivery.from_backlog && found.blocked.contains(&key) => {
            BacklogState::Parked
        }
        Verdict::Failed { retry_at: Some(_), .. } => BacklogState::Retrying,
        Verdict::Failed { retry_at: None, .. } => BacklogState::Dead,
        Verdict::Park => BacklogState::Parked,
    };
    if delivery.ordered {
        found.blocked.insert(key.clone());
        plan.blocked.insert(key);
    }
    plan.backlog.push(BacklogPut { claim: delivery.clone(), state });
    Some(Outcome::Parked)
}

/// Hands out the next sequence and offset.
fn number(draft: EventDraft, position: i64, plan: &mut Plan, found: &mut Found) -> Event {
    let head = aggregate_head(&draft);
    let origin = Origin { owner: found.owner, follows_other: found.of_others.remove(&head) };
    let sequence = advance(head, plan, found);
    let user_offset = draft.event_type.audience.user.then(|| advance(user_head(&draft.user_id), plan, found));
    Event { position, sequence, user_offset, origin, draft }
}

fn advance(key: HeadKey, plan: &mut Plan, found: &mut Found) -> i64 {
    let last = found.heads.entry(key.clone()).or_insert(0);
    *last += 1;
    plan.heads.insert(key, *last);
    *last
}

fn add_legs(event: &Event, plan: &mut Plan, now: Timestamp) {
    let bucket = bucket(&event.aggregate_id);
    for broker in event.event_type.brokers() {
        let skip = event.skip.iter().find(|(skipped, _)| skipped == broker).map(|(_, reason)| *reason);
        plan.legs.push(NewLeg { position: event.position, broker: *broker, bucket, skip, at: now });
    }
}

impl NewLeg {
    pub fn state(&self) -> LegState {
        if self.skip.is_some() { LegState::Skipped } else { LegState::Pending }
    }
}

impl BacklogPut {
    /// (attempts, next_at, error) as the row keeps them.
    pub fn progress(&self) -> (u32, Option<Timestamp>, Option<&str>) {
        match (&self.claim.verdict, self.state) {
            (Verdict::Failed { error, attempts, retry_at }, BacklogState::Retrying | BacklogState::Dead) => {
                (*attempts, *retry_at, Some(error))
            }
            _ => (0, None, None),
        }
    }

    pub fn message(&self) -> Option<&StoredMessage> {
        self.claim.message.as_ref()
    }
}
