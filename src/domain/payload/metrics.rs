//! What jobs use, and how the system is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::job::text_enum;
use crate::domain::{Id, Timestamp};

/// What a job used over one sampling interval. Percentages are of what the job was given
/// (0 to 100); rates are means over the interval, megabits (network), megabytes
/// (disk) or operations a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobMetrics {
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub cpu_utilization_percent: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub gpu_utilization_percent: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub gpu_memory_used_gb: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub system_memory_used_gb: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub network_in_mbps: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub network_out_mbps: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub disk_read_iops: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub disk_write_iops: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub disk_read_throughput_mbps: f64,
    #[schema(minimum = 0.0, maximum = 1_000_000_000_000.0)]
    pub disk_write_throughput_mbps: f64,
}

/// The largest value of a reading. What is larger is no measurement, and sums over a run
/// have to stay finite.
pub const MAX_READING: f64 = 1_000_000_000_000.0;

impl JobMetrics {
    /// Every reading with its name.
    pub fn readings(&self) -> [(&'static str, f64); 10] {
        [
            ("cpu_utilization_percent", self.cpu_utilization_percent),
            ("gpu_utilization_percent", self.gpu_utilization_percent),
            ("gpu_memory_used_gb", self.gpu_memory_used_gb),
            ("system_memory_used_gb", self.system_memory_used_gb),
            ("network_in_mbps", self.network_in_mbps),
            ("network_out_mbps", self.network_out_mbps),
            ("disk_read_iops", self.disk_read_iops),
            ("disk_write_iops", self.disk_write_iops),
            ("disk_read_throughput_mbps", self.disk_read_throughput_mbps),
            ("disk_write_throughput_mbps", self.disk_write_throughput_mbps),
        ]
    }
}

/// One sample of what a running job uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobMetricsRecorded {
    pub job_id: Id,
    #[serde(default)]
    pub host: Option<String>,
    pub sample_timestamp: Timestamp,
    pub sample_interval_seconds: f64,
    pub metrics: JobMetrics,
}

/// What a job used over its whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobMetricsAggregate {
    pub cpu_utilization_avg_percent: f64,
    pub cpu_utilization_max_percent: f64,
    pub gpu_utilization_avg_percent: f64,
    pub gpu_utilization_max_percent: f64,
    pub gpu_memory_peak_gb: f64,
    pub system_memory_peak_gb: f64,
    pub total_network_in_gb: f64,
    pub total_network_out_gb: f64,
    pub total_disk_read_gb: f64,
    pub total_disk_write_gb: f64,
}

/// What an ended job used over its run, from its samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPerformanceSummary {
    pub job_id: Id,
    pub execution_time_ms: i64,
    pub samples_collected: i64,
    pub metrics_aggregate: JobMetricsAggregate,
}

text_enum! {
    /// What a scheduler did with an allocation.
    AllocationChange { Allocated = "allocated", Deallocated = "deallocated", Reallocated = "reallocated" }
}

/// What a scheduler has set aside for a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    pub num_nodes: u32,
    pub cores: u32,
    pub gpus: u32,
    pub memory_gb: f64,
}

/// A scheduler gave, took or changed the nodes of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceAllocationChanged {
    /// The scheduler's name for it.
    pub allocation_id: String,
    pub job_id: Id,
    pub change_type: AllocationChange,
    pub previous_allocation: Allocation,
    pub new_allocation: Allocation,
    pub reason: String,
}

text_enum! {
    /// How a part of the system is.
    ComponentStatus { Healthy = "healthy", Degraded = "degraded", Down = "down" }
}

/// The parts an instance depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentStates {
    pub database: ComponentStatus,
    pub rabbitmq: ComponentStatus,
    pub kafka: ComponentStatus,
    pub nats: ComponentStatus,
    pub registry: ComponentStatus,
    pub external_api: ComponentStatus,
}

/// How busy the system is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SystemMetrics {
    pub active_jobs: i64,
    pub pending_jobs: i64,
    pub failed_jobs_24h: i64,
    pub average_queue_depth: f64,
    pub average_response_time_ms: f64,
}

/// What one instance saw of its parts at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemHealthCheck {
    pub instance_id: String,
    pub check_timestamp: Timestamp,
    pub components: ComponentStates,
    pub metrics: SystemMetrics,
}
