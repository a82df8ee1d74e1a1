//! What happened to one job: its events, its samples, its ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::cursor::{self, List};
use super::events::{EventPage, EventView};
use super::extract::{Caller, Params, PathId, Readers};
use super::jobs::{page_size, store};
use super::problem::Problem;
use crate::domain::payload::{JobMetrics, JobMetricsRecorded};
use crate::domain::{Id, Timestamp};
use crate::ops::ledger::EventDeliveries;
use crate::store::SamplePoint;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryParams {
    /// Events with a higher sequence; `next_cursor` of the page before.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Events of a page.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// The events of a job in sequence order.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/events",
    operation_id = "listJobEvents",
    tag = "jobs",
    params(("id" = Id, Path, description = "The job"), HistoryParams),
    responses((status = 200, description = "A page, oldest first; next_cursor goes into `after`", body = EventPage)),
)]
pub async fn events(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    PathId(id): PathId,
    Params(params): Params<HistoryParams>,
) -> Result<Json<EventPage>, Problem> {
    let limit = page_size(params.limit)?;
    let after = params.after.unwrap_or(0);
    if after < 0 {
        return Err(Problem::field("after", "out_of_range", "is a sequence: 0 or more"));
    }
    state.service.job(&caller.principal, id).await?;
    let found = state.service.store().aggregate_events("job", &id.to_string(), after, limit + 1).await;
    let mut found = found.map_err(store)?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = if more { found.last().map(|event| event.sequence.to_string()) } else { None };
    Ok(Json(EventPage { items: EventView::all(&found)?, next_cursor }))
}

/// The most samples a series is made of: a day at one a second.
const MAX_SAMPLES: u32 = 86_400;
/// Points of a series whose step is not asked for.
const WANTED_POINTS: i64 = 500;
/// Steps that people can read off an axis.
const STEPS: [u32; 14] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 21_600, 86_400];

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SeriesParams {
    /// Seconds that each point covers; chosen for some 500 points when missing.
    #[param(minimum = 1, maximum = 86_400)]
    step: Option<u32>,
}

/// The samples of a job, averaged over steps.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct SampleSeries {
    #[schema(minimum = 1)]
    step_seconds: u32,
    /// In time order; steps without a sample are left out.
    items: Vec<SeriesPoint>,
}

/// One step.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct SeriesPoint {
    /// The step's beginning.
    t: Timestamp,
    cpu_utilization_percent: f64,
    gpu_utilization_percent: f64,
    gpu_memory_used_gb: f64,
    system_memory_used_gb: f64,
    network_in_mbps: f64,
    network_out_mbps: f64,
    disk_read_iops: f64,
    disk_write_iops: f64,
    disk_read_throughput_mbps: f64,
    disk_write_throughput_mbps: f64,
}

/// CPU, GPU, memory, network and disk over the run of a job.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/metrics",
    operation_id = "getJobMetrics",
    tag = "jobs",
    params(("id" = Id, Path, description = "The job"), SeriesParams),
    responses((status = 200, description = "The series", body = SampleSeries)),
)]
pub async fn metrics(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    PathId(id): PathId,
    Params(params): Params<SeriesParams>,
) -> Result<Json<SampleSeries>, Problem> {
    if params.step.is_some_and(|step| !(1..=86_400).contains(&step)) {
        return Err(Problem::field("step", "out_of_range", "must be 1 to 86400 seconds"));
    }
    state.service.job(&caller.principal, id).await?;
    let samples = state.service.store().samples(id, MAX_SAMPLES).await.map_err(store)?;
    Ok(Json(series(&samples, params.step)?))
}

fn series(samples: &[SamplePoint], step: Option<u32>) -> Result<SampleSeries, Problem> {
    let samples: Vec<JobMetricsRecorded> = samples
        .iter()
        .map(|sample| serde_json::from_slice(&sample.payload_json))
        .collect::<Result<_, _>>()
        .map_err(|error| Problem::internal(format!("a stored sample: {error}")))?;
    let times = || samples.iter().map(|sample| sample.sample_timestamp);
    let step_seconds = step.unwrap_or_else(|| {
        let span_ms = times().max().zip(times().min()).map_or(0, |(last, first)| last.ms_since(first));
        let fits = |step: &&u32| span_ms / (i64::from(**step) * 1000) < WANTED_POINTS;
        STEPS.iter().find(fits).copied().unwrap_or(STEPS[STEPS.len() - 1])
    });
    let step_ms = i64::from(step_seconds) * 1000;
    let mut steps: BTreeMap<i64, Mean> = BTreeMap::new();
    for sample in &samples {
        let begin = sample.sample_timestamp.0.div_euclid(step_ms) * step_ms;
        steps.entry(begin).or_default().add(&sample.metrics, sample.sample_interval_seconds);
    }
    let items = steps.into_iter().map(|(begin, mean)| mean.sample(Timestamp(begin))).collect();
    Ok(SampleSeries { step_seconds, items })
}

/// A mean of samples, each weighted by the time it stands for.
#[derive(Default)]
struct Mean {
    sums: [f64; 10],
    weight: f64,
}

impl Mean {
    fn add(&mut self, metrics: &JobMetrics, seconds: f64) {
        // A sample of no length is still a sample.
        let weight = if seconds > 0.0 { seconds } else { 1.0 };
        for (sum, (_, value)) in self.sums.iter_mut().zip(metrics.readings()) {
            *sum += value * weight;
        }
        self.weight += weight;
    }

    fn sample(&self, t: Timestamp) -> SeriesPoint {
        let [cpu, gpu, gpu_memory, memory, net_in, net_out, read_iops, write_iops, read, write] =
            self.sums.map(|sum| sum / self.weight);
        SeriesPoint {
            t,
            cpu_utilization_percent: cpu,
            gpu_utilization_percent: gpu,
            gpu_memory_used_gb: gpu_memory,
            system_memory_used_gb: memory,
            network_in_mbps: net_in,
            network_out_mbps: net_out,
            disk_read_iops: read_iops,
            disk_write_iops: write_iops,
            disk_read_throughput_mbps: read,
            disk_write_throughput_mbps: write,
        }
    }
}

/// A page of the ledger.
#[derive(Serialize, ToSchema)]
pub struct DeliveriesPage {
    pub items: Vec<EventDeliveries>,
    /// Goes into `cursor` for the next page; null at the end.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerParams {
    /// `next_cursor` of the page before.
    #[param(min_length = 1)]
    cursor: Option<String>,
    /// Events of a page.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// Where each event of a job is: every leg with its state, attempts and position.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/deliveries",
    operation_id = "listJobDeliveries",
    tag = "ledger",
    params(("id" = Id, Path, description = "The job"), LedgerParams),
    responses((status = 200, description = "A page, oldest event first", body = DeliveriesPage)),
)]
pub async fn deliveries(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    PathId(id): PathId,
    Params(params): Params<LedgerParams>,
) -> Result<Json<DeliveriesPage>, Problem> {
    let limit = page_size(params.limit)?;
    let after = params.cursor.map(|cursor| cursor::decode(List::Deliveries, &cursor)).transpose()?;
    let page = state.ledger.job(&caller.principal, id, after, limit).await?;
    let next_cursor = page.next.map(|position| cursor::encode(List::Deliveries, position));
    Ok(Json(DeliveriesPage { items: page.items, next_cursor }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: i64, seconds: f64, cpu: f64) -> SamplePoint {
        let payload = JobMetricsRecorded {
            job_id: Id::new(),
            host: None,
            sample_timestamp: Timestamp(at_ms),
            sample_interval_seconds: seconds,
            metrics: JobMetrics { cpu_utilization_percent: cpu, ..JobMetrics::default() },
        };
        SamplePoint { at: Timestamp(at_ms), payload_json: serde_json::to_vec(&payload).unwrap().into() }
    }

    fn points(series: &SampleSeries) -> Vec<(i64, f64)> {
        series.items.iter().map(|item| (item.t.0, item.cpu_utilization_percent)).collect()
    }

    #[test]
    fn a_step_is_the_mean_of_its_samples_weighted_by_time() {
        let samples = [sample(10_000, 1.0, 10.0), sample(11_000, 3.0, 50.0), sample(15_000, 0.0, 7.0)];
        let series = series(&samples, Some(5)).unwrap();
        assert_eq!(points(&series), [(10_000, 40.0), (15_000, 7.0)]);
    }

    #[test]
    fn without_a_step_there_are_at_most_some_500_points() {
        for seconds in [0, 1, 499, 500, 5_000, 86_399] {
            let samples: Vec<_> = (0..=seconds).step_by(7).map(|s| sample(s * 1000, 1.0, 1.0)).collect();
            let series = series(&samples, None).unwrap();
            assert!(series.items.len() as i64 <= WANTED_POINTS + 1, "{seconds} s: {}", series.items.len());
            assert!(STEPS.contains(&series.step_seconds));
        }
        assert_eq!(super::series(&[], None).unwrap(), SampleSeries { step_seconds: 1, items: Vec::new() });
    }
}
