//! What happens to jobs, and the commands to those who run them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::job::{JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem};
use crate::domain::{Id, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CancelledBy {
    User,
    System,
    Admin,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSubmitted {
    pub job_id: Id,
    pub job_name: String,
    pub agent: String,
    pub dataset_id: String,
    pub tacc_system: TaccSystem,
    pub resource_request: ResourceRequest,
    pub estimated_cost_usd: f64,
    pub priority: Priority,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatusChanged {
    pub job_id: Id,
    pub previous_status: JobStatus,
    pub new_status: JobStatus,
    pub attempt: u32,
    #[serde(default)]
    pub progress: Option<f64>,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub transition_time_ms: Option<i64>,
}

/// Averages over a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResultMetrics {
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub cpu_utilization_percent: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub gpu_utilization_percent: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub memory_used_gb: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub io_throughput_mbps: f64,
}

impl ResultMetrics {
    /// Every average with its name.
    pub fn readings(&self) -> [(&'static str, f64); 4] {
        [
            ("cpu_utilization_percent", self.cpu_utilization_percent),
            ("gpu_utilization_percent", self.gpu_utilization_percent),
            ("memory_used_gb", self.memory_used_gb),
            ("io_throughput_mbps", self.io_throughput_mbps),
        ]
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobCompleted {
    pub job_id: Id,
    pub attempt: u32,
    pub execution_time_ms: i64,
    pub output_location: String,
    pub result_size_bytes: i64,
    pub metrics: ResultMetrics,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobFailed {
    pub job_id: Id,
    pub attempt: u32,
    pub error_code: String,
    pub error_message: String,
    #[serde(default)]
    pub stack_trace: Option<String>,
    #[serde(default)]
    pub exit_code: Option<i32>,
    pub retriable: bool,
    pub r#final: bool,
    pub retry_count: u32,
    pub max_retries: u32,
    #[serde(default)]
    pub next_retry_timestamp: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobCancelled {
    pub job_id: Id,
    pub cancelled_by: CancelledBy,
    pub reason: String,
    #[serde(default)]
    pub refund_amount_usd: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubmitJobRequested {
    pub job_id: Id,
    pub attempt: u32,
    pub runner: RunnerKind,
    pub agent: String,
    pub dataset_id: String,
    /// Free-form JSON, as text.
    pub params: String,
    pub resource_request: ResourceRequest,
    pub wall_time_minutes: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelJobRequested {
    pub job_id: Id,
    pub attempt: u32,
    pub cancelled_by: CancelledBy,
    pub reason: String,
}
