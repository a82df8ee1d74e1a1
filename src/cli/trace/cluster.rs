//! The cluster: claims jobs as a worker does, and reports starts, samples and ends at
//! their scaled times, as prologue and epilogue would.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::calls::Calls;
use super::submit::{Played, Run};
use crate::client::{Api, ApiError};
use crate::domain::{Id, Timestamp};

/// The most jobs of one claim.
const CLAIM_MAX: usize = 100;
/// Between claims that found nothing while jobs are known to wait.
const EMPTY_PAUSE: Duration = Duration::from_millis(20);
/// Between claims when nothing is known to wait.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// A heartbeat is due when this much of the lease is left at most.
const LEASE_MARGIN: f64 = 0.6;

#[derive(Deserialize)]
struct Claimed {
    items: Vec<Claim>,
}

#[derive(Deserialize)]
struct Claim {
    id: Id,
    attempt: u32,
    lease_until: Option<Timestamp>,
    #[serde(default)]
    cancel: bool,
    #[serde(default)]
    params: Value,
}

/// What every answer of the worker API carries.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    cancel: bool,
    lease_until: Option<Timestamp>,
}

pub struct Cluster {
    pub run: Arc<Run>,
    pub calls: Calls,
    /// Jobs that run at the same time.
    pub slots: usize,
    /// Samples of each job.
    pub samples: u32,
    pub board: Arc<Board>,
}

impl Cluster {
    /// Claims and plays until `stop`; then what has been claimed is played to its end.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.slots));
        let mut playing = JoinSet::new();
        while !stop.is_cancelled() {
            while playing.try_join_next().is_some() {}
            let first = tokio::select! {
                permit = slots.clone().acquire_owned() => permit,
                () = stop.cancelled() => break,
            };
            drop(first);
            let max = slots.available_permits().clamp(1, CLAIM_MAX);
            let claims = self.claim(max).await;
            let found = claims.len();
            for claim in claims {
                // Not more than were free: this does not wait.
                let permit = slots.clone().acquire_owned().await;
                let cluster = self.clone();
                playing.spawn(async move {
                    cluster.play(claim).await;
                    drop(permit);
                });
            }
            if found == 0 {
                let waiting = self.board.submitted.load(Ordering::Relaxed) > self.board.claimed.load(Ordering::Relaxed);
                let pause = if waiting { EMPTY_PAUSE } else { IDLE_PAUSE };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.board.accepted.notified(), if !waiting => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        while playing.join_next().await.is_some() {}
    }

    async fn claim(&self, max: usize) -> Vec<Claim> {
        let body = json!({ "agents": [self.run.agent], "max": max });
        let answer = self.calls.answered(|api| api.post("worker/claim", &body)).await;
        let claimed = answer.map(|body| serde_json::from_slice::<Claimed>(&body));
        match claimed {
            Ok(Ok(claimed)) => claimed.items,
            Ok(Err(error)) => {
                self.refused(format!("POST /worker/claim answers what cannot be read: {error}"));
                Vec::new()
            }
            Err(error) => {
                self.refused(format!("POST /worker/claim: {error}"));
                Vec::new()
            }
        }
    }

    async fn play(&self, claim: Claim) {
        let played = claim.params.get("swf").cloned().map(serde_json::from_value::<Played>);
        let Some(Ok(played)) = played else {
            // Somebody's real job: whatever is reported of it here would be a lie.
            self.board.foreign.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut shift = Shift {
            cluster: self,
            id: claim.id,
            attempt: claim.attempt,
            lease_until: claim.lease_until.unwrap_or_else(Timestamp::now),
        };
        if played.trace == self.run.id {
            self.board.claimed.fetch_add(1, Ordering::Relaxed);
        }
        if let Err(error) = shift.work(&played, claim.cancel).await {
            self.refused(format!("worker report: {error}"));
        }
        self.board.job_ended(claim.id);
    }

    fn refused(&self, why: String) {
        self.board.worker_refusals.fetch_add(1, Ordering::Relaxed);
        self.board.complain(why);
    }
}

/// One job's run.
struct Shift<'a> {
    cluster: &'a Cluster,
    id: Id,
    attempt: u32,
    lease_until: Timestamp,
}

/// The gateway wants the job to stop.
struct Cancelled;

impl Shift<'_> {
    async fn work(&mut self, played: &Played, cancel: bool) -> Result<(), ApiError> {
        match self.until_the_end(played, cancel).await? {
            Ok(()) => self.status(self.end(played)).await?,
            Err(Cancelled) => self.status(json!({ "status": "CANCELLED", "reason": "cancelled on request" })).await?,
        };
        Ok(())
    }

    /// The job up to its end, which is not reported yet.
    async fn until_the_end(&mut self, played: &Played, cancel: bool) -> Result<Result<(), Cancelled>, ApiError> {
        if cancel {
            return Ok(Err(Cancelled));
        }
        if let Some(seconds) = played.starts_at.filter(|_| played.trace == self.cluster.run.id) {
            let start = self.cluster.run.start + Duration::try_from_secs_f64(seconds).unwrap_or_default();
            if self.stay_until(start).await? {
                return Ok(Err(Cancelled));
            }
        }
        let started = Instant::now();
        if self.status(json!({ "status": "RUNNING" })).await?.cancel {
            return Ok(Err(Cancelled));
        }
        let runs = Duration::try_from_secs_f64(played.runs).unwrap_or_default();
        let samples = self.cluster.samples;
        for sample in 1..=samples {
            if self.stay_until(started + runs.mul_f64(f64::from(sample) / f64::from(samples + 1))).await? {
                return Ok(Err(Cancelled));
            }
            if self.sample(played, runs.as_secs_f64() / f64::from(samples + 1)).await?.cancel {
                return Ok(Err(Cancelled));
            }
        }
        let cancelled = self.stay_until(started + runs).await?;
        Ok(if cancelled { Err(Cancelled) } else { Ok(()) })
    }

    /// Waits, with heartbeats that keep the lease; true: the gateway wants the job to stop.
    async fn stay_until(&mut self, until: Instant) -> Result<bool, ApiError> {
        loop {
            let lease_ms = self.lease_until.ms_since(Timestamp::now());
            let lease = Duration::from_millis(u64::try_from(lease_ms).unwrap_or(0));
            let beat = Instant::now() + lease.mul_f64(1.0 - LEASE_MARGIN).max(Duration::from_millis(100));
            if until <= beat {
                sleep_until(until).await;
                return Ok(false);
            }
            sleep_until(beat).await;
            if self.report("heartbeat", json!({})).await?.cancel {
                return Ok(true);
            }
        }
    }

    fn end(&self, played: &Played) -> Value {
        match played.end.as_str() {
            "failed" => json!({
                "status": "FAILED",
                "error": { "code": "failed_in_log", "message": "the log says that it failed", "retriable": false },
            }),
            "cancelled" => json!({ "status": "CANCELLED", "reason": "the log says that it was cancelled" }),
            _ => json!({
                "status": "COMPLETED",
                "result": {
                    "output_location": format!("swf:{}/{}", self.cluster.run.log, played.number),
                    "result_size_bytes": 0,
                    "metrics": { "cpu_utilization_percent": played.cpu_percent, "memory_used_gb": played.memory_gb },
                },
            }),
        }
    }

    async fn sample(&mut self, played: &Played, interval: f64) -> Result<Told, ApiError> {
        let sample = json!({
            "sample_timestamp": Timestamp::now(),
            "sample_interval_seconds": interval.max(0.001),
            "metrics": { "cpu_utilization_percent": played.cpu_percent, "system_memory_used_gb": played.memory_gb },
        });
        self.report("metrics", json!({ "samples": [sample] })).await
    }

    async fn status(&mut self, body: Value) -> Result<Told, ApiError> {
        self.report("status", body).await
    }

    async fn report(&mut self, what: &str, mut body: Value) -> Result<Told, ApiError> {
        body["attempt"] = json!(self.attempt);
        let path = Api::path(&["jobs", &self.id.to_string(), what]);
        let answer = self.cluster.calls.answered(|api| api.post(&path, &body)).await?;
        // 202 with nothing to say is fine, too.
        let told: Told = serde_json::from_slice(&answer).unwrap_or_default();
        if let Some(until) = told.lease_until {
            self.lease_until = until;
        } else {
            // Every report extends the lease; by how much, only the answer could tell.
            self.lease_until = self.lease_until.max(Timestamp::now().plus_ms(30_000));
        }
        Ok(told)
    }
}
