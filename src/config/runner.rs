use std::path::PathBuf;
use std::time::Duration;

use super::agents::Agents;
use super::setting::{Check, Checks, Parallelism, settings};

settings! {
    /// Running jobs: as child processes of the gateway, and leases for workers elsewhere.
    pub struct Runner in "runner" {
        /// Processes at once; auto: one per CPU.
        concurrency: Parallelism = "auto",
        /// From TERM to KILL when a job is cancelled or runs too long.
        cancel_grace: Duration = "10s",
        /// A running process whose gateway gives no sign of life for this long is lost.
        lease: Duration = "30s",
        /// How often CPU, memory and I/O of a job are measured.
        sample_interval: Duration = "1s",
        /// Directory with the datasets that jobs name.
        datasets_dir: PathBuf = "{data.dir}/datasets",
        /// Directory in which each run gets its working directory.
        work_dir: PathBuf = "{data.dir}/runs",
        /// A job that an external worker claimed is lost without a report for this long.
        external_lease: Duration = "60s",
        /// Cost of one GPU for one hour, where an agent names no other.
        cost_per_gpu_hour_usd: f64 = "0.35",
        /// Keep the agents that ship with the gateway: AlphaCal, ImageReconstruction,
        /// AnomalyDetection and external. A configured agent of the same name replaces one.
        builtin_agents: bool = "true",
        /// More agents: [[runner.agents]] tables in a file (docs/configuration.md), or a
        /// JSON array of the same in the environment.
        agents: Agents = "[]",
    }
}

impl Check for Runner {
    fn check(&self, checks: &mut Checks<'_>) {
        let seconds = Duration::from_secs;
        checks.within("runner.concurrency", self.concurrency.0.get(), 1..=1024);
        checks.within("runner.cancel_grace", self.cancel_grace, Duration::ZERO..=seconds(600));
        checks.within("runner.lease", self.lease, seconds(3)..=seconds(3600));
        checks.within("runner.external_lease", self.external_lease, seconds(3)..=seconds(86_400));
        checks.within("runner.sample_interval", self.sample_interval, Duration::from_millis(100)..=seconds(300));
        checks.within("runner.cost_per_gpu_hour_usd", self.cost_per_gpu_hour_usd, 0.0..=10_000.0);
    }
}
