//! The runner's view of the store, answered by the use cases.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{CONSUMER, Claimed, ControlError, DeadCommand, Directive, JobControl, Sample};
use crate::consumer::Quarantine;
use crate::domain::Id;
use crate::domain::factory::Cause;
use crate::domain::job::{Job, JobError, Report, RunnerKind};
use crate::service::{self, EventService, SamplesReport, ServiceError};
use crate::telemetry::Metrics;

/// Calls the use cases in this process.
pub struct ServiceControl {
    service: Arc<EventService>,
    quarantine: Quarantine,
}

impl ServiceControl {
    pub fn new(service: Arc<EventService>, metrics: Arc<Metrics>) -> Self {
        let quarantine = Quarantine { consumer: CONSUMER, committer: service.committer().clone(), metrics };
        Self { service, quarantine }
    }
}

impl From<ServiceError> for ControlError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Overloaded
            | ServiceError::Unavailable(_)
            | ServiceError::OutcomeUnknown(_)
            | ServiceError::Stopping => Self::Unavailable(error.to_string()),
            refused => Self::Refused(refused.to_string()),
        }
    }
}

impl From<service::Directive> for Directive {
    fn from(directive: service::Directive) -> Self {
        // Calls about an attempt that has ended change nothing and are no error: that it has
        // no lease any more tells.
        Self { cancel: directive.cancel, gone: directive.lease_until.is_none() }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl JobControl for ServiceControl {
    async fn claim(
        &self,
        kind: RunnerKind,
        claimant: &str,
        agents: &[Arc<str>],
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Claimed>, ControlError> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let jobs = self.service.claim(kind, agents, &claimant.into(), max, ms(lease), true).await?;
        Ok(jobs.iter().map(Claimed::from).collect())
    }

    async fn heartbeat(
        &self,
        job: Id,
        attempt: u32,
        claimant: &str,
        lease: Duration,
    ) -> Result<Directive, ControlError> {
        Ok(self.service.heartbeat(job, attempt, &claimant.into(), Some(ms(lease))).await?.into())
    }

    async fn report(&self, job: Id, attempt: u32, claimant: &str, report: Report) -> Result<Directive, ControlError> {
        let last = !matches!(report, Report::Running { .. });
        let directive: Directive =
            self.service.report(job, attempt, &claimant.into(), report, &Cause::root()).await?.into();
        // The last word itself ends the lease.
        Ok(Directive { gone: directive.gone && !last, ..directive })
    }

    async fn samples(
        &self,
        job: Id,
        attempt: u32,
        claimant: &str,
        samples: Vec<Sample>,
    ) -> Result<Directive, ControlError> {
        let report = SamplesReport { attempt, samples };
        Ok(self.service.samples(job, &claimant.into(), report, &Cause::root()).await?.into())
    }

    async fn orphaned(&self, job: Id, attempt: u32, claimant: &str) -> Result<(), ControlError> {
        let error = JobError {
            code: "runner_lost".into(),
            message: "the gateway that ran it ended without a word; its processes were ended at the next start".into(),
            retriable: true,
            exit_code: None,
            stack_trace: None,
        };
        self.report(job, attempt, claimant, Report::Failed { error, counted: false }).await.map(|_| ())
    }

    async fn jobs(&self, ids: &[Id]) -> Result<Vec<Job>, ControlError> {
        let found = self.service.store().jobs_by_id(ids).await;
        found.map_err(|error| ControlError::Unavailable(error.to_string()))
    }

    async fn bury(&self, commands: &[DeadCommand]) -> Result<(), ControlError> {
        let letter = |command: &DeadCommand| {
            let DeadCommand { delivery, why } = command;
            (delivery.clone(), format!("nats, stream {}, subject {}: {why}", delivery.position.log, delivery.key))
        };
        let letters: Vec<_> = commands.iter().map(letter).collect();
        self.quarantine.keep(&letters).await.map_err(|error| ControlError::Unavailable(error.to_string()))
    }
}
