//! The state machine against what design promises: single arrows, then random walks.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::domain::payload::CancelledBy;

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const LEASE: i64 = 30_000;

fn queued() -> Job {
    Job {
        id: Id::new(),
        user_id: "ada".into(),
        name: "flag".into(),
        agent: "external".into(),
        runner: RunnerKind::External,
        dataset_id: "night-1".into(),
        tacc_system: TaccSystem::Frontera,
        external_job_id: None,
        status: JobStatus::Queued,
        progress: None,
        priority: Priority::Normal,
        params: RawValue::from_string("{}".into()).unwrap().into(),
        resource_request: ResourceRequest::default(),
        result: None,
        error: None,
        attempt: 1,
        retry_count: 0,
        max_retries: 1,
        retry_at: None,
        cancel_requested: false,
        claimant: None,
        lease_until: None,
        estimated_cost_usd: 0.0,
        created_at: NOW,
        updated_at: NOW,
        started_at: None,
        completed_at: None,
    }
}

fn claim(claimant: &str, start: bool) -> JobCommand {
    JobCommand::Claim { claimant: claimant.into(), lease_until: NOW.plus_ms(LEASE), start }
}

fn report(claimant: &str, attempt: u32, report: Report) -> JobCommand {
    JobCommand::Report { claimant: claimant.into(), attempt, report }
}

fn running(progress: f64) -> Report {
    Report::Running { progress: Some(progress), reason: None, external_job_id: None }
}

fn failure(retriable: bool, counted: bool) -> Report {
    let error =
        JobError { code: "exit_nonzero".into(), message: "1".into(), retriable, exit_code: Some(1), stack_trace: None };
    Report::Failed { error, counted }
}

fn cancel() -> JobCommand {
    JobCommand::Cancel { by: CancelledBy::User, reason: "changed my mind".into() }
}

/// Applies commands that must all be accepted; the last decision.
fn walk(mut job: Job, commands: &[JobCommand]) -> Decision {
    let mut last = None;
    for command in commands {
        let decision = decide(Some(&job), command, NOW, 0.0).unwrap_or_else(|why| panic!("{command:?}: {why}"));
        job = decision.job.clone();
        last = Some(decision);
    }
    last.expect("there is a command")
}

fn types(decision: &Decision) -> Vec<&'static str> {
    decision
        .events
        .iter()
        .map(|event| match event {
            JobEvent::Submitted(_) => "submitted",
            JobEvent::StatusChanged(_) => "status",
            JobEvent::Completed(_) => "completed",
            JobEvent::Failed(_) => "failed",
            JobEvent::Cancelled(_) => "cancelled",
            JobEvent::SubmitRequested(_) => "command",
            JobEvent::CancelRequested(_) => "cancel command",
        })
        .collect()
}

#[test]
fn a_process_claim_starts_and_an_external_claim_only_leases() {
    let started = walk(queued(), &[claim("p", true)]);
    assert_eq!((started.job.status, types(&started)), (JobStatus::Running, vec!["status"]));
    let leased = walk(queued(), &[claim("w", false)]);
    assert_eq!((leased.job.status, types(&leased)), (JobStatus::Queued, vec![]));
    assert!(leased.changed && leased.job.lease_until.is_some());
}

#[test]
fn a_leased_job_cannot_be_claimed_until_the_lease_lapses() {
    let leased = walk(queued(), &[claim("w", false)]).job;
    assert!(matches!(
        decide(Some(&leased), &claim("v", false), NOW, 0.0),
        Err(JobRefusal::IllegalTransition { status: JobStatus::Queued, .. })
    ));
    let later = NOW.plus_ms(LEASE);
    assert!(decide(Some(&leased), &claim("v", false), later, 0.0).is_ok());
    let lapsed = decide(Some(&leased), &JobCommand::LeaseLapsed { attempt: 1 }, later, 0.0).unwrap();
    assert_eq!((lapsed.job.status, types(&lapsed)), (JobStatus::Failed, vec!["status", "failed"]));
    assert_eq!(lapsed.job.error.as_ref().map(|error| &*error.code), Some("runner_lost"));
    assert!(lapsed.job.retry_at.is_some(), "it is retriable");
    let early = decide(Some(&leased), &JobCommand::LeaseLapsed { attempt: 1 }, NOW, 0.0).unwrap();
    assert!(!early.changed);
}

#[test]
fn a_run_ends_with_its_status_and_its_outcome() {
    let end = walk(
        queued(),
        &[claim("p", true), report("p", 1, running(0.5)), report("p", 1, Report::Completed { result: Box::default() })],
    );
    assert_eq!((end.job.status, types(&end)), (JobStatus::Completed, vec!["status", "completed"]));
    assert_eq!((end.job.progress, end.job.completed_at, end.job.lease_until), (Some(1.0), Some(NOW), None));
}

#[test]
fn a_repeat_is_accepted_and_writes_nothing() {
    let commands = [claim("p", true), report("p", 1, running(0.5))];
    for again in [running(0.5), Report::Running { progress: None, reason: Some("still".into()), external_job_id: None }]
    {
        let repeat = walk(queued(), &[&commands[..], &[report("p", 1, again)]].concat());
        assert!(!repeat.changed && repeat.events.is_empty());
    }
    let news = Report::Running { progress: Some(0.5), reason: None, external_job_id: Some("4711".into()) };
    let named = walk(queued(), &[&commands[..], &[report("p", 1, news)]].concat());
    assert!(named.changed, "the name at the other system is news");
    let done = report("p", 1, Report::Completed { result: Box::default() });
    let repeat = walk(queued(), &[&commands[..], &[done.clone(), done]].concat());
    assert!(!repeat.changed);
}

#[test]
fn only_the_claimant_of_the_current_attempt_reports() {
    let job = walk(queued(), &[claim("p", true)]).job;
    let refused = |claimant, attempt, what| decide(Some(&job), &report(claimant, attempt, what), NOW, 0.0).unwrap_err();
    assert_eq!(refused("q", 1, running(0.1)), JobRefusal::NotClaimant { attempt: 1 });
    assert_eq!(refused("q", 1, running(0.0)), JobRefusal::NotClaimant { attempt: 1 }, "not even a repeat");
    assert_eq!(refused("p", 2, running(0.1)), JobRefusal::StaleAttempt { reported: 2, current: 1 });
    let beat = JobCommand::Heartbeat { claimant: "q".into(), attempt: 1, lease_until: NOW };
    assert_eq!(decide(Some(&job), &beat, NOW, 0.0).unwrap_err(), JobRefusal::NotClaimant { attempt: 1 });
}

#[test]
fn a_failure_is_retried_as_often_as_asked_and_a_stopped_runner_does_not_count() {
    let mut job = queued();
    for counted in [false, true] {
        let failed = walk(job, &[claim("p", true), report("p", 1 + u32::from(counted), failure(true, counted))]);
        assert_eq!(failed.job.retry_at, Some(NOW.plus_ms(1_000)));
        let early = JobCommand::RetryDue { attempt: failed.job.attempt };
        assert!(!decide(Some(&failed.job), &early, NOW, 0.0).unwrap().changed);
        let due = decide(Some(&failed.job), &early, NOW.plus_ms(1_000), 0.0).unwrap();
        assert_eq!(types(&due), ["status", "command"]);
        job = Job { lease_until: None, ..due.job };
    }
    assert_eq!((job.attempt, job.retry_count), (3, 1));
    let last = walk(job, &[claim("p", true), report("p", 3, failure(true, true))]);
    assert!(last.job.is_final());
    assert!(matches!(&last.events[1], JobEvent::Failed(failed) if failed.r#final));
    let again = walk(last.job, &[JobCommand::Retry]);
    assert_eq!((again.job.status, again.job.attempt), (JobStatus::Queued, 4));
}

#[test]
fn cancelling() {
    let open = walk(queued(), &[cancel()]);
    assert_eq!((open.job.status, types(&open)), (JobStatus::Cancelled, vec!["status", "cancelled"]));
    assert!(!walk(open.job, &[cancel()]).changed);

    let asked = walk(queued(), &[claim("p", true), cancel()]);
    assert_eq!((asked.job.status, types(&asked)), (JobStatus::Running, vec!["cancel command"]));
    let failed = walk(asked.job.clone(), &[report("p", 1, failure(true, true))]);
    assert!(failed.job.is_final(), "nobody wants it to run again");
    let stopped = walk(asked.job, &[report("p", 1, Report::Cancelled { reason: "as asked".into() })]);
    assert_eq!(types(&stopped), ["status", "cancelled"]);

    let waiting = walk(queued(), &[claim("p", true), report("p", 1, failure(true, true)), cancel()]);
    assert_eq!((waiting.job.status, waiting.job.retry_at), (JobStatus::Cancelled, None));
    let done = walk(queued(), &[claim("p", true), report("p", 1, Report::Completed { result: Box::default() })]).job;
    assert!(matches!(decide(Some(&done), &cancel(), NOW, 0.0), Err(JobRefusal::IllegalTransition { .. })));
}

#[test]
fn what_does_not_exist_can_only_be_submitted_and_what_exists_cannot() {
    let job = queued();
    let submit = JobCommand::Submit(Box::new(job.clone()));
    assert!(decide(None, &submit, NOW, 0.0).is_ok());
    assert_eq!(decide(Some(&job), &submit, NOW, 0.0).unwrap_err(), JobRefusal::Exists);
    assert_eq!(decide(None, &cancel(), NOW, 0.0).unwrap_err(), JobRefusal::NotFound);
}

fn any_report() -> impl Strategy<Value = Report> {
    prop_oneof![
        (0..=4u8).prop_map(|quarter| running(f64::from(quarter) / 4.0)),
        Just(Report::Completed { result: Box::default() }),
        (any::<bool>(), any::<bool>()).prop_map(|(retriable, counted)| failure(retriable, counted)),
        Just(Report::Cancelled { reason: "asked".into() }),
    ]
}

fn any_command() -> impl Strategy<Value = JobCommand> {
    let name = prop_oneof![Just("p"), Just("q")];
    let attempt = 1..4u32;
    prop_oneof![
        1 => (name.clone(), any::<bool>()).prop_map(|(name, start)| claim(name, start)),
        1 => (name.clone(), attempt.clone()).prop_map(|(name, attempt)| JobCommand::Heartbeat {
            claimant: name.into(),
            attempt,
            lease_until: NOW.plus_ms(2 * LEASE)
        }),
        4 => (name, attempt.clone(), any_report()).prop_map(|(name, attempt, what)| report(name, attempt, what)),
        1 => attempt.clone().prop_map(|attempt| JobCommand::LeaseLapsed { attempt }),
        1 => Just(cancel()),
        1 => Just(JobCommand::Retry),
        1 => attempt.prop_map(|attempt| JobCommand::RetryDue { attempt }),
    ]
}

fn arrow_exists(before: &Job, after: JobStatus) -> bool {
    use JobStatus::*;
    match (before.status, after) {
        (Queued, Queued | Running | Failed | Cancelled) | (Running, _) | (Failed, Queued) => true,
        (Failed, Cancelled) => before.retry_at.is_some(),
        _ => false,
    }
}

proptest! {
    /// Whatever anybody asks in whatever order, at whatever time.
    #[test]
    fn a_job_only_moves_along_the_arrows(steps in prop::collection::vec((any_command(), 0..20_000i64), 1..40)) {
        let (mut job, mut now) = (queued(), NOW);
        for (command, pause) in steps {
            now = now.plus_ms(pause);
            let Ok(decision) = decide(Some(&job), &command, now, 0.5) else { continue };
            let after = &decision.job;
            if !decision.changed {
                prop_assert!(decision.events.is_empty());
                prop_assert_eq!(serde_json::to_value(after).unwrap(), serde_json::to_value(&job).unwrap());
                continue;
            }
            let moved = after.status != job.status;
            prop_assert!(!moved || arrow_exists(&job, after.status), "{:?} -> {:?}", job.status, after.status);
            let said = matches!(decision.events.first(), Some(JobEvent::StatusChanged(change))
                if change.previous_status == job.status && change.new_status == after.status && change.attempt == after.attempt);
            prop_assert!(!moved || said, "every move is told first: {:?}", types(&decision));
            // The claim of an external worker is a lease and nothing else.
            prop_assert!(after.attempt == job.attempt || after.attempt == job.attempt + 1 && after.status == JobStatus::Queued);
            prop_assert!(after.retry_count <= after.max_retries);
            prop_assert_eq!(after.completed_at.is_some(), after.status.is_terminal());
            prop_assert!(after.status != JobStatus::Running || after.claimant.is_some() && after.started_at.is_some());
            prop_assert!(after.retry_at.is_none() || after.status == JobStatus::Failed);
            prop_assert!(!after.status.is_terminal() || after.lease_until.is_none());
            prop_assert!(after.updated_at >= job.updated_at);
            job = decision.job;
        }
    }
}
