//! A store in memory that runs the real state machine, and a work queue in memory. Both
//! remember what was asked of them and can be told to fail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::LIMIT;
use crate::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Source, Subscriber, Subscription, SubscriptionLost,
};
use crate::domain::event::Headers;
use crate::domain::job::{Job, JobCommand, JobError, JobStatus, Report, ResourceRequest, RunnerKind, decide};
use crate::domain::payload::{CancelledBy, Payload, SubmitJobRequested};
use crate::domain::{Id, Timestamp};
use crate::runner::{Claimed, ControlError, DeadCommand, Directive, JobControl};
use crate::service::Sample;

#[derive(Default)]
pub struct State {
    pub jobs: BTreeMap<Id, Job>,
    /// Accepted reports, in order.
    pub reports: Vec<(Id, Report)>,
    pub samples: BTreeMap<Id, Vec<Sample>>,
    pub orphaned: Vec<(Id, u32, String)>,
    /// Why commands were dead letters, in order.
    pub dead: Vec<String>,
    pub heartbeats: usize,
    pub claims: usize,
    /// Calls of each kind that were turned away.
    pub turned_away: usize,
    /// The most jobs that were RUNNING at once.
    pub most_running: usize,
    /// What these calls answer instead.
    pub claims_fail: Option<ControlError>,
    pub heartbeats_fail: Option<ControlError>,
    pub reports_fail: Option<ControlError>,
    pub burials_fail: Option<ControlError>,
}

impl State {
    pub fn running(&self) -> usize {
        self.jobs.values().filter(|job| job.status == JobStatus::Running).count()
    }

    /// The progress reports of a job.
    pub fn progress(&self, id: Id) -> Vec<f64> {
        let of_job = self.reports.iter().filter(|(job, _)| *job == id);
        of_job
            .filter_map(|(_, report)| match report {
                Report::Running { progress, .. } => *progress,
                _ => None,
            })
            .collect()
    }

    fn apply(&mut self, id: Id, command: &JobCommand) -> Result<Directive, ControlError> {
        let decision = decide(self.jobs.get(&id), command, Timestamp::now(), 0.0)
            .map_err(|refusal| ControlError::Refused(refusal.to_string()))?;
        let job = decision.job;
        let directive = Directive { cancel: job.cancel_requested, gone: job.lease_until.is_none() };
        self.jobs.insert(id, job);
        self.most_running = self.most_running.max(self.running());
        Ok(directive)
    }

    fn fail(&mut self, with: Option<ControlError>) -> Result<(), ControlError> {
        match with {
            None => Ok(()),
            Some(error) => {
                self.turned_away += 1;
                Err(error)
            }
        }
    }
}

pub struct Control {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Default for Control {
    fn default() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Control {
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.state.lock());
        self.changes.send_modify(|version| *version += 1);
        result
    }

    /// Waits for `look` to find something; it is asked after every change.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        let found = timeout(LIMIT, async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = look(&self.state.lock()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; jobs: {:#?}", self.state.lock().jobs.values()),
        }
    }

    pub fn submit(&self, job: Job) -> Id {
        let id = job.id;
        self.with(|state| state.jobs.insert(id, job));
        id
    }

    pub fn job(&self, id: Id) -> Job {
        self.state.lock().jobs[&id].clone()
    }

    pub fn cancel(&self, id: Id) {
        let command = JobCommand::Cancel { by: CancelledBy::User, reason: "test".into() };
        self.with(|state| state.apply(id, &command)).unwrap();
    }

    pub async fn has_status(&self, id: Id, status: JobStatus) -> Job {
        self.until(status.as_str(), |state| Some(&state.jobs[&id]).filter(|job| job.status == status).cloned()).await
    }

    pub async fn ended(&self, id: Id) -> Job {
        self.until("the end of a job", |state| Some(&state.jobs[&id]).filter(|job| job.status.is_terminal()).cloned())
            .await
    }
}

#[async_trait]
impl JobControl for Control {
    async fn claim(
        &self,
        kind: RunnerKind,
        claimant: &str,
        agents: &[Arc<str>],
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Claimed>, ControlError> {
        self.with(|state| {
            state.claims += 1;
            state.fail(state.claims_fail.clone())?;
            let fits =
                |job: &&Job| job.status == JobStatus::Queued && job.runner == kind && agents.contains(&job.agent);
            let mut best: Vec<Job> = state.jobs.values().filter(fits).cloned().collect();
            best.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.id));
            best.truncate(max);
            let lease_until = Timestamp::now().plus_ms(lease.as_millis() as i64);
            let command = JobCommand::Claim { claimant: claimant.into(), lease_until, start: true };
            for job in &best {
                state.apply(job.id, &command)?;
            }
            Ok(best.iter().map(wall_time_in_params).collect())
        })
    }

    async fn heartbeat(
        &self,
        job: Id,
        attempt: u32,
        claimant: &str,
        lease: Duration,
    ) -> Result<Directive, ControlError> {
        self.with(|state| {
            state.fail(state.heartbeats_fail.clone())?;
            state.heartbeats += 1;
            let lease_until = Timestamp::now().plus_ms(lease.as_millis() as i64);
            state.apply(job, &JobCommand::Heartbeat { claimant: claimant.into(), attempt, lease_until })
        })
    }

    async fn report(&self, job: Id, attempt: u32, claimant: &str, report: Report) -> Result<Directive, ControlError> {
        self.with(|state| {
            state.fail(state.reports_fail.clone())?;
            let last = !matches!(report, Report::Running { .. });
            let command = JobCommand::Report { claimant: claimant.into(), attempt, report: report.clone() };
            let directive = state.apply(job, &command)?;
            state.reports.push((job, report));
            Ok(Directive { gone: directive.gone && !last, ..directive })
        })
    }

    async fn samples(
        &self,
        job: Id,
        attempt: u32,
        _claimant: &str,
        samples: Vec<Sample>,
    ) -> Result<Directive, ControlError> {
        self.with(|state| {
            state.fail(state.reports_fail.clone())?;
            let current = &state.jobs[&job];
            if current.attempt != attempt || current.status != JobStatus::Running {
                return Err(ControlError::Refused("not running".into()));
            }
            let cancel = current.cancel_requested;
            state.samples.entry(job).or_default().extend(samples);
            Ok(Directive { cancel, gone: false })
        })
    }

    async fn orphaned(&self, job: Id, attempt: u32, claimant: &str) -> Result<(), ControlError> {
        self.with(|state| {
            state.fail(state.reports_fail.clone())?;
            state.orphaned.push((job, attempt, claimant.to_string()));
            if !state.jobs.contains_key(&job) {
                return Err(ControlError::Refused("no such job".into()));
            }
            let error = JobError {
                code: "runner_lost".into(),
                message: String::new(),
                retriable: true,
                exit_code: None,
                stack_trace: None,
            };
            let report = Report::Failed { error, counted: false };
            state.apply(job, &JobCommand::Report { claimant: claimant.into(), attempt, report }).map(drop)
        })
    }

    async fn jobs(&self, ids: &[Id]) -> Result<Vec<Job>, ControlError> {
        Ok(self.with(|state| ids.iter().filter_map(|id| state.jobs.get(id).cloned()).collect()))
    }

    async fn bury(&self, commands: &[DeadCommand]) -> Result<(), ControlError> {
        self.with(|state| {
            state.fail(state.burials_fail.clone())?;
            state.dead.extend(commands.iter().map(|command| command.why.clone()));
            Ok(())
        })
    }
}

/// Jobs have a wall time in minutes, which no test can wait for: a job with the parameter
/// `wall_time_ms` has that one.
fn wall_time_in_params(job: &Job) -> Claimed {
    let mut claimed = Claimed::from(job);
    let params: serde_json::Value = serde_json::from_str(job.params.get()).unwrap();
    if let Some(ms) = params.get("wall_time_ms").and_then(serde_json::Value::as_u64) {
        claimed.wall_time = Duration::from_millis(ms);
    }
    claimed
}

/// Both command streams. A subscriber gets what is published from then on.
pub struct Queue {
    state: Arc<Mutex<QueueState>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct QueueState {
    /// By filter.
    waiting: BTreeMap<Arc<str>, VecDeque<Delivery>>,
    subscribers: BTreeMap<Arc<str>, usize>,
    acked: Vec<AckToken>,
    terminated: Vec<(AckToken, Arc<str>)>,
    next: u64,
    lost: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { state: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }
}

impl Queue {
    /// Publishes the command of a process job of `Agent`.
    pub fn publish(&self, subject: &str, job: Id) -> AckToken {
        self.publish_changed(subject, job, |_| {})
    }

    /// As [`Queue::publish`], with the command changed.
    pub fn publish_changed(&self, subject: &str, job: Id, change: impl FnOnce(&mut SubmitJobRequested)) -> AckToken {
        let mut command = SubmitJobRequested {
            job_id: job,
            attempt: 1,
            runner: RunnerKind::Process,
            agent: "Agent".into(),
            dataset_id: "data.csv".into(),
            params: "{}".into(),
            resource_request: ResourceRequest::default(),
            wall_time_minutes: 1,
        };
        change(&mut command);
        self.publish_raw(subject, Ok(headers(job)), serde_json::to_vec(&command).unwrap().into())
    }

    /// Publishes what anybody may.
    pub fn publish_raw(&self, subject: &str, headers: Result<Headers, String>, body: Bytes) -> AckToken {
        let mut state = self.state.lock();
        state.next += 1;
        let number = state.next;
        let token = AckToken(number);
        state.waiting.entry(subject.into()).or_default().push_back(Delivery {
            headers: headers.map(Arc::new),
            encoding: Encoding::Json,
            body,
            position: Position { log: subject.into(), partition: 0, offset: Some(number as i64) },
            key: subject.into(),
            token,
            redelivered: false,
        });
        drop(state);
        self.changes.send_modify(|version| *version += 1);
        token
    }

    pub fn is_acked(&self, token: AckToken) -> bool {
        self.state.lock().acked.contains(&token)
    }

    pub async fn acked(&self, token: AckToken) {
        self.until("an acknowledgement", |state| state.acked.contains(&token)).await;
    }

    /// The reason it was ended with.
    pub async fn terminated(&self, token: AckToken) -> Arc<str> {
        let reason =
            |state: &QueueState| state.terminated.iter().find(|(of, _)| *of == token).map(|(_, why)| why.clone());
        self.until("a termination", |state| reason(state).is_some()).await;
        reason(&self.state.lock()).unwrap()
    }

    pub fn is_terminated(&self, token: AckToken) -> bool {
        self.state.lock().terminated.iter().any(|(of, _)| *of == token)
    }

    pub async fn subscribed(&self, subject: &str) {
        self.until("a subscription", |state| state.subscribers.get(subject).is_some_and(|count| *count > 0)).await;
    }

    /// Breaks every subscription once.
    pub fn lose(&self) {
        self.state.lock().lost = true;
        self.changes.send_modify(|version| *version += 1);
    }

    async fn until(&self, what: &str, mut look: impl FnMut(&QueueState) -> bool) {
        let mut changes = self.changes.subscribe();
        let found = timeout(LIMIT, changes.wait_for(|_| look(&self.state.lock())));
        found.await.unwrap_or_else(|_| panic!("waited in vain for {what}")).unwrap();
    }
}

/// The envelope of a command to `job`.
pub fn headers(job: Id) -> Headers {
    Headers {
        event_id: Id::new(),
        event_type: SubmitJobRequested::TYPE.into(),
        aggregate_type: "job_command".into(),
        aggregate_id: job.to_string().into(),
        sequence: 1,
        user_id: "ada".into(),
        occurred_at: Timestamp::now(),
        correlation_id: Id::new(),
        causation_id: None,
        schema_version: 1,
        tags: Vec::new(),
        user_offset: None,
        traceparent: None,
    }
}

struct Reader {
    filter: Arc<str>,
    state: Arc<Mutex<QueueState>>,
    changes: Arc<watch::Sender<u64>>,
}

#[async_trait]
impl Subscriber for Queue {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let (Source::WorkQueue { filter, .. } | Source::Ephemeral { filter, .. }) = &subscription.source else {
            return Err(SubscriptionLost("no such source".into()));
        };
        *self.state.lock().subscribers.entry(filter.clone()).or_default() += 1;
        self.changes.send_modify(|version| *version += 1);
        Ok(Box::new(Reader { filter: filter.clone(), state: self.state.clone(), changes: self.changes.clone() }))
    }
}

#[async_trait]
impl Inbound for Reader {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let mut state = self.state.lock();
                if std::mem::take(&mut state.lost) {
                    return Err(SubscriptionLost("test".into()));
                }
                if let Some(waiting) = state.waiting.get_mut(&self.filter).filter(|waiting| !waiting.is_empty()) {
                    let count = max.min(waiting.len());
                    return Ok(waiting.drain(..count).collect());
                }
            }
            changes.changed().await.map_err(|_| SubscriptionLost("over".into()))?;
        }
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        self.state.lock().acked.extend(tokens);
        self.changes.send_modify(|version| *version += 1);
        Ok(())
    }

    async fn terminate(&mut self, ended: &[(AckToken, Arc<str>)]) -> Result<(), SubscriptionLost> {
        self.state.lock().terminated.extend(ended.iter().cloned());
        self.changes.send_modify(|version| *version += 1);
        Ok(())
    }

    async fn lag(&mut self) -> Option<u64> {
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(count) = self.state.lock().subscribers.get_mut(&self.filter) {
            *count -= 1;
        }
    }
}
