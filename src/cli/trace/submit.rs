//! The users: every job is submitted at its time in the log divided by the speed-up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::calls::Calls;
use super::swf::{End, SwfJob};
use crate::domain::Id;

/// What every job of a run has in common.
pub struct Run {
    /// Part of every Idempotency-Key: another run is another set of jobs.
    pub id: Id,
    /// The log's file name, for names and dataset ids.
    pub log: String,
    pub agent: String,
    pub speedup: f64,
    pub start: Instant,
}

impl Run {
    /// `seconds` of the log in real time.
    pub fn scaled(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64((seconds / self.speedup).max(0.0)).unwrap_or(Duration::MAX)
    }

    fn body(&self, job: &SwfJob) -> Value {
        let gigabytes = |kb: f64| (kb * f64::from(job.processors) / 1e6).clamp(0.0, 1_000_000.0);
        let wall_seconds = job.requested_seconds.unwrap_or(job.run).max(job.run);
        json!({
            "agent": self.agent,
            "name": format!("{} #{}", self.log, job.number),
            "dataset_id": format!("{}/application-{}", self.log, job.application),
            "max_retries": 0,
            "params": { "swf": Played::of(job, self) },
            "resource_request": {
                "num_nodes": job.processors,
                "cores_per_node": 1,
                "gpu_count_total": 0,
                "memory_gb": job.requested_memory_kb.or(job.memory_kb).map_or(1.0, gigabytes),
                "wall_time_minutes": (wall_seconds / 60.0).ceil().clamp(1.0, 525_600.0) as u32,
            },
        })
    }
}

/// What the cluster needs to play a job; travels in its params, because the cluster may
/// claim it before the submitter has read its 201.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct Played {
    pub trace: Id,
    pub number: u64,
    /// Real seconds, scaled: from the start of the run to the job's start. The log may
    /// know that it waited.
    pub starts_at: Option<f64>,
    /// Real seconds, scaled.
    pub runs: f64,
    /// `completed`, `failed` or `cancelled`.
    pub end: String,
    pub cpu_percent: f64,
    pub memory_gb: f64,
}

impl Played {
    fn of(job: &SwfJob, run: &Run) -> Self {
        let end = match job.end {
            End::Completed | End::Unknown => "completed",
            End::Failed => "failed",
            End::Cancelled => "cancelled",
        };
        // Its processors are the job's alone: without a measurement they count as busy.
        let measured = job.cpu.filter(|_| job.run > 0.0).map(|cpu| (cpu / job.run * 100.0).clamp(0.0, 100.0));
        Self {
            trace: run.id,
            number: job.number,
            starts_at: job.wait.map(|wait| run.scaled(job.submit + wait).as_secs_f64()),
            runs: run.scaled(job.run).as_secs_f64(),
            end: end.to_owned(),
            cpu_percent: measured.unwrap_or(100.0),
            memory_gb: job.memory_kb.map_or(0.0, |kb| kb * f64::from(job.processors) / 1e6),
        }
    }
}

/// Submits all `jobs`, each at its time; returns when the last has its answer. `stop` ends
/// it early, with what is in flight still answered.
pub async fn all(
    run: Arc<Run>,
    jobs: Vec<SwfJob>,
    calls: Calls,
    in_flight: usize,
    board: Arc<Board>,
    stop: CancellationToken,
) {
    // The calls have a bound of their own; this one keeps tasks from piling up.
    let room = Arc::new(Semaphore::new(in_flight));
    let mut sent = JoinSet::new();
    let first = jobs.first().map_or(0.0, |job| job.submit);
    for mut job in jobs {
        job.submit -= first;
        let due = run.start + run.scaled(job.submit);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = stop.cancelled() => break,
        }
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit,
            () = stop.cancelled() => break,
        };
        board.lag.record(Instant::now().saturating_duration_since(due));
        let (run, calls, board) = (run.clone(), calls.clone(), board.clone());
        sent.spawn(async move {
            one(&run, &job, &calls, &board).await;
            drop(permit);
        });
        while sent.try_join_next().is_some() {}
    }
    while sent.join_next().await.is_some() {}
}

async fn one(run: &Run, job: &SwfJob, calls: &Calls, board: &Board) {
    #[derive(Deserialize)]
    struct Accepted {
        id: Id,
    }
    let body = run.body(job);
    let key = format!("trace-{}-{}", run.id, job.number);
    let user = super::user_name(job.user);
    let posted_at = Instant::now();
    let answer =
        calls.answered(|api| api.post("jobs", &body).header("idempotency-key", &key).header("x-on-behalf-of", &user));
    match answer.await {
        Ok(body) => match serde_json::from_slice::<Accepted>(&body) {
            Ok(accepted) => board.job_accepted(accepted.id, job.user, posted_at, run.start),
            Err(error) => refuse(board, format!("POST /jobs answers what cannot be read: {error}")),
        },
        Err(error) => refuse(board, format!("POST /jobs: {error}")),
    }
}

fn refuse(board: &Board, why: String) {
    board.refused.fetch_add(1, Ordering::Relaxed);
    board.complain(why);
}
