//! Jobs and their state machine.
//!
//! `QUEUED -> RUNNING -> COMPLETED | FAILED`, `QUEUED -> FAILED`, any open state (and a
//! pending retry) `-> CANCELLED`, `FAILED -> QUEUED` on retry, `RUNNING -> RUNNING` with
//! progress. [`decide`] (in `machine`) is the only place that knows these arrows; the stores call it
//! under the lock of the job's head row.

mod machine;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

pub use self::machine::{Decision, decide, submission_events};
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
