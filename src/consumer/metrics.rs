//! metrics: per-job and per-minute aggregates, from the log.

use async_trait::async_trait;

use super::{Declaration, Effects, Handler, HandlerError, Message};
use crate::broker::Source;
use crate::domain::catalogue::Order;
use crate::domain::payload::{JobCompleted, JobMetricsRecorded, Payload};
use crate::store::{Effect, Fold};

/// Read model of one job's samples: `samples`, sums and maxima; key = job id.
pub const JOB_MODEL: &str = "job_metrics";
/// Read model of one minute: how many jobs were submitted, ended, ...; key = the minute
/// as RFC 3339.
pub const MINUTE_MODEL: &str = "jobs_per_minute";
/// Its count of runs that failed, to be retried or not.
pub const FAILED: &str = "failed";

const MINUTE_MS: i64 = 60_000;

/// Aggregates what jobs do and use.
#[derive(Debug, Default)]
pub struct MetricsConsumer;

fn effects(message: &Message) -> Result<Effects, HandlerError> {
    let row = match &*message.headers.event_type {
        JobMetricsRecorded::TYPE => sample(message)?,
        JobCompleted::TYPE => {
            let completed: JobCompleted = message.payload()?;
            let mut fold = minute(message, "completed");
            fold.add.insert("run_ms", completed.execution_time_ms as f64);
            fold
        }
        "job.submitted" => minute(message, "submitted"),
        "job.failed" => minute(message, FAILED),
        _ => minute(message, "cancelled"),
    };
    Ok(Effects { rows: vec![Effect::Fold(row)], ..Effects::default() })
}

fn minute(message: &Message, counter: &'static str) -> Fold {
    let at = message.occurred_at();
    let start = at.plus_ms(-at.0.rem_euclid(MINUTE_MS));
    let mut fold = Fold { model: MINUTE_MODEL, key: start.to_string(), ..Fold::default() };
    fold.add.insert(counter, 1.0);
    fold
}

fn sample(message: &Message) -> Result<Fold, HandlerError> {
    let recorded: JobMetricsRecorded = message.payload()?;
    let metrics = &recorded.metrics;
    let mut fold = Fold { model: JOB_MODEL, key: recorded.job_id.to_string(), ..Fold::default() };
    fold.add.insert("samples", 1.0);
    fold.add.insert("cpu_utilization_sum", metrics.cpu_utilization_percent);
    fold.add.insert("gpu_utilization_sum", metrics.gpu_utilization_percent);
    fold.max.insert("cpu_utilization_max", metrics.cpu_utilization_percent);
    fold.max.insert("gpu_utilization_max", metrics.gpu_utilization_percent);
    fold.max.insert("system_memory_peak_gb", metrics.system_memory_used_gb);
    fold.max.insert("gpu_memory_peak_gb", metrics.gpu_memory_used_gb);
    Ok(fold)
}

pub fn declaration() -> Declaration {
    Declaration {
        name: "metrics",
        source: Source::Topics(vec!["job-lifecycle".into(), "job-metrics".into()]),
        consumes: &[
            ("job.submitted", &[]),
            ("job.completed", &[]),
            ("job.failed", &[]),
            ("job.cancelled", &[]),
            ("job.metrics.recorded", &[]),
        ],
        order: Order::None,
    }
}

#[async_trait]
impl Handler for MetricsConsumer {
    fn declaration(&self) -> Declaration {
        declaration()
    }

    async fn handle(&self, batch: &[Message]) -> Vec<Result<Effects, HandlerError>> {
        batch.iter().map(effects).collect()
    }
}
