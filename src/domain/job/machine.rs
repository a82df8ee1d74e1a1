//! The state machine: the only place that knows which transitions there are and which
//! events follow from each.

use std::sync::Arc;

use super::{Job, JobCommand, JobError, JobEvent, JobRefusal, JobStatus, Report};
use crate::domain::Timestamp;
use crate::domain::backoff::retry_delay_ms;
use crate::domain::payload::{
    CancelJobRequested, CancelledBy, JobCancelled, JobCompleted, JobFailed, JobStatusChanged, JobSubmitted,
    SubmitJobRequested,
};

/// The outcome of an accepted command.
#[derive(Clone, Debug)]
pub struct Decision {
    pub job: Job,
    /// In order. Empty with `changed` for a bare heartbeat.
    pub events: Vec<JobEvent>,
    /// False: a repeat of what is already so; nothing is written.
    pub changed: bool,
}

/// The events of a submission, in order. Known before the commit, so that the caller
/// encodes them outside every lock.
pub fn submission_events(job: &Job) -> [JobEvent; 2] {
    [
        JobEvent::Submitted(JobSubmitted {
            job_id: job.id,
            job_name: job.name.clone(),
            agent: job.agent.to_string(),
            dataset_id: job.dataset_id.clone(),
            tacc_system: job.tacc_system,
            resource_request: job.resource_request.clone(),
            estimated_cost_usd: job.estimated_cost_usd,
            priority: job.priority,
        }),
        JobEvent::SubmitRequested(submit_requested(job)),
    ]
}

/// The state machine: what `command` does to `current` at `now`. Pure.
///
/// `jitter` in 0..1 spreads the retry times of jobs that fail together.
pub fn decide(
    current: Option<&Job>,
    command: &JobCommand,
    now: Timestamp,
    jitter: f64,
) -> Result<Decision, JobRefusal> {
    if let JobCommand::Submit(job) = command {
        return match current {
            Some(_) => Err(JobRefusal::Exists),
            None => Ok(Decision { job: (**job).clone(), events: Vec::new(), changed: true }),
        };
    }
    let current = current.ok_or(JobRefusal::NotFound)?;
    match command {
        JobCommand::Submit(_) => unreachable!("handled above"),
        JobCommand::Claim { claimant, lease_until, start } => claim(current, claimant, *lease_until, *start, now),
        JobCommand::Heartbeat { claimant, attempt, lease_until } => {
            check_claimant(current, claimant, *attempt)?;
            if current.status.is_terminal() {
                return Ok(unchanged(current));
            }
            let mut job = touched(current, now);
            job.lease_until = Some(*lease_until);
            Ok(Decision { job, events: Vec::new(), changed: true })
        }
        JobCommand::Report { claimant, attempt, report } => {
            check_claimant(current, claimant, *attempt)?;
            if is_repeat(current, report) {
                return Ok(unchanged(current));
            }
            reported(current, report, now, jitter)
        }
        JobCommand::LeaseLapsed { attempt } => {
            let lapsed = current.lease_until.is_some_and(|until| until <= now);
            if current.attempt != *attempt || !lapsed || current.status.is_terminal() {
                return Ok(unchanged(current));
            }
            if current.cancel_requested {
                return Ok(cancelled(current, CancelledBy::User, "cancelled; its runner is gone".into(), now));
            }
            let error = JobError {
                code: "runner_lost".into(),
                message: "the lease of the claimant lapsed without a sign of life".into(),
                retriable: true,
                exit_code: None,
                stack_trace: None,
            };
            Ok(failed(current, error, true, now, jitter))
        }
        JobCommand::Cancel { by, reason } => cancel(current, *by, reason, now),
        JobCommand::Retry => {
            if current.status != JobStatus::Failed {
                return Err(JobRefusal::IllegalTransition {
                    status: current.status,
                    wanted: "only a FAILED job can be retried",
                });
            }
            Ok(requeued(current, "retry requested", now))
        }
        JobCommand::RetryDue { attempt } => {
            let due = current.retry_at.is_some_and(|at| at <= now);
            if current.status != JobStatus::Failed || current.attempt != *attempt || !due {
                return Ok(unchanged(current));
            }
            Ok(requeued(current, "retry due", now))
        }
    }
}

fn claim(
    current: &Job,
    claimant: &Arc<str>,
    lease_until: Timestamp,
    start: bool,
    now: Timestamp,
) -> Result<Decision, JobRefusal> {
    let leased = current.lease_until.is_some_and(|until| until > now);
    if current.status != JobStatus::Queued || leased || current.cancel_requested {
        return Err(JobRefusal::IllegalTransition {
            status: current.status,
            wanted: "only a QUEUED job without a lease can be claimed",
        });
    }
    let mut job = touched(current, now);
    job.claimant = Some(claimant.clone());
    job.lease_until = Some(lease_until);
    let mut events = Vec::new();
    if start {
        job.status = JobStatus::Running;
        job.started_at = Some(now);
        job.progress = Some(0.0);
        events.push(status_changed(current, &job, None, now));
    }
    Ok(Decision { job, events, changed: true })
}

/// The same report again: the state it asks for is the state there is.
fn is_repeat(current: &Job, report: &Report) -> bool {
    match report {
        Report::Running { progress, external_job_id, .. } => {
            current.status == JobStatus::Running
                && (progress.is_none() || *progress == current.progress)
                && (external_job_id.is_none() || *external_job_id == current.external_job_id)
        }
        Report::Completed { .. } => current.status == JobStatus::Completed,
        Report::Failed { .. } => current.status == JobStatus::Failed,
        Report::Cancelled { .. } => current.status == JobStatus::Cancelled,
    }
}

fn check_claimant(current: &Job, claimant: &Arc<str>, attempt: u32) -> Result<(), JobRefusal> {
    if current.attempt != attempt {
        return Err(JobRefusal::StaleAttempt { reported: attempt, current: current.attempt });
    }
    if current.claimant.as_ref() != Some(claimant) {
        return Err(JobRefusal::NotClaimant { attempt });
    }
    Ok(())
}

fn reported(current: &Job, report: &Report, now: Timestamp, jitter: f64) -> Result<Decision, JobRefusal> {
    if current.status.is_terminal() {
        return Err(JobRefusal::IllegalTransition {
            status: current.status,
            wanted: "a job that has ended takes no more reports",
        });
    }
    match report {
        Report::Running { progress, reason, external_job_id } => {
            let mut job = touched(current, now);
            job.status = JobStatus::Running;
            job.started_at = job.started_at.or(Some(now));
            job.progress = progress.or(job.progress).or(Some(0.0));
            if external_job_id.is_some() {
                job.external_job_id.clone_from(external_job_id);
            }
            let event = status_changed(current, &job, reason.clone(), now);
            Ok(Decision { job, events: vec![event], changed: true })
        }
        Report::Completed { result } => {
            if current.status != JobStatus::Running {
                return Err(JobRefusal::IllegalTransition {
                    status: current.status,
                    wanted: "report RUNNING before COMPLETED",
                });
            }
            let mut job = ended(current, JobStatus::Completed, now);
            job.progress = Some(1.0);
            job.result = Some((**result).clone());
            let completed = JobCompleted {
                job_id: job.id,
                attempt: job.attempt,
                execution_time_ms: run_ms(current, now),
                output_location: result.output_location.clone(),
                result_size_bytes: result.result_size_bytes,
                metrics: result.metrics.clone(),
            };
            let events = vec![status_changed(current, &job, None, now), JobEvent::Completed(completed)];
            Ok(Decision { job, events, changed: true })
        }
        Report::Failed { error, counted } => Ok(failed(current, error.clone(), *counted, now, jitter)),
        Report::Cancelled { reason } => Ok(cancelled(current, CancelledBy::User, reason.clone(), now)),
    }
}

fn cancel(current: &Job, by: CancelledBy, reason: &str, now: Timestamp) -> Result<Decision, JobRefusal> {
    let pending_retry = current.status == JobStatus::Failed && current.retry_at.is_some();
    match current.status {
        JobStatus::Cancelled => Ok(unchanged(current)),
        JobStatus::Completed | JobStatus::Failed if !pending_retry => Err(JobRefusal::IllegalTransition {
            status: current.status,
            wanted: "only an open job or a pending retry can be cancelled",
        }),
        // The claimant must stop it; state says so, the command is a hint.
        JobStatus::Running => {
            if current.cancel_requested {
                return Ok(unchanged(current));
            }
            let mut job = touched(current, now);
            job.cancel_requested = true;
            let command = CancelJobRequested {
                job_id: job.id,
                attempt: job.attempt,
                cancelled_by: by,
                reason: reason.to_owned(),
            };
            Ok(Decision { job, events: vec![JobEvent::CancelRequested(command)], changed: true })
        }
        _ => Ok(cancelled(current, by, reason.to_owned(), now)),
    }
}

fn failed(current: &Job, error: JobError, counted: bool, now: Timestamp, jitter: f64) -> Decision {
    let mut job = ended(current, JobStatus::Failed, now);
    let retry = error.retriable && !current.cancel_requested && (!counted || current.retry_count < current.max_retries);
    job.retry_at = retry.then(|| now.plus_ms(retry_delay_ms(current.retry_count, jitter)));
    if retry && counted {
        job.retry_count += 1;
    }
    let event = JobFailed {
        job_id: job.id,
        attempt: job.attempt,
        error_code: error.code.clone(),
        error_message: error.message.clone(),
        stack_trace: error.stack_trace.clone(),
        exit_code: error.exit_code,
        retriable: error.retriable,
        r#final: !retry,
        retry_count: current.retry_count,
        max_retries: current.max_retries,
        next_retry_timestamp: job.retry_at,
    };
    job.error = Some(error);
    let events = vec![status_changed(current, &job, None, now), JobEvent::Failed(event)];
    Decision { job, events, changed: true }
}

fn cancelled(current: &Job, by: CancelledBy, reason: String, now: Timestamp) -> Decision {
    let mut job = ended(current, JobStatus::Cancelled, now);
    job.cancel_requested = true;
    let event = JobCancelled { job_id: job.id, cancelled_by: by, reason: reason.clone(), refund_amount_usd: None };
    let events = vec![status_changed(current, &job, Some(reason), now), JobEvent::Cancelled(event)];
    Decision { job, events, changed: true }
}

fn requeued(current: &Job, reason: &str, now: Timestamp) -> Decision {
    let mut job = touched(current, now);
    job.status = JobStatus::Queued;
    job.attempt += 1;
    job.retry_at = None;
    job.progress = None;
    job.error = None;
    job.result = None;
    job.claimant = None;
    job.lease_until = None;
    job.started_at = None;
    job.completed_at = None;
    job.cancel_requested = false;
    let events = vec![
        status_changed(current, &job, Some(reason.to_owned()), now),
        JobEvent::SubmitRequested(submit_requested(&job)),
    ];
    Decision { job, events, changed: true }
}

fn submit_requested(job: &Job) -> SubmitJobRequested {
    SubmitJobRequested {
        job_id: job.id,
        attempt: job.attempt,
        runner: job.runner,
        agent: job.agent.to_string(),
        dataset_id: job.dataset_id.clone(),
        params: job.params.get().to_owned(),
        resource_request: job.resource_request.clone(),
        wall_time_minutes: job.resource_request.wall_time_minutes,
    }
}

fn unchanged(current: &Job) -> Decision {
    Decision { job: current.clone(), events: Vec::new(), changed: false }
}

fn touched(current: &Job, now: Timestamp) -> Job {
    let mut job = current.clone();
    job.updated_at = now.max(current.updated_at);
    job
}

fn ended(current: &Job, status: JobStatus, now: Timestamp) -> Job {
    let mut job = touched(current, now);
    job.status = status;
    job.completed_at = Some(now);
    job.lease_until = None;
    job.retry_at = None;
    job
}

fn run_ms(current: &Job, now: Timestamp) -> i64 {
    current.started_at.map_or(0, |start| now.ms_since(start))
}

fn status_changed(before: &Job, after: &Job, reason: Option<String>, now: Timestamp) -> JobEvent {
    JobEvent::StatusChanged(JobStatusChanged {
        job_id: after.id,
        previous_status: before.status,
        new_status: after.status,
        attempt: after.attempt,
        progress: after.progress,
        reason,
        transition_time_ms: Some(now.ms_since(before.updated_at)),
    })
}
