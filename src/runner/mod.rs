//! Runs the jobs of `process` agents: claims them in the store, starts the configured
//! command for each, watches it, and reports what it does.
//!
//! Top to bottom: [`worker`] claims and starts runs, `process` is the story of one run,
//! `report` tells the store and holds the lease, `spawn` and `family` handle real
//! processes, `output` reads what they write, `sample` measures them, `rundir` keeps
//! what a restart must know, `orphans` uses it. [`datasets`] also serves the HTTP layer.
//!
//! # The agent contract
//!
//! An agent is any program, in any language, started as its configured argv. What a user
//! sent is only ever data in a file, never part of the command line.
//!
//! **Environment**: nothing of the gateway's own but `PATH`, `LANG`, `LC_*` and `TZ`;
//! `HOME` and the working directory are the run's own directory, `TMPDIR` is in it.
//! `GATEWAY_JOB_FILE` is the path of the job file, `GATEWAY_JOB_ID`, `GATEWAY_ATTEMPT` and
//! `GATEWAY_OUTPUT_DIR` repeat three of its fields for shell scripts. `GATEWAY_RUN_ID` marks
//! the processes of a run: children should keep it.
//!
//! It starts in a session of its own, yields to the gateway (niceness 5), can gain no rights
//! (no setuid programs), writes no core dumps, and has the configured memory limit, if any.
//!
//! **Job file**: JSON `{job_id, attempt, agent, dataset_id, dataset_path, params,
//! resource_request, output_dir, wall_time_seconds}`. Fields may be added.
//!
//! **Standard input** is empty. **Standard output** is JSON lines:
//! - `{"progress": 0.25, "message": "fitting gains"}`, any number of times; 0 to 1, only
//!   forward (what is not is ignored), at most four a second are passed on;
//! - `{"result": {...}}` once, last, when the job succeeded; an object of at most 256 kB;
//! - `{"error": {"code": "...", "message": "...", "retriable": false}}` once, last, when it failed.
//!
//! Any other line is kept as log, and so is **standard error**: `agent.log` in the run's
//! directory, lines cut at 64 kB, about the last MiB kept. A program that floods its
//! output is slowed down by its own pipe.
//!
//! **Exit code**: 0 is success. 2 is bad input: the job fails for good. Anything else is a
//! failure that may be retried unless the error line says otherwise; so is a signal.
//!
//! **The end**: TERM asks the whole process group to end (cancel, time limit, shutdown),
//! KILL follows after a grace. A run is over when its first process ends: what it leaves
//! behind is killed. Output files should appear whole: write another name, then rename.

mod commands;
pub mod control;
pub mod datasets;
mod family;
mod log;
mod options;
mod orphans;
mod output;
mod process;
mod protocol;
mod quarantine;
mod report;
mod rundir;
mod sample;
mod spawn;
#[cfg(test)]
mod tests;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;

use crate::domain::Id;
use crate::domain::job::{Job, Report, ResourceRequest, RunnerKind};

pub use crate::service::Sample;
pub use commands::CONSUMER;
pub use options::{OptionError, RunnerOptions};
pub use quarantine::DeadCommand;
pub use worker::{Runner, RunnerError, RunnerHandle};

/// What a runner needs of the store; `control` gives it for the service. Every call may be made
/// again after an error or a time-out: implementations treat repeats as such.
#[async_trait]
pub trait JobControl: Send + Sync + 'static {
    /// Claims up to `max` of the best QUEUED jobs of `kind` and these agents (priority,
    /// then age) as RUNNING for `claimant` until `lease` from now.
    async fn claim(
        &self,
        kind: RunnerKind,
        claimant: &str,
        agents: &[Arc<str>],
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Claimed>, ControlError>;

    /// The claimant is alive: its lease ends `lease` from now.
    async fn heartbeat(
        &self,
        job: Id,
        attempt: u32,
        claimant: &str,
        lease: Duration,
    ) -> Result<Directive, ControlError>;

    /// What became of the attempt, or how far it is.
    async fn report(&self, job: Id, attempt: u32, claimant: &str, report: Report) -> Result<Directive, ControlError>;

    /// Measurements, oldest first. They may overlap with ones sent before when that
    /// call's answer was lost.
    async fn samples(
        &self,
        job: Id,
        attempt: u32,
        claimant: &str,
        samples: Vec<Sample>,
    ) -> Result<Directive, ControlError>;

    /// An earlier life of this runner held the attempt as `claimant` and nothing of it is
    /// left: FAILED with `runner_lost`, retriable, not counted.
    async fn orphaned(&self, job: Id, attempt: u32, claimant: &str) -> Result<(), ControlError>;

    /// Jobs by id; those that do not exist are left out.
    async fn jobs(&self, ids: &[Id]) -> Result<Vec<Job>, ControlError>;

    /// Keeps commands that no runner can ever serve as dead letters: committed when it returns.
    async fn bury(&self, commands: &[DeadCommand]) -> Result<(), ControlError>;
}

/// A job that is ours to run.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub job_id: Id,
    pub attempt: u32,
    pub agent: Arc<str>,
    pub dataset_id: String,
    /// The agent's parameters, a JSON object.
    pub params: Arc<RawValue>,
    pub resource_request: ResourceRequest,
    /// The run is ended when it takes longer.
    pub wall_time: Duration,
}

impl From<&Job> for Claimed {
    fn from(job: &Job) -> Self {
        Self {
            job_id: job.id,
            attempt: job.attempt,
            agent: job.agent.clone(),
            dataset_id: job.dataset_id.clone(),
            params: job.params.clone(),
            resource_request: job.resource_request.clone(),
            wall_time: Duration::from_secs(u64::from(job.resource_request.wall_time_minutes) * 60),
        }
    }
}

/// What the store wants of a claimant; part of every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directive {
    /// Somebody wants the job to stop.
    pub cancel: bool,
    /// The attempt is not this claimant's any more: stop and say nothing.
    pub gone: bool,
}

/// Why a call to the store did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It never will (404, 409, 422): no such job, a stale attempt, another claimant, ended.
    #[error("refused: {0}")]
    Refused(String),
    /// The store is away, busy or slow; the same call may be made again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

impl ControlError {
    /// May the same call succeed later?
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
