//! What users and operators do with jobs after submitting them, and what timers do.

use crate::domain::factory::Cause;
use crate::domain::job::{Job, JobCommand};
use crate::domain::payload::CancelledBy;
use crate::domain::{Id, Principal, Role, Timestamp};
use crate::store::{JobWrite, Outcome, Unit};

use super::{Context, EventService, ServiceError};

impl EventService {
    /// A job the principal may see.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] also for jobs of others.
    pub async fn job(&self, principal: &Principal, id: Id) -> Result<Job, ServiceError> {
        let job = self.store.job(id).await?.ok_or(ServiceError::NotFound)?;
        if principal.may_read(&job.user_id) { Ok(job) } else { Err(ServiceError::NotFound) }
    }

    /// Cancels an open job or a pending retry. A running one is asked to stop.
    pub async fn cancel(&self, context: &Context, id: Id) -> Result<Job, ServiceError> {
        let job = self.changeable(&context.principal, id).await?;
        let own = job.user_id == context.principal.user_id;
        let by = if own { CancelledBy::User } else { CancelledBy::Admin };
        let reason = if own { "cancelled by its owner" } else { "cancelled by an operator" };
        self.command(id, JobCommand::Cancel { by, reason: reason.into() }, &context.cause).await
    }

    /// Resubmits a failed job now.
    pub async fn retry(&self, context: &Context, id: Id) -> Result<Job, ServiceError> {
        self.changeable(&context.principal, id).await?;
        self.command(id, JobCommand::Retry, &context.cause).await
    }

    async fn changeable(&self, principal: &Principal, id: Id) -> Result<Job, ServiceError> {
        let job = self.job(principal, id).await?;
        if principal.may_change(&job.user_id) {
            Ok(job)
        } else {
            Err(ServiceError::Forbidden(format!("changing it needs the role {}", Role::Operator)))
        }
    }

    /// The orchestrator's timer: resubmits jobs whose retry is due. Returns how many were
    /// handled, and when the next one is due.
    pub async fn resubmit_due(&self, limit: u32) -> Result<(usize, Option<Timestamp>), ServiceError> {
        let (due, next) = self.store.due_retries(Timestamp::now(), limit).await?;
        let commands = due.into_iter().map(|(id, attempt)| (id, JobCommand::RetryDue { attempt }));
        Ok((self.timed(commands).await?, next))
    }

    /// The orchestrator's timer: fails jobs whose claimant is gone.
    pub async fn fail_lapsed(&self, limit: u32) -> Result<usize, ServiceError> {
        let lapsed = self.store.lapsed_leases(Timestamp::now(), limit).await?;
        self.timed(lapsed.into_iter().map(|(id, attempt)| (id, JobCommand::LeaseLapsed { attempt }))).await
    }

    /// Commits timer commands in one batch; those that came too late drop out.
    async fn timed(&self, commands: impl Iterator<Item = (Id, JobCommand)>) -> Result<usize, ServiceError> {
        let units: Vec<Unit> = commands
            .map(|(job_id, command)| Unit {
                jobs: vec![JobWrite { job_id, command, cause: Cause::root(), drafts: Vec::new() }],
                ..Unit::default()
            })
            .collect();
        if units.is_empty() {
            return Ok(0);
        }
        let mut handled = 0;
        for result in self.committer.background_all(units).await {
            handled += usize::from(matches!(result?, Outcome::Committed { .. }));
        }
        Ok(handled)
    }
}
