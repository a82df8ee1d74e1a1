//! The account: every job answered 201 is asked for, with every leg of every event.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::super::ledger::{self, Delivered};
use super::LINE_EVERY;
use super::calls::Calls;
use super::report::{Accounts, Lost};
use crate::client::{Api, ApiError};
use crate::domain::Id;
use crate::domain::job::{Job, JobStatus};

/// Jobs asked for at once.
const IN_FLIGHT: usize = 16;
const RECHECK_PAUSE: Duration = Duration::from_millis(500);
/// The most lost jobs that are named.
const MAX_NAMED: usize = 20;

/// What is missing of one job.
#[derive(Clone, Debug, PartialEq)]
enum Missing {
    /// Asking failed: nothing is proven.
    Unknown(String),
    Job,
    NotFinal(JobStatus),
    Leg(String),
    Gap(String),
}

/// Asks for every job until nothing is missing or `settle` has passed without progress.
pub async fn all(calls: &Calls, jobs: Vec<Id>, settle: Duration, bar: &ProgressBar) -> Accounts {
    let mut accounts = Accounts::default();
    let mut open = jobs;
    let mut progress_at = Instant::now();
    loop {
        let before = open.len();
        let checked = check(calls, &open, &mut accounts, bar).await;
        open = checked.keys().copied().collect();
        if open.is_empty() {
            return accounts;
        }
        if open.len() < before {
            progress_at = Instant::now();
        }
        if progress_at.elapsed() >= settle {
            accounts.lost = lost(checked);
            return accounts;
        }
        tokio::time::sleep(RECHECK_PAUSE).await;
    }
}

/// Asks for `jobs`; counts those that are whole, returns those that are not.
async fn check(calls: &Calls, jobs: &[Id], accounts: &mut Accounts, bar: &ProgressBar) -> HashMap<Id, Missing> {
    let mut answers = stream::iter(jobs.iter().copied())
        .map(|id| async move { (id, job(calls, id).await) })
        .buffer_unordered(IN_FLIGHT);
    let mut missing = HashMap::new();
    let mut line_at = Instant::now() + LINE_EVERY;
    while let Some((id, answer)) = answers.next().await {
        if bar.is_hidden() && Instant::now() >= line_at {
            eprintln!("{} of {} jobs accounted for", bar.position(), bar.length().unwrap_or_default());
            line_at += LINE_EVERY;
        }
        match answer {
            Ok(whole) => {
                bar.inc(1);
                accounts.add(&whole);
            }
            Err(what) => {
                missing.insert(id, what);
            }
        }
    }
    missing
}

/// A job with nothing missing.
pub struct Whole {
    pub status: JobStatus,
    pub events: u64,
    pub legs: u64,
    pub skipped: u64,
}

async fn job(calls: &Calls, id: Id) -> Result<Whole, Missing> {
    let text = id.to_string();
    let path = Api::path(&["jobs", &text]);
    let body = calls.answered(|api| api.get(&path)).await.map_err(unknown)?;
    let job: Job = serde_json::from_slice(&body).map_err(|error| Missing::Unknown(error.to_string()))?;
    if !job.is_final() {
        return Err(Missing::NotFinal(job.status));
    }
    let events = ledger::deliveries(calls.api(), &Api::path(&["jobs", &text, "deliveries"])).await.map_err(unknown)?;
    account(job.status, &events)
}

fn unknown(error: ApiError) -> Missing {
    match error.status() {
        Some(status) if status.as_u16() == 404 => Missing::Job,
        _ => Missing::Unknown(error.to_string()),
    }
}

fn account(status: JobStatus, events: &[Delivered]) -> Result<Whole, Missing> {
    let mut sequences: BTreeMap<(&str, &str), Vec<i64>> = BTreeMap::new();
    let mut whole = Whole { status, events: events.len() as u64, legs: 0, skipped: 0 };
    for event in events {
        if event.aggregate_type.starts_with("job") {
            let key = (event.aggregate_type.as_str(), event.aggregate_id.as_str());
            sequences.entry(key).or_default().push(event.sequence);
        }
        for leg in &event.legs {
            if !leg.is_settled() {
                let name = format!("{} {} of {} is {}", leg.kind, leg.name, event.event_type, leg.state);
                return Err(Missing::Leg(name));
            }
            whole.legs += 1;
            whole.skipped += u64::from(leg.state == "skipped");
        }
    }
    if !sequences.contains_key(&("job", events.first().map_or("", |event| &event.aggregate_id)))
        && !sequences.keys().any(|(kind, _)| *kind == "job")
    {
        return Err(Missing::Gap("there is no event of the job itself".to_owned()));
    }
    for ((kind, _), mut numbers) in sequences {
        numbers.sort_unstable();
        if let Some((expected, found)) = (1..).zip(&numbers).find(|(expected, found)| expected != *found) {
            return Err(Missing::Gap(format!("{kind}: {expected} is missing before {found}")));
        }
    }
    Ok(whole)
}

fn lost(missing: HashMap<Id, Missing>) -> Lost {
    let mut lost = Lost { total: missing.len() as u64, ..Lost::default() };
    let sorted: BTreeMap<Id, Missing> = missing.into_iter().collect();
    for (id, what) in sorted {
        let (count, why) = match what {
            Missing::Job => (&mut lost.not_found, "answered 201, but there is no such job".to_owned()),
            Missing::NotFinal(status) => (&mut lost.not_final, format!("is {status}")),
            Missing::Leg(leg) => (&mut lost.leg_not_done, leg),
            Missing::Gap(gap) => (&mut lost.gap_in_sequence, format!("gap in a sequence: {gap}")),
            Missing::Unknown(error) => (&mut lost.unknown, format!("could not be asked for: {error}")),
        };
        *count += 1;
        if lost.jobs.len() < MAX_NAMED {
            lost.jobs.push(format!("{id}: {why}"));
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(kind: &str, sequence: i64, legs: Value) -> Delivered {
        serde_json::from_value(json!({
            "event_id": Id::new(), "event_type": "job.submitted", "aggregate_type": kind, "aggregate_id": "a",
            "sequence": sequence, "legs": legs,
        }))
        .unwrap()
    }

    fn done() -> Value {
        json!([
            {"kind": "broker", "name": "kafka", "state": "done"},
            {"kind": "broker", "name": "nats", "state": "skipped", "reason": "claimed through the worker API"},
        ])
    }

    #[test]
    fn a_whole_job_has_all_legs_settled_and_no_gap() {
        let events = [event("job", 2, done()), event("job", 1, done()), event("job_command", 1, done())];
        let whole = account(JobStatus::Completed, &events).ok().unwrap();
        assert_eq!((whole.events, whole.legs, whole.skipped), (3, 6, 3));
    }

    #[test]
    fn an_open_leg_is_missing() {
        for state in ["pending", "retrying", "parked", "dead", "anything else"] {
            let open = json!([{"kind": "broker", "name": "kafka", "state": state}]);
            let missing = account(JobStatus::Completed, &[event("job", 1, done()), event("job", 2, open)]).err();
            assert!(matches!(missing, Some(Missing::Leg(_))), "{state}: {missing:?}");
        }
    }

    #[test]
    fn a_gap_in_any_of_its_sequences_is_missing() {
        for events in [
            vec![event("job", 1, done()), event("job", 3, done())],
            vec![event("job", 2, done())],
            vec![event("job", 1, done()), event("job", 1, done())],
            vec![event("job", 1, done()), event("job_command", 2, done())],
            vec![],
            vec![event("job_command", 1, done())],
        ] {
            let missing = account(JobStatus::Completed, &events).err();
            assert!(matches!(missing, Some(Missing::Gap(_))), "{events:?}: {missing:?}");
        }
    }

    #[test]
    fn the_lost_are_counted_by_why() {
        let missing = HashMap::from([
            (Id::new(), Missing::Job),
            (Id::new(), Missing::NotFinal(JobStatus::Running)),
            (Id::new(), Missing::Leg("kafka".to_owned())),
            (Id::new(), Missing::Gap("2".to_owned())),
            (Id::new(), Missing::Unknown("x".to_owned())),
        ]);
        let lost = lost(missing);
        let counts = (lost.not_found, lost.not_final, lost.leg_not_done, lost.gap_in_sequence, lost.unknown);
        assert_eq!((lost.total, counts, lost.jobs.len()), (5, (1, 1, 1, 1, 1), 5));
    }
}
