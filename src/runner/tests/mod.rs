//! The runner with real processes, against a store and a broker that live in memory.

mod control;
mod ends;
mod lease;
mod orphans;
mod output;
mod queue;
mod report;
mod runs;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Runner, RunnerHandle, RunnerOptions};
use crate::domain::job::{Job, JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem};
use crate::domain::{Id, Timestamp};
use control::{Control, Queue};

/// Nothing here may take longer; reached only when a test fails.
const LIMIT: Duration = Duration::from_secs(30);

/// A gateway's directories, its store and its broker.
struct Site {
    dir: tempfile::TempDir,
    control: Arc<Control>,
    queue: Arc<Queue>,
    options: RunnerOptions,
}

/// A runner at work. Dropping it kills what it runs.
struct Working {
    handle: RunnerHandle,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let datasets_dir = dir.path().join("datasets");
        std::fs::create_dir(&datasets_dir).unwrap();
        std::fs::write(datasets_dir.join("data.csv"), "1,2\n").unwrap();
        let options = RunnerOptions {
            concurrency: 4,
            cancel_grace: Duration::from_secs(20),
            lease: Duration::from_secs(30),
            sample_interval: Duration::from_millis(100),
            poll_interval: Duration::from_millis(100),
            shutdown_limit: Duration::from_secs(20),
            datasets_dir,
            work_dir: dir.path().join("runs"),
            ..RunnerOptions::default()
        };
        Self { dir, control: Arc::default(), queue: Arc::default(), options }
    }

    /// With an agent `Agent` that is this shell script. `$here` is the site's directory.
    fn with_script(script: &str) -> Self {
        let mut site = Self::new();
        site.script("Agent", script);
        site
    }

    fn script(&mut self, name: &str, script: &str) {
        let script = format!("here='{}'\n{script}", self.dir.path().display());
        let argv: Vec<OsString> = vec!["/bin/sh".into(), "-c".into(), script.into()];
        self.options.agents.insert(name.to_owned(), argv);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn submit(&self) -> Id {
        self.submit_with(|_| {})
    }

    fn submit_with(&self, change: impl FnOnce(&mut Job)) -> Id {
        let mut job = job();
        change(&mut job);
        self.control.submit(job)
    }

    fn start(&self) -> Working {
        let runner =
            Runner::new(self.control.clone(), self.queue.clone(), "process:test:1".into(), self.options.clone())
                .unwrap();
        let (handle, shutdown) = (runner.handle(), CancellationToken::new());
        let task = crate::task::spawn("runner under test", runner.run(shutdown.clone()));
        Working { handle, shutdown, task }
    }

    /// Runs one job of `Agent` to its end.
    async fn run(&self) -> Job {
        let id = self.submit();
        let working = self.start();
        let job = self.control.ended(id).await;
        working.stop().await;
        job
    }

    /// The first line of a file that an agent writes, once it is there and complete.
    async fn line(&self, name: &str) -> String {
        let path = self.path(name);
        until("a file of an agent", move || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.split_once('\n').map(|(line, _)| line.to_owned())
        })
        .await
    }

    async fn pid(&self, name: &str) -> i32 {
        self.line(name).await.trim().parse().unwrap()
    }
}

impl Working {
    async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, &mut self.task).await.expect("the runner stops").unwrap();
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn job() -> Job {
    let now = Timestamp::now();
    Job {
        id: Id::new(),
        user_id: "ada".into(),
        name: "test".into(),
        agent: "Agent".into(),
        runner: RunnerKind::Process,
        dataset_id: "data.csv".into(),
        tacc_system: TaccSystem::Other,
        external_job_id: None,
        status: JobStatus::Queued,
        progress: None,
        priority: Priority::Normal,
        params: params("{}"),
        resource_request: ResourceRequest::default(),
        result: None,
        error: None,
        attempt: 1,
        retry_count: 0,
        max_retries: 3,
        retry_at: None,
        cancel_requested: false,
        claimant: None,
        lease_until: None,
        estimated_cost_usd: 0.0,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
    }
}

fn params(json: &str) -> Arc<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap().into()
}

/// Looks until there is something to see: for what the kernel does without telling.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Is there a process of this number that is not a zombie?
fn is_alive(pid: i32) -> bool {
    procfs::process::Process::new(pid).and_then(|p| p.stat()).is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The variables in the output of `env`.
fn variables(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}
