//! Claims jobs and starts their runs, as many at a time as allowed.
//!
//! The store says what there is to do. A command on the work queue only wakes: claim,
//! then acknowledge, whatever the claim brought; what is no command of a job becomes a dead letter. A slow poll covers for lost commands, and
//! a run that ends makes room for the next claim.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::commands::{self, Wake};
use super::family::boot_id;
use super::process::{Executor, Orders};
use super::report::{Backoff, within};
use super::rundir::WorkDir;
use super::{Claimed, ControlError, JobControl, OptionError, RunnerOptions, orphans};
use crate::broker::Subscriber;
use crate::domain::Id;
use crate::domain::job::RunnerKind;

const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a claim that was under way is awaited when the gateway stops.
const LAST_CLAIM: Duration = Duration::from_secs(1);
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Why a runner cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("runner settings: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Options(Vec<OptionError>),
    #[error("runner work directory {}: {source}", path.display())]
    WorkDir { path: PathBuf, source: io::Error },
    #[error("runner: {0}")]
    System(io::Error),
}

/// Runs the jobs of `process` agents on this machine.
pub struct Runner {
    executor: Arc<Executor>,
    subscriber: Arc<dyn Subscriber>,
    active: Active,
    listening: Arc<AtomicBool>,
}

/// A view of a runner for health and metrics; cheap to clone.
#[derive(Clone)]
pub struct RunnerHandle {
    active: Active,
    listening: Arc<AtomicBool>,
    concurrency: usize,
}

impl RunnerHandle {
    /// Runs that have not been settled.
    pub fn running(&self) -> usize {
        self.active.0.lock().len()
    }

    /// The most there can be.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Is the command queue open? Without it jobs start by the slow poll.
    pub fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }
}

/// A job and its attempt.
type Attempt = (Id, u32);

/// The attempts that run here, and how to tell each that the store has news of its job.
/// There can be two of one job: an earlier one whose end is not settled yet.
#[derive(Clone, Default)]
pub(super) struct Active(Arc<Mutex<BTreeMap<Attempt, Arc<Notify>>>>);

impl Active {
    /// Makes the runs of `job` ask the store, should there be any.
    pub fn hint(&self, job: Id) {
        self.0.lock().range((job, 0)..=(job, u32::MAX)).for_each(|(_, news)| news.notify_one());
    }

    /// `None` when it is in there already.
    fn enter(&self, attempt: Attempt) -> Option<Arc<Notify>> {
        match self.0.lock().entry(attempt) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => Some(vacant.insert(Arc::default()).clone()),
        }
    }

    fn leave(&self, attempt: Attempt) {
        self.0.lock().remove(&attempt);
    }

    fn jobs(&self) -> Vec<Id> {
        self.0.lock().keys().map(|(job, _)| *job).collect()
    }
}

impl Runner {
    /// Checks `options` and opens the work directory. `claimant` names this life of this
    /// instance: no other may ever have used it.
    pub fn new(
        control: Arc<dyn JobControl>,
        subscriber: Arc<dyn Subscriber>,
        claimant: Arc<str>,
        mut options: RunnerOptions,
    ) -> Result<Self, RunnerError> {
        let errors = options.check();
        if !errors.is_empty() {
            return Err(RunnerError::Options(errors));
        }
        let work_dir = WorkDir::open(&options.work_dir)
            .map_err(|source| RunnerError::WorkDir { path: options.work_dir.clone(), source })?;
        // The agents' working directory is another one.
        options.datasets_dir = std::path::absolute(&options.datasets_dir).map_err(RunnerError::System)?;
        let executor = Executor {
            control,
            claimant,
            work_dir,
            boot_id: boot_id().map_err(RunnerError::System)?,
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned()),
            options,
        };
        Ok(Self { executor: Arc::new(executor), subscriber, active: Active::default(), listening: Arc::default() })
    }

    pub fn handle(&self) -> RunnerHandle {
        RunnerHandle {
            active: self.active.clone(),
            listening: self.listening.clone(),
            concurrency: self.executor.options.concurrency,
        }
    }

    /// Ends what an earlier life left behind, then works until `shutdown`; then ends what
    /// runs and returns when all of it is reported or the limit is over. Dropping the
    /// future kills what runs.
    pub async fn run(self, shutdown: CancellationToken) {
        let executor = &self.executor;
        let recovered = orphans::recover(&executor.work_dir, &executor.boot_id, &executor.control, &shutdown).await;
        if let Err(error) = recovered {
            tracing::error!(%error, "cannot look after the runs of an earlier life; their leases will lapse");
        }

        let (room, has_room) = watch::channel(executor.options.concurrency);
        let (wakes, mut woken) = mpsc::channel(1);
        // Aborted when this function ends.
        let mut helpers = JoinSet::new();
        let control = executor.control.clone();
        helpers.spawn(commands::wake(self.subscriber.clone(), control, wakes, has_room, self.listening.clone()));
        helpers.spawn(commands::hints(self.subscriber.clone(), self.active.clone()));
        helpers.spawn(prune(executor.work_dir.clone(), executor.options.keep_runs, self.active.clone()));

        let give_up = CancellationToken::new();
        let mut runs = Runs {
            executor: executor.clone(),
            active: self.active.clone(),
            tasks: JoinSet::new(),
            stop: shutdown.clone(),
            give_up: give_up.clone(),
        };
        self.work(&mut runs, &room, &mut woken, &shutdown).await;

        drop(woken);
        helpers.shutdown().await;
        let deadline = Instant::now() + executor.options.shutdown_limit;
        loop {
            tokio::select! {
                ended = runs.join() => if !ended { return },
                () = sleep_until(deadline) => break,
            }
        }
        give_up.cancel();
        while runs.join().await {}
    }

    async fn work(
        &self,
        runs: &mut Runs,
        room: &watch::Sender<usize>,
        woken: &mut mpsc::Receiver<Wake>,
        shutdown: &CancellationToken,
    ) {
        let options = &self.executor.options;
        let mut backoff = Backoff::new(Duration::from_millis(200), options.poll_interval);
        let mut poll_at = Instant::now();
        // Acknowledged once a claim was made.
        let mut waiting: Vec<oneshot::Sender<Vec<Id>>> = Vec::new();
        loop {
            let free = options.concurrency.saturating_sub(runs.tasks.len());
            room.send_replace(free);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                true = runs.join() => {}
                Some(Wake { answer }) = woken.recv(), if free > 0 && waiting.is_empty() => waiting.push(answer),
                () = sleep_until(poll_at), if free > 0 => {}
            }
            let free = options.concurrency.saturating_sub(runs.tasks.len());
            if free == 0 {
                continue;
            }
            let sent = Instant::now();
            let claim = within(CLAIM_TIMEOUT, self.claim(free));
            let claimed = tokio::select! {
                claimed = claim => claimed,
                () = async { shutdown.cancelled().await; sleep(LAST_CLAIM).await } => return,
            };
            match claimed {
                Ok(jobs) => {
                    for answer in waiting.drain(..) {
                        let _ = answer.send(jobs.iter().map(|job| job.job_id).collect());
                    }
                    for job in jobs {
                        runs.start(job, sent);
                    }
                    backoff.reset();
                    poll_at = Instant::now() + options.poll_interval.mul_f64(0.8 + 0.4 * rand::random::<f64>());
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot claim jobs; trying again");
                    poll_at = Instant::now() + backoff.next();
                }
            }
        }
    }

    async fn claim(&self, max: usize) -> Result<Vec<Claimed>, ControlError> {
        let executor = &self.executor;
        let agents: Vec<Arc<str>> = executor.options.agents.keys().map(|name| name.as_str().into()).collect();
        let lease = executor.options.lease;
        executor.control.claim(RunnerKind::Process, &executor.claimant, &agents, max, lease).await
    }
}

/// The runs under way, each a task.
struct Runs {
    executor: Arc<Executor>,
    active: Active,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    give_up: CancellationToken,
}

impl Runs {
    fn start(&mut self, job: Claimed, claimed_at: Instant) {
        let Some(news) = self.active.enter((job.job_id, job.attempt)) else {
            tracing::error!(job = %job.job_id, attempt = job.attempt, "claimed an attempt that runs here already; it is not started again");
            return;
        };
        let (executor, active) = (self.executor.clone(), self.active.clone());
        let orders = Orders { news, stop: self.stop.clone(), give_up: self.give_up.clone() };
        self.tasks.spawn(async move {
            let _leave = Leave(active, (job.job_id, job.attempt));
            executor.run(&job, claimed_at, &orders).await;
        });
    }

    /// Waits until a run has ended; false at once when there is none. Cancel safe.
    async fn join(&mut self) -> bool {
        match self.tasks.join_next().await {
            None => false,
            Some(ended) => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a run's task broke; its process is killed and its lease will lapse");
                }
                true
            }
        }
    }
}

/// However a run's task ends, its attempt is not active any more.
struct Leave(Active, Attempt);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// Removes the directories of old runs, now and every hour.
async fn prune(work_dir: WorkDir, keep: Duration, active: Active) {
    loop {
        let (work_dir, busy) = (work_dir.clone(), active.jobs());
        match spawn_blocking(move || work_dir.prune(keep, &busy)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(removed)) => tracing::info!(removed, "removed the directories of old runs"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot remove the directories of old runs"),
        }
        sleep(PRUNE_INTERVAL).await;
    }
}
