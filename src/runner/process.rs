//! The story of one run, from a claim to its last word.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::datasets;
use super::log::RunLog;
use super::output::{self, Spoken};
use super::protocol::{self, JobFile, cut_chars};
use super::report::{Reporter, Settled, Wanted};
use super::rundir::{Record, RunDir, WorkDir};
use super::sample::Sampler;
use super::spawn::{self, Child, Program};
use super::{Claimed, JobControl, RunnerOptions};
use crate::domain::Id;
use crate::domain::job::{JobError, JobResult, Report};

/// Variables an agent gets from the gateway's own environment.
const PASSED_ON: [&str; 5] = ["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"];
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Exit code of an agent that was given bad input.
const EXIT_BAD_INPUT: i32 = 2;
/// From one KILL to the next, for processes that do not die of it.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What all runs of one runner share.
pub(super) struct Executor {
    pub control: Arc<dyn JobControl>,
    pub claimant: Arc<str>,
    pub options: RunnerOptions,
    pub work_dir: WorkDir,
    pub boot_id: String,
    pub host: Option<String>,
}

/// What reaches a run from outside the store.
#[derive(Clone)]
pub(super) struct Orders {
    /// The store may have news about this job: ask it.
    pub news: Arc<Notify>,
    /// The gateway stops: end the run, report it.
    pub stop: CancellationToken,
    /// The time for that is over.
    pub give_up: CancellationToken,
}

/// Why a run was ended before it ended itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Cancel,
    WallTime,
    Stop,
    Abandon,
}

/// What is ready to start.
struct Prepared {
    run_id: Id,
    directory: RunDir,
    program: Program,
}

impl Executor {
    /// Runs `job`, claimed by a call sent at `claimed_at`, and reports it.
    pub async fn run(&self, job: &Claimed, claimed_at: Instant, orders: &Orders) {
        let reporter = Reporter::new(
            self.control.clone(),
            (job.job_id, job.attempt),
            self.claimant.clone(),
            (claimed_at, self.options.lease),
            orders.news.clone(),
        );
        tokio::select! {
            () = self.story(job, &reporter, orders) => {}
            never = reporter.hold_lease() => match never {},
            () = orders.give_up.cancelled() => {
                tracing::warn!(job = %job.job_id, "no time is left to report the end of a run; the next start will");
            }
        }
    }

    async fn story(&self, job: &Claimed, reporter: &Reporter, orders: &Orders) {
        let (run_id, report) = match self.prepare(job).await {
            Err(error) => (None, Some(Report::Failed { error, counted: true })),
            Ok(prepared) => {
                let run_id = prepared.run_id;
                let execute = async {
                    let report = self.execute(job, prepared, reporter, orders).await;
                    reporter.close();
                    report
                };
                let (report, ()) = tokio::join!(execute, reporter.updates());
                (Some(run_id), report)
            }
        };
        if let Some(report) = report {
            let outcome = outcome(&report);
            if reporter.settle(report).await == Settled::Accepted {
                tracing::info!(job = %job.job_id, attempt = job.attempt, agent = %job.agent, outcome, "a run has ended");
            }
        }
        if let Some(run_id) = run_id {
            let work_dir = self.work_dir.clone();
            let removed = spawn_blocking(move || work_dir.remove_record(run_id)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(job = %job.job_id, %error, "cannot remove the record of a run");
            }
        }
    }

    /// Everything short of starting it.
    async fn prepare(&self, job: &Claimed) -> Result<Prepared, JobError> {
        let Some(argv) = self.options.agents.get(&*job.agent) else {
            let message = format!("no command is configured for agent `{}`", cut_chars(&job.agent, 100));
            return Err(job_error("unknown_agent", message, false));
        };
        let (job, argv) = (job.clone(), argv.clone());
        let (root, work_dir) = (self.options.datasets_dir.clone(), self.work_dir.clone());
        let memory_limit_bytes = self.options.memory_limit_bytes;
        let (boot_id, claimant) = (self.boot_id.clone(), self.claimant.clone());
        let prepared = spawn_blocking(move || {
            let dataset = datasets::resolve(&root, &job.dataset_id)
                .map_err(|error| job_error("bad_dataset", error.to_string(), error.is_retriable()))?;
            let record =
                Record { run_id: Id::new(), job_id: job.job_id, attempt: job.attempt, claimant, boot_id, leader: None };
            let run_id = record.run_id;
            let directory = work_dir
                .create_run(job.job_id, job.attempt)
                .and_then(|directory| {
                    directory.write_job(&JobFile::new(&job, &dataset, &directory.output))?;
                    // Before there is a process: whatever happens, it will be found.
                    work_dir.write_record(&record)?;
                    Ok(directory)
                })
                .map_err(|error| job_error("runner_io_error", format!("the run's directory: {error}"), true))?;
            let env = environment(&job, run_id, &directory);
            let program = Program { argv, env, directory: directory.path.clone(), memory_limit_bytes };
            Ok(Prepared { run_id, directory, program })
        });
        prepared.await.unwrap_or_else(|error| Err(job_error("runner_io_error", error.to_string(), true)))
    }

    /// Starts it and sees it through. `None`: there is nothing to say to anybody.
    async fn execute(&self, job: &Claimed, prepared: Prepared, reporter: &Reporter, orders: &Orders) -> Option<Report> {
        let Prepared { run_id, directory, program } = prepared;
        if orders.stop.is_cancelled() {
            return Some(stopped());
        }
        let started = Instant::now();
        let name = program.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (child, stdout, stderr) = match spawn::spawn(program, run_id).await {
            Ok(started) => started,
            Err(error) => {
                // Out of processes or memory may pass; a missing program will not by itself.
                let retriable = !matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound
                        | std::io::ErrorKind::PermissionDenied
                        | std::io::ErrorKind::InvalidInput
                );
                let error = job_error("spawn_failed", format!("cannot start `{name}`: {error}"), retriable);
                return Some(Report::Failed { error, counted: true });
            }
        };
        tracing::info!(job = %job.job_id, attempt = job.attempt, agent = %job.agent, pid = child.identity().pid, "a run has started");
        self.record(job, run_id, &child).await;

        let mut sampler =
            Sampler::new(child.family().clone(), self.host.clone(), cores(job), self.options.sample_interval);
        let log = RunLog::create(&directory.path).await;
        let gone = CancellationToken::new();
        let reading =
            output::read(stdout, stderr, log, gone.clone(), |progress, message| reporter.progress(progress, message));
        let watching = async {
            let cause = self.watch(&child, &mut sampler, started + job.wall_time, reporter, orders).await;
            let exit = child.reap().await;
            gone.cancel();
            (cause, exit)
        };
        let ((cause, exit), spoken) = tokio::join!(watching, reading);
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => {
                let error = job_error("runner_io_error", format!("cannot learn how the process ended: {error}"), true);
                return (cause != Some(Cause::Abandon)).then_some(Report::Failed { error, counted: true });
            }
        };
        let (sample, metrics) = sampler.finish(&exit);
        if let Some(sample) = sample {
            reporter.sample(sample);
        }
        let output = directory.output.clone();
        let size = spawn_blocking(move || {
            directory.tidy();
            datasets::tree_bytes(&directory.output)
        });
        let size = size.await.unwrap_or_default();
        last_word(job, cause, exit.status, spoken, |summary| JobResult {
            output_location: output.to_string_lossy().into_owned(),
            result_size_bytes: i64::try_from(size).unwrap_or(i64::MAX),
            metrics,
            summary,
        })
    }

    /// Writes down who the leader is. A failure is no reason to end the run: the mark in
    /// its environment finds it too.
    async fn record(&self, job: &Claimed, run_id: Id, child: &Child) {
        let record = Record {
            run_id,
            job_id: job.job_id,
            attempt: job.attempt,
            claimant: self.claimant.clone(),
            boot_id: self.boot_id.clone(),
            leader: Some(child.identity()),
        };
        let work_dir = self.work_dir.clone();
        if let Ok(Err(error)) = spawn_blocking(move || work_dir.write_record(&record)).await {
            tracing::warn!(job = %job.job_id, %error, "cannot record the process of a run");
        }
    }

    /// Waits for the end of `child` and brings it about when it must be. Returns why.
    async fn watch(
        &self,
        child: &Child,
        sampler: &mut Sampler,
        wall_time_ends: Instant,
        reporter: &Reporter,
        orders: &Orders,
    ) -> Option<Cause> {
        let mut cause = None;
        let mut kill_at: Option<Instant> = None;
        let mut stopping = false;
        loop {
            let (ending, grace) = tokio::select! {
                biased;
                () = child.exited() => return cause,
                () = sleep_until(kill_at.unwrap_or(wall_time_ends)), if kill_at.is_some() => {
                    (cause, Duration::ZERO)
                }
                wanted = reporter.wanted(if cause.is_none() { Wanted::Run } else { Wanted::Cancel }),
                    if cause != Some(Cause::Abandon) =>
                {
                    match wanted {
                        Wanted::Abandon => (Some(Cause::Abandon), Duration::ZERO),
                        _ => (Some(Cause::Cancel), self.options.cancel_grace),
                    }
                }
                () = orders.stop.cancelled(), if !stopping => {
                    stopping = true;
                    // Half of the time is left for the reports.
                    let grace = self.options.cancel_grace.min(self.options.shutdown_limit / 2);
                    (cause.or(Some(Cause::Stop)), grace)
                }
                () = sleep_until(wall_time_ends), if cause.is_none() => {
                    (Some(Cause::WallTime), self.options.cancel_grace)
                }
                () = sleep_until(sampler.due()) => {
                    if let Some(sample) = sampler.measure().await {
                        reporter.sample(sample);
                    }
                    continue;
                }
            };
            cause = ending;
            let now = Instant::now();
            if grace.is_zero() {
                child.signal(Signal::SIGKILL).await;
                kill_at = Some(now + KILL_AGAIN);
            } else {
                child.signal(Signal::SIGTERM).await;
                kill_at = Some(kill_at.map_or(now + grace, |earlier| earlier.min(now + grace)));
            }
        }
    }
}

/// The cores a job was given: those it asked for, as far as this machine has them.
fn cores(job: &Claimed) -> f64 {
    let request = &job.resource_request;
    let asked = u64::from(request.num_nodes.max(1)) * u64::from(request.cores_per_node.max(1));
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    asked.min(here as u64) as f64
}

/// The whole environment of an agent.
fn environment(job: &Claimed, run_id: Id, directory: &RunDir) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::from([("PATH".into(), DEFAULT_PATH.into())]);
    env.extend(PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))));
    let path = |path: &PathBuf| path.clone().into_os_string();
    env.extend([
        ("HOME".into(), path(&directory.path)),
        ("TMPDIR".into(), path(&directory.tmp)),
        (protocol::ENV_JOB_FILE.into(), path(&directory.job_file)),
        (protocol::ENV_JOB_ID.into(), job.job_id.to_string().into()),
        (protocol::ENV_ATTEMPT.into(), job.attempt.to_string().into()),
        (protocol::ENV_OUTPUT_DIR.into(), path(&directory.output)),
        (protocol::ENV_RUN_ID.into(), run_id.to_string().into()),
    ]);
    env.into_iter().collect()
}

/// What a run that ended with `status` comes to.
fn last_word(
    job: &Claimed,
    cause: Option<Cause>,
    status: ExitStatus,
    spoken: Spoken,
    result: impl FnOnce(serde_json::Map<String, serde_json::Value>) -> JobResult,
) -> Option<Report> {
    let finished = status.success() && matches!(spoken.result, Some(Ok(_))) && spoken.error.is_none();
    match cause {
        Some(Cause::Abandon) => return None,
        Some(Cause::Cancel) => return Some(Report::Cancelled { reason: "cancelled while running".to_owned() }),
        Some(Cause::WallTime) => {
            let message = format!("ran longer than its wall time of {} s and was ended", job.wall_time.as_secs_f64());
            return Some(failed(job_error("wall_time_exceeded", message, false), status, spoken));
        }
        // It was done all the same.
        Some(Cause::Stop) if finished => {}
        Some(Cause::Stop) => return Some(stopped()),
        None => {}
    }
    if let Some(signal) = status.signal() {
        let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string());
        let error = job_error("killed_by_signal", format!("the agent was ended by {name}"), true);
        return Some(failed(error, status, spoken));
    }
    let code = status.code().unwrap_or_default();
    // What an agent says of its failure counts for more than its exit code.
    if let Some(error) = spoken.error.clone() {
        let retriable = code != EXIT_BAD_INPUT && error.retriable.unwrap_or(true);
        return Some(failed(job_error(&error.code, error.message, retriable), status, spoken));
    }
    match (code, spoken.result) {
        (0, Some(Err(reason))) => {
            let spoken = Spoken { result: None, ..spoken };
            Some(failed(job_error("bad_result", reason, false), status, spoken))
        }
        // Some agents only write files.
        (0, summary) => {
            let summary = summary.and_then(Result::ok).unwrap_or_default();
            Some(Report::Completed { result: Box::new(result(summary)) })
        }
        (EXIT_BAD_INPUT, _) => {
            let message = "the agent refused its input (exit code 2) without saying why".to_owned();
            let spoken = Spoken { result: None, ..spoken };
            Some(failed(job_error("bad_input", message, false), status, spoken))
        }
        (code, _) => {
            let message = format!("the agent ended with exit code {code}");
            let spoken = Spoken { result: None, ..spoken };
            Some(failed(job_error("exit_nonzero", message, true), status, spoken))
        }
    }
}

fn failed(mut error: JobError, status: ExitStatus, spoken: Spoken) -> Report {
    error.exit_code = status.code();
    error.stack_trace = (!spoken.stderr_tail.is_empty()).then_some(spoken.stderr_tail);
    Report::Failed { error, counted: true }
}

/// Not the job's fault: it does not use up a retry.
fn stopped() -> Report {
    let error = job_error("runner_stopped", "the gateway was stopped while the job ran".to_owned(), true);
    Report::Failed { error, counted: false }
}

fn job_error(code: &str, message: String, retriable: bool) -> JobError {
    JobError { code: code.to_owned(), message, retriable, exit_code: None, stack_trace: None }
}

fn outcome(report: &Report) -> String {
    match report {
        Report::Running { .. } => "running".to_owned(),
        Report::Completed { .. } => "completed".to_owned(),
        Report::Failed { error, .. } => format!("failed: {}", error.code),
        Report::Cancelled { .. } => "cancelled".to_owned(),
    }
}
