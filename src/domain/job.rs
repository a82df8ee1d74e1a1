//! Jobs and their state machine.
//!
//! `QUEUED -> RUNNING -> COMPLETED | FAILED`, `QUEUED -> FAILED`, any open state (and a
//! pending retry) `-> CANCELLED`, `FAILED -> QUEUED` on retry, `RUNNING -> RUNNING` with
//! progress. [`decide`] is the only place that knows these arrows; the stores call it
//! under the lock of the job's head row.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::payload::{
    CancelJobRequested, CancelledBy, JobCancelled, JobCompleted, JobFailed, JobStatusChanged, JobSubmitted,
    ResultMetrics, SubmitJobRequested,
};
use super::{Id, Timestamp};

macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        // Not derived: the derive does not see names that come through a macro.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                use utoipa::openapi::schema::{ObjectBuilder, Type};
                let names = Self::ALL.iter().map(|value| value.as_str());
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    format!("'{text}' is not one of {}", all.join(", "))
                })
            }
        }
    };
}

pub(crate) use text_enum;

text_enum! {
    /// Where a job stands.
    JobStatus {
        Queued = "QUEUED",
        Running = "RUNNING",
        Completed = "COMPLETED",
        Failed = "FAILED",
        Cancelled = "CANCELLED",
    }
}

impl JobStatus {
    /// No transition leads out of it by itself (a failed job with a pending retry is not final).
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

text_enum! {
    /// The order in which queued jobs are claimed; later variants first.
    #[derive(Default)]
    Priority { Low = "low", #[default] Normal = "normal", High = "high" }
}

text_enum! {
    /// The supercomputer a job is meant for.
    #[derive(Default)]
    TaccSystem { Frontera = "frontera", Stampede3 = "stampede3", Lonestar6 = "lonestar6", #[default] Other = "other" }
}

text_enum! {
    /// Who runs the jobs of an agent.
    RunnerKind {
        /// A child process of the gateway.
        Process = "process",
        /// The Tapis v3 Jobs API.
        Tapis = "tapis",
        /// Somebody who claims and reports through the worker API.
        External = "external",
    }
}

/// What a job asks of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceRequest {
    #[schema(minimum = 1, maximum = 100_000)]
    pub num_nodes: u32,
    #[schema(minimum = 1, maximum = 1_024)]
    pub cores_per_node: u32,
    #[schema(minimum = 0, maximum = 100_000)]
    pub gpu_count_total: u32,
    /// Gigabytes over the whole job.
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub memory_gb: f64,
    /// The job is ended when it runs longer.
    #[schema(minimum = 1, maximum = 525_600)]
    pub wall_time_minutes: u32,
}

impl Default for ResourceRequest {
    fn default() -> Self {
        Self { num_nodes: 1, cores_per_node: 1, gpu_count_total: 0, memory_gb: 1.0, wall_time_minutes: 60 }
    }
}

/// Why a job ended without success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobError {
    /// Machine-readable, e.g. `exit_nonzero`, `runner_lost`, `wall_time_exceeded`.
    #[schema(max_length = 100)]
    pub code: String,
    #[schema(max_length = 4_000)]
    pub message: String,
    /// May the same job succeed when tried again?
    #[serde(default)]
    pub retriable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 16_000)]
    pub stack_trace: Option<String>,
}

/// What a successful run left behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobResult {
    /// Where the output is: a directory, URL or archive id.
    #[schema(max_length = 2_000)]
    pub output_location: String,
    #[schema(minimum = 0)]
    pub result_size_bytes: i64,
    pub metrics: ResultMetrics,
    /// The agent's own summary, any JSON object.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    pub summary: serde_json::Map<String, serde_json::Value>,
}

/// A job as the store keeps it and the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub id: Id,
    #[schema(value_type = String)]
    pub user_id: Arc<str>,
    pub name: String,
    #[schema(value_type = String)]
    pub agent: Arc<str>,
    pub runner: RunnerKind,
    pub dataset_id: String,
    pub tacc_system: TaccSystem,
    /// The job's name at the system that runs it.
    #[schema(required = true)]
    pub external_job_id: Option<String>,
    pub status: JobStatus,
    /// 0 to 1 within the current attempt.
    #[schema(required = true)]
    pub progress: Option<f64>,
    pub priority: Priority,
    /// The agent's parameters, any JSON object.
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    pub params: Arc<RawValue>,
    pub resource_request: ResourceRequest,
    #[schema(required = true)]
    pub result: Option<JobResult>,
    #[schema(required = true)]
    pub error: Option<JobError>,
    /// Counts from 1; every resubmission is a new attempt.
    pub attempt: u32,
    /// Attempts that count against `max_retries`.
    pub retry_count: u32,
    pub max_retries: u32,
    /// When the orchestrator will resubmit it.
    #[schema(required = true)]
    pub retry_at: Option<Timestamp>,
    pub cancel_requested: bool,
    /// Who holds the current attempt.
    #[schema(value_type = Option<String>, required = true)]
    pub claimant: Option<Arc<str>>,
    #[schema(required = true)]
    pub lease_until: Option<Timestamp>,
    pub estimated_cost_usd: f64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Start of the current attempt's run.
    #[schema(required = true)]
    pub started_at: Option<Timestamp>,
    #[schema(required = true)]
    pub completed_at: Option<Timestamp>,
}

impl Job {
    /// Will anything still happen to this job without somebody asking?
    pub fn is_final(&self) -> bool {
        self.status.is_terminal() && self.retry_at.is_none()
    }
}

/// A change asked of one job. Carries everything [`decide`] needs besides the job itself.
#[derive(Clone, Debug)]
pub enum JobCommand {
    /// Create it. The job's fields are final; its events are already encoded.
    Submit(Box<Job>),
    /// Take a queued job for `claimant` until `lease_until`. `start` makes it RUNNING
    /// at once (process runner); otherwise it is only leased (external workers).
    Claim { claimant: Arc<str>, lease_until: Timestamp, start: bool },
    /// The claimant is alive.
    Heartbeat { claimant: Arc<str>, attempt: u32, lease_until: Timestamp },
    /// The claimant reports.
    Report { claimant: Arc<str>, attempt: u32, report: Report },
    /// A lease ran out (`now` is compared under the lock).
    LeaseLapsed { attempt: u32 },
    /// Somebody wants it to stop.
    Cancel { by: CancelledBy, reason: String },
    /// Somebody wants a failed job to run again.
    Retry,
    /// The orchestrator's timer: the pending retry of `attempt` is due.
    RetryDue { attempt: u32 },
}

/// What a claimant says about its attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    Running {
        progress: Option<f64>,
        reason: Option<String>,
        external_job_id: Option<String>,
    },
    Completed {
        result: Box<JobResult>,
    },
    /// `counted: false` (the runner was stopped) does not use up a retry.
    Failed {
        error: JobError,
        counted: bool,
    },
    Cancelled {
        reason: String,
    },
}

/// Why a command was refused. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    #[error("there is no such job")]
    NotFound,
    #[error("a job with this id exists already")]
    Exists,
    #[error("the job is {status}; {wanted}")]
    IllegalTransition { status: JobStatus, wanted: &'static str },
    #[error("the report is for attempt {reported}, the job is at attempt {current}")]
    StaleAttempt { reported: u32, current: u32 },
    #[error("attempt {attempt} is held by another claimant")]
    NotClaimant { attempt: u32 },
}

/// An event that follows from a transition, still typed.
#[derive(Clone, Debug)]
pub enum JobEvent {
    Submitted(JobSubmitted),
    StatusChanged(JobStatusChanged),
    Completed(JobCompleted),
    Failed(JobFailed),
    Cancelled(JobCancelled),
    SubmitRequested(SubmitJobRequested),
    CancelRequested(CancelJobRequested),
}

/// The outcome of an accepted command.
#[derive(Clone, Debug)]
pub struct Decision {
    pub job: Job,
    /// In order. Empty with `changed` for a bare heartbeat.
    pub events: Vec<JobEvent>,
    /// False: a repeat of what is already so; nothing is written.
    pub changed: bool,
}

/// Delays before the retries of jobs and of failed deliveries, in milliseconds; the
/// last one repeats. Jitter is added by the caller.
pub const RETRY_DELAYS_MS: [i64; 6] = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000];

/// The delay before retry number `n` (from 0), with `jitter` in 0..1 adding up to a fifth.
pub fn retry_delay_ms(n: u32, jitter: f64) -> i64 {
    let base = RETRY_DELAYS_MS[(n as usize).min(RETRY_DELAYS_MS.len() - 1)];
    base + (base as f64 * 0.2 * jitter.clamp(0.0, 1.0)) as i64
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
            if is_repeat(current, *attempt, report) {
                return Ok(unchanged(current));
            }
            check_claimant(current, claimant, *attempt)?;
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
fn is_repeat(current: &Job, attempt: u32, report: &Report) -> bool {
    current.attempt == attempt
        && match report {
            Report::Running { progress, .. } => {
                current.status == JobStatus::Running && (progress.is_none() || *progress == current.progress)
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
