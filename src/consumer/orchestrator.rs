//! orchestrator: what happens to a job without anybody asking. Writes the performance
//! summary of ended jobs, resubmits failed ones when their retry is due, and fails those
//! whose claimant is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Declaration, Effects, Handler, HandlerError, Message};
use crate::broker::Source;
use crate::domain::catalogue::Order;
use crate::domain::job::Job;
use crate::domain::payload::{JobFailed, JobMetricsAggregate, JobMetricsRecorded, JobPerformanceSummary, Payload};
use crate::domain::{Id, Timestamp};
use crate::service::EventService;
use crate::store::SamplePoint;

const SUMMARY: &[&str] = &["job.performance.summary"];

/// Samples read for the summaries of one batch.
const SAMPLES: u32 = 50_000;

/// The consumer.
pub struct Orchestrator {
    service: Arc<EventService>,
    /// A retry was scheduled: the timer looks at the clock again.
    retry_soon: Arc<Notify>,
}

impl Orchestrator {
    /// `retry_soon` wakes its [`Timer`].
    pub fn new(service: Arc<EventService>, retry_soon: Arc<Notify>) -> Self {
        Self { service, retry_soon }
    }

    fn summary(
        &self,
        message: &Message,
        jobs: &HashMap<Id, Job>,
        samples: &HashMap<Id, Vec<JobMetricsRecorded>>,
    ) -> Result<Effects, HandlerError> {
        let id: Id = message
            .headers
            .aggregate_id
            .parse()
            .map_err(|_| HandlerError::Permanent("the aggregate id is no job id".into()))?;
        if &*message.headers.event_type == JobFailed::TYPE {
            let failed: JobFailed = message.payload()?;
            if !failed.r#final {
                self.retry_soon.notify_one();
                return Ok(Effects::default());
            }
        }
        let job = jobs.get(&id).ok_or_else(|| HandlerError::Permanent("there is no such job".into()))?;
        let none = Vec::new();
        let samples = samples.get(&id).unwrap_or(&none);
        let payload = JobPerformanceSummary {
            job_id: id,
            execution_time_ms: match (job.started_at, job.completed_at) {
                (Some(start), Some(end)) => end.ms_since(start),
                _ => 0,
            },
            samples_collected: samples.len() as i64,
            metrics_aggregate: aggregate(samples),
        };
        let event =
            self.service.factory().draft(&payload, &message.headers.user_id, &message.cause(), Timestamp::now())?;
        Ok(Effects { events: vec![event], ..Effects::default() })
    }

    /// Jobs and samples of a batch: two queries for all of it.
    async fn load(
        &self,
        batch: &[Message],
    ) -> Result<(HashMap<Id, Job>, HashMap<Id, Vec<JobMetricsRecorded>>), HandlerError> {
        let ids: Vec<Id> = batch.iter().filter_map(|message| message.headers.aggregate_id.parse().ok()).collect();
        let store = self.service.store();
        let jobs = store.jobs_by_id(&ids).await?.into_iter().map(|job| (job.id, job)).collect();
        let mut samples: HashMap<Id, Vec<JobMetricsRecorded>> = HashMap::new();
        for (id, SamplePoint { payload_json, .. }) in store.samples_of(&ids, SAMPLES).await? {
            if let Ok(sample) = serde_json::from_slice(&payload_json) {
                samples.entry(id).or_default().push(sample);
            }
        }
        Ok((jobs, samples))
    }
}

/// Averages weighted by the sampling interval, maxima, and totals.
fn aggregate(samples: &[JobMetricsRecorded]) -> JobMetricsAggregate {
    let mut total = JobMetricsAggregate::default();
    let mut seconds = 0.0;
    for sample in samples {
        let (m, interval) = (&sample.metrics, sample.sample_interval_seconds.max(0.0));
        seconds += interval;
        total.cpu_utilization_avg_percent += m.cpu_utilization_percent * interval;
        total.gpu_utilization_avg_percent += m.gpu_utilization_percent * interval;
        total.cpu_utilization_max_percent = total.cpu_utilization_max_percent.max(m.cpu_utilization_percent);
        total.gpu_utilization_max_percent = total.gpu_utilization_max_percent.max(m.gpu_utilization_percent);
        total.gpu_memory_peak_gb = total.gpu_memory_peak_gb.max(m.gpu_memory_used_gb);
        total.system_memory_peak_gb = total.system_memory_peak_gb.max(m.system_memory_used_gb);
        // Megabits and megabytes a second over the interval, in gigabytes.
        total.total_network_in_gb += m.network_in_mbps * interval / 8_000.0;
        total.total_network_out_gb += m.network_out_mbps * interval / 8_000.0;
        total.total_disk_read_gb += m.disk_read_throughput_mbps * interval / 1_000.0;
        total.total_disk_write_gb += m.disk_write_throughput_mbps * interval / 1_000.0;
    }
    if seconds > 0.0 {
        total.cpu_utilization_avg_percent /= seconds;
        total.gpu_utilization_avg_percent /= seconds;
    }
    total
}

pub fn declaration() -> Declaration {
    Declaration {
        name: "orchestrator",
        source: Source::Queue {
            name: "job-events-api".into(),
            // No more than it handles: a quorum queue keeps everything three times.
            bindings: ["job.completed", "job.failed", "job.cancelled"]
                .map(|key| ("job.events".into(), key.into()))
                .into(),
            exclusive: false,
        },
        consumes: &[("job.completed", SUMMARY), ("job.failed", SUMMARY), ("job.cancelled", SUMMARY)],
        order: Order::Aggregate,
    }
}

#[async_trait]
impl Handler for Orchestrator {
    fn declaration(&self) -> Declaration {
        declaration()
    }

    async fn handle(&self, batch: &[Message]) -> Vec<Result<Effects, HandlerError>> {
        match self.load(batch).await {
            Ok((jobs, samples)) => batch.iter().map(|message| self.summary(message, &jobs, &samples)).collect(),
            Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}

/// Resubmits what is due and fails what has lapsed. The store is asked, not a message:
/// a lost message delays a retry by a round at most.
pub struct Timer {
    pub service: Arc<EventService>,
    /// A retry was scheduled.
    pub retry_soon: Arc<Notify>,
}

const ROUND: Duration = Duration::from_secs(1);
const BATCH: u32 = 200;

impl Timer {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wait = self.round().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.retry_soon.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look at the clock; says how long to wait for the next.
    async fn round(&self) -> Duration {
        if let Err(error) = self.service.fail_lapsed(BATCH).await {
            tracing::warn!(%error, "lapsed leases are not handled; trying again");
        }
        match self.service.resubmit_due(BATCH).await {
            Ok((0, Some(next))) => {
                let wait = next.ms_since(Timestamp::now()).max(1);
                Duration::from_millis(wait as u64).min(ROUND)
            }
            Ok((0, None)) => ROUND,
            // There may be more.
            Ok(_) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(%error, "due retries are not resubmitted; trying again");
                ROUND
            }
        }
    }
}
