//! Tells the store about one run, and holds its lease. Nothing here blocks the run: what
//! cannot be told yet is kept within bounds, the latest first.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{ControlError, Directive, JobControl};
use crate::domain::Id;
use crate::domain::job::Report;
use crate::service::Sample;

/// Progress is passed on at most four times a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Samples kept while the store is away.
const MAX_SAMPLES: usize = 600;
/// Samples in one call.
const SAMPLES_A_CALL: usize = 60;
/// The longest any call to the store may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the store wants, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    Run,
    Cancel,
    /// The attempt is not ours any more: end at once and say nothing.
    Abandon,
}

/// What became of the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Accepted,
    Refused,
}

/// The link between one run and the store.
pub(super) struct Reporter {
    control: Arc<dyn JobControl>,
    job: Id,
    attempt: u32,
    claimant: Arc<str>,
    lease: Duration,
    /// When the claim was sent; the lease counts from here.
    claimed_at: Instant,
    /// Somebody hints that the store has news about this job.
    news: Arc<Notify>,
    wanted: watch::Sender<Wanted>,
    outbox: Mutex<Outbox>,
    /// Something is in the outbox.
    filled: Notify,
    closed: CancellationToken,
}

#[derive(Default)]
struct Outbox {
    /// The furthest progress seen.
    progress: f64,
    message: Option<String>,
    /// `progress` has not been passed on.
    unsent: bool,
    samples: VecDeque<Sample>,
    /// How many samples had to make room.
    dropped: u64,
    /// Counts samples taken out at the front, to match an answer with what it was about.
    taken: u64,
}

impl Reporter {
    pub fn new(
        control: Arc<dyn JobControl>,
        (job, attempt): (Id, u32),
        claimant: Arc<str>,
        (claimed_at, lease): (Instant, Duration),
        news: Arc<Notify>,
    ) -> Self {
        Self {
            control,
            job,
            attempt,
            claimant,
            lease,
            claimed_at,
            news,
            wanted: watch::Sender::new(Wanted::Run),
            outbox: Mutex::default(),
            filled: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    /// The run is at `progress` (0 to 1). What does not lead forward is ignored.
    pub fn progress(&self, progress: f64, message: Option<String>) {
        let mut outbox = self.outbox.lock();
        if progress > outbox.progress {
            outbox.progress = progress;
            outbox.message = message;
            outbox.unsent = true;
            self.filled.notify_one();
        }
    }

    /// A measurement; the oldest makes room when the store has been away for long.
    pub fn sample(&self, sample: Sample) {
        let mut outbox = self.outbox.lock();
        if outbox.samples.len() == MAX_SAMPLES {
            outbox.samples.pop_front();
            outbox.taken += 1;
            outbox.dropped += 1;
        }
        outbox.samples.push_back(sample);
        self.filled.notify_one();
    }

    /// Returns once the store wants more than `beyond`. Cancel safe.
    pub async fn wanted(&self, beyond: Wanted) -> Wanted {
        let mut receiver = self.wanted.subscribe();
        match receiver.wait_for(|wanted| *wanted > beyond).await.map(|wanted| *wanted) {
            Ok(wanted) => wanted,
            // Cannot be: the sender is ours.
            Err(_) => pending().await,
        }
    }

    /// Keeps the lease by heartbeats at a third of it, and at once on news. When it is
    /// lost [`Wanted::Abandon`] says so. Never returns.
    pub async fn hold_lease(&self) -> Infallible {
        let interval = self.lease / 3;
        let mut deadline = self.claimed_at + self.lease;
        let mut due = self.claimed_at + interval;
        let mut backoff = Backoff::new(BACKOFF_MIN.min(interval / 4), interval / 2);
        loop {
            tokio::select! {
                () = sleep_until(due.min(deadline)) => {}
                () = self.news.notified() => {}
            }
            let sent = Instant::now();
            if sent >= deadline {
                self.want(Wanted::Abandon, "the lease ended before it could be renewed");
                return pending().await;
            }
            let limit = CALL_TIMEOUT.min(interval).min(deadline - sent);
            let renewal = self.control.heartbeat(self.job, self.attempt, &self.claimant, self.lease);
            match within(limit, renewal).await {
                Ok(directive) => {
                    deadline = sent + self.lease;
                    due = sent + interval;
                    backoff.reset();
                    self.obey(directive);
                }
                Err(ControlError::Refused(reason)) => {
                    self.want(Wanted::Abandon, &reason);
                    return pending().await;
                }
                Err(error) => {
                    tracing::debug!(job = %self.job, %error, "heartbeat failed; trying again");
                    due = Instant::now() + backoff.next();
                }
            }
        }
    }

    /// Passes on progress and samples as they come (what is refused is dropped), until [`Reporter::close`]; then what
    /// samples are left, as far as the store takes them.
    pub async fn updates(&self) {
        let mut progress_due = Instant::now();
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            let closing = self.closed.is_cancelled();
            let (unsent, samples) = {
                let outbox = self.outbox.lock();
                (outbox.unsent, !outbox.samples.is_empty())
            };
            let sent = if unsent && !closing && progress_due <= Instant::now() {
                progress_due = Instant::now() + PROGRESS_INTERVAL;
                self.send_progress().await
            } else if samples {
                self.send_samples().await
            } else if closing {
                return;
            } else {
                tokio::select! {
                    () = self.filled.notified() => {}
                    () = sleep_until(progress_due), if unsent => {}
                    () = self.closed.cancelled() => {}
                }
                continue;
            };
            match sent {
                Ok(directive) => {
                    backoff.reset();
                    self.obey(directive);
                }
                // Whether the attempt is still ours the next heartbeat tells.
                Err(ControlError::Refused(reason)) => {
                    tracing::info!(job = %self.job, attempt = self.attempt, %reason, "an update of a run was refused");
                    self.news.notify_one();
                }
                // The last word tries once more.
                Err(_) if closing => return,
                Err(error) => {
                    tracing::debug!(job = %self.job, %error, "update failed; trying again");
                    tokio::select! { () = sleep(backoff.next()) => {} () = self.closed.cancelled() => {} }
                }
            }
        }
    }

    /// No more updates come: [`Reporter::updates`] returns soon.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Says the last word, until the store has accepted or refused it.
    pub async fn settle(&self, report: Report) -> Settled {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            // Before the end, or they would be late; but the end does not wait for them.
            while !self.outbox.lock().samples.is_empty() && self.send_samples().await.is_ok() {}
            let call = self.control.report(self.job, self.attempt, &self.claimant, report.clone());
            match within(CALL_TIMEOUT, call).await {
                Ok(directive) if directive.gone => return Settled::Refused,
                Ok(_) => return Settled::Accepted,
                Err(ControlError::Refused(reason)) => {
                    tracing::info!(job = %self.job, attempt = self.attempt, %reason, "the end of a run was refused");
                    return Settled::Refused;
                }
                Err(error) => {
                    tracing::warn!(job = %self.job, attempt = self.attempt, %error, "cannot report the end of a run yet");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn send_progress(&self) -> Result<Directive, ControlError> {
        let (progress, reason) = {
            let mut outbox = self.outbox.lock();
            outbox.unsent = false;
            (outbox.progress, outbox.message.clone())
        };
        let report = Report::Running { progress: Some(progress), reason, external_job_id: None };
        let sent = within(CALL_TIMEOUT, self.control.report(self.job, self.attempt, &self.claimant, report)).await;
        if sent.as_ref().is_err_and(ControlError::is_retriable) {
            self.outbox.lock().unsent = true;
        }
        sent
    }

    async fn send_samples(&self) -> Result<Directive, ControlError> {
        let (first, samples) = {
            let mut outbox = self.outbox.lock();
            let dropped = std::mem::take(&mut outbox.dropped);
            if dropped > 0 {
                tracing::warn!(job = %self.job, dropped, "measurements were dropped while the store was away");
            }
            (outbox.taken, outbox.samples.iter().take(SAMPLES_A_CALL).cloned().collect::<Vec<_>>())
        };
        let count = samples.len() as u64;
        let sent = within(CALL_TIMEOUT, self.control.samples(self.job, self.attempt, &self.claimant, samples)).await;
        if !sent.as_ref().is_err_and(ControlError::is_retriable) {
            let mut outbox = self.outbox.lock();
            // Some may have made room meanwhile.
            let left = (first + count).saturating_sub(outbox.taken);
            outbox.samples.drain(..left as usize);
            outbox.taken += left;
        }
        sent
    }

    fn obey(&self, directive: Directive) {
        if directive.gone {
            self.want(Wanted::Abandon, "the store has given it to somebody else or ended it");
        } else if directive.cancel {
            self.want(Wanted::Cancel, "cancel requested");
        }
    }

    fn want(&self, wanted: Wanted, reason: &str) {
        let risen = self.wanted.send_if_modified(|current| {
            let risen = wanted > *current;
            *current = wanted.max(*current);
            risen
        });
        if risen {
            tracing::info!(job = %self.job, attempt = self.attempt, ?wanted, reason, "a run is to end");
        }
    }
}

/// The answer of `call`, or an error after `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    match timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(ControlError::Unavailable(format!("no answer within {limit:?}"))),
    }
}

/// Doubling delays with jitter.
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The delay before the next try: 50 to 100 % of the step.
    pub fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    pub fn reset(&mut self) {
        self.next = self.min;
    }
}
