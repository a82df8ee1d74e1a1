//! What those who run jobs ask: claim, heartbeat, report, samples. Used by the worker API
//! and by the runners inside.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EventService, FieldError, ServiceError};
use crate::domain::factory::Cause;
use crate::domain::job::{Job, JobCommand, JobError, JobRefusal, JobResult, Report, RunnerKind};
use crate::domain::payload::{JobMetrics, JobMetricsRecorded, MAX_READING};
use crate::domain::{Id, Timestamp};
use crate::store::{JobWrite, Outcome, Unit};

/// The longest interval of one sample: a day.
const MAX_INTERVAL_SECONDS: f64 = 86_400.0;

/// `POST /worker/claim`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Only jobs of these agents; all external ones when missing.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub agents: Vec<String>,
    /// At most this many, 1 to 500.
    #[schema(minimum = 1, maximum = 500)]
    pub max: u32,
}

/// `POST /jobs/{id}/status`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusReport {
    #[schema(minimum = 1)]
    pub attempt: u32,
    pub status: ReportedStatus,
    /// 0 to 1.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub progress: Option<f64>,
    #[serde(default)]
    #[schema(max_length = 1_000)]
    pub reason: Option<String>,
    /// The job's name at the system that runs it.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub external_job_id: Option<String>,
    /// With COMPLETED.
    #[serde(default)]
    pub result: Option<JobResult>,
    /// With FAILED.
    #[serde(default)]
    pub error: Option<JobError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ReportedStatus {
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// `POST /jobs/{id}/metrics`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplesReport {
    #[schema(minimum = 1)]
    pub attempt: u32,
    /// 1 to 100 samples, in time order.
    #[schema(min_items = 1, max_items = 100)]
    pub samples: Vec<Sample>,
}

/// One sample of a running job.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    #[serde(default)]
    #[schema(max_length = 200)]
    pub host: Option<String>,
    pub sample_timestamp: Timestamp,
    /// What the rates are averaged over.
    #[schema(minimum = 0.0, maximum = 86_400.0)]
    pub sample_interval_seconds: f64,
    pub metrics: JobMetrics,
}

/// What every heartbeat and report answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Directive {
    /// Somebody wants the job to stop: stop it and report CANCELLED.
    pub cancel: bool,
    /// When the claim ends unless renewed.
    #[schema(required = true)]
    pub lease_until: Option<Timestamp>,
}

impl From<&Job> for Directive {
    fn from(job: &Job) -> Self {
        Self { cancel: job.cancel_requested, lease_until: job.lease_until }
    }
}

impl StatusReport {
    /// Checks what the types do not.
    fn into_report(self) -> Result<Report, Vec<FieldError>> {
        let mut errors = Vec::new();
        if self.progress.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            errors.push(FieldError::new("progress", "out_of_range", "must be between 0 and 1"));
        }
        let optional = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
        at_most(&mut errors, "reason", optional(&self.reason), 1_000);
        at_most(&mut errors, "external_job_id", optional(&self.external_job_id), 200);
        if let Some(error) = &self.error {
            at_most(&mut errors, "error.code", error.code.chars().count(), 100);
            at_most(&mut errors, "error.message", error.message.chars().count(), 4_000);
            at_most(&mut errors, "error.stack_trace", optional(&error.stack_trace), 16_000);
        }
        if let Some(result) = &self.result {
            at_most(&mut errors, "result.output_location", result.output_location.chars().count(), 2_000);
            if result.result_size_bytes < 0 {
                errors.push(FieldError::new("result.result_size_bytes", "out_of_range", "must not be negative"));
            }
            for (name, value) in result.metrics.readings() {
                reading(&mut errors, format!("result.metrics.{name}"), value, MAX_READING);
            }
        }
        let report = match self.status {
            ReportedStatus::Running => Some(Report::Running {
                progress: self.progress,
                reason: self.reason,
                external_job_id: self.external_job_id,
            }),
            ReportedStatus::Completed => Some(Report::Completed { result: Box::new(self.result.unwrap_or_default()) }),
            ReportedStatus::Failed => {
                if self.error.is_none() {
                    errors.push(FieldError::new("error", "required", "FAILED needs error {code, message}"));
                }
                self.error.map(|error| Report::Failed { error, counted: true })
            }
            ReportedStatus::Cancelled => {
                Some(Report::Cancelled { reason: self.reason.unwrap_or_else(|| "cancelled by the worker".into()) })
            }
        };
        match report {
            Some(report) if errors.is_empty() => Ok(report),
            _ => Err(errors),
        }
    }
}

impl Sample {
    fn check(&self, index: usize, errors: &mut Vec<FieldError>) {
        let field = |name: &str| format!("samples.{index}.{name}");
        at_most(errors, field("host"), self.host.as_ref().map_or(0, |host| host.chars().count()), 200);
        reading(errors, field("sample_interval_seconds"), self.sample_interval_seconds, MAX_INTERVAL_SECONDS);
        for (name, value) in self.metrics.readings() {
            reading(errors, field(&format!("metrics.{name}")), value, MAX_READING);
        }
    }
}

/// A measured value: neither negative nor beyond all measure.
fn reading(errors: &mut Vec<FieldError>, field: String, value: f64, most: f64) {
    if !(0.0..=most).contains(&value) {
        errors.push(FieldError::new(field, "out_of_range", format!("must be between 0 and {most}")));
    }
}

/// `chars` characters of text, at most `most`.
fn at_most(errors: &mut Vec<FieldError>, field: impl Into<String>, chars: usize, most: usize) {
    if chars > most {
        errors.push(FieldError::new(field, "out_of_range", format!("must have at most {most} characters")));
    }
}

impl EventService {
    /// Claims up to `max` of the best queued jobs for `claimant` until `lease_ms` from
    /// now. `start` makes them RUNNING at once. Others may claim at the same time: the
    /// store decides, losers are left out.
    pub async fn claim(
        &self,
        runner: RunnerKind,
        agents: &[Arc<str>],
        claimant: &Arc<str>,
        max: u32,
        lease_ms: i64,
        start: bool,
    ) -> Result<Vec<Job>, ServiceError> {
        // More candidates than wanted: some are lost to others.
        let candidates = self.store.claimable(runner, agents, max.saturating_mul(2).max(8)).await?;
        let mut claimed = Vec::new();
        let mut rest = candidates.as_slice();
        while claimed.len() < max as usize && !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(max as usize - claimed.len()));
            rest = later;
            let lease_until = Timestamp::now().plus_ms(lease_ms);
            let units = now
                .iter()
                .map(|id| Unit {
                    jobs: vec![JobWrite {
                        job_id: *id,
                        command: JobCommand::Claim { claimant: claimant.clone(), lease_until, start },
                        cause: Cause::root(),
                        drafts: Vec::new(),
                    }],
                    ..Unit::default()
                })
                .collect();
            for result in self.committer.background_all(units).await {
                if let Outcome::Committed { jobs, .. } = result? {
                    claimed.extend(jobs.into_iter().map(|written| written.job));
                }
            }
        }
        Ok(claimed)
    }

    /// `POST /worker/claim`.
    pub async fn claim_external(&self, claimant: &Arc<str>, request: &ClaimRequest) -> Result<Vec<Job>, ServiceError> {
        if !(1..=500).contains(&request.max) {
            return Err(ServiceError::Invalid(vec![FieldError::new(
                "max",
                "out_of_range",
                "must be between 1 and 500",
            )]));
        }
        if request.agents.len() > 100 {
            let message = format!("at most 100 names, here are {}", request.agents.len());
            return Err(ServiceError::Invalid(vec![FieldError::new("agents", "out_of_range", message)]));
        }
        let mut errors = Vec::new();
        for (index, name) in request.agents.iter().enumerate() {
            let wrong = match self.agents.get(name) {
                Some(agent) if agent.runner == RunnerKind::External => continue,
                Some(agent) => ("not_external", format!("'{name}' is run by {}, not by workers", agent.runner)),
                None => ("unknown_agent", format!("'{name}' is not configured; GET /api/v1/agents lists the agents")),
            };
            errors.push(FieldError::new(format!("agents.{index}"), wrong.0, wrong.1));
        }
        if !errors.is_empty() {
            return Err(ServiceError::Invalid(errors));
        }
        let agents: Vec<Arc<str>> = request.agents.iter().map(|name| Arc::from(name.as_str())).collect();
        self.claim(RunnerKind::External, &agents, claimant, request.max, self.options.external_lease_ms, false).await
    }

    /// The claimant lives; the lease runs `lease_ms` from now.
    pub async fn heartbeat(
        &self,
        id: Id,
        attempt: u32,
        claimant: &Arc<str>,
        lease_ms: Option<i64>,
    ) -> Result<Directive, ServiceError> {
        let lease_until = Timestamp::now().plus_ms(lease_ms.unwrap_or(self.options.external_lease_ms));
        let command = JobCommand::Heartbeat { claimant: claimant.clone(), attempt, lease_until };
        self.command(id, command, &Cause::root()).await.map(|job| Directive::from(&job))
    }

    /// `POST /jobs/{id}/status`.
    pub async fn report_status(
        &self,
        id: Id,
        claimant: &Arc<str>,
        status: StatusReport,
        cause: &Cause,
    ) -> Result<Directive, ServiceError> {
        let attempt = status.attempt;
        let report = status.into_report().map_err(ServiceError::Invalid)?;
        self.report(id, attempt, claimant, report, cause).await
    }

    /// What the claimant says about its attempt. A repeat writes nothing.
    pub async fn report(
        &self,
        id: Id,
        attempt: u32,
        claimant: &Arc<str>,
        report: Report,
        cause: &Cause,
    ) -> Result<Directive, ServiceError> {
        let command = JobCommand::Report { claimant: claimant.clone(), attempt, report };
        self.command(id, command, cause).await.map(|job| Directive::from(&job))
    }

    /// Samples of a running attempt, each an event of its own.
    pub async fn samples(
        &self,
        id: Id,
        claimant: &Arc<str>,
        report: SamplesReport,
        cause: &Cause,
    ) -> Result<Directive, ServiceError> {
        if report.samples.is_empty() || report.samples.len() > 100 {
            return Err(ServiceError::Invalid(vec![FieldError::new(
                "samples",
                "out_of_range",
                "takes 1 to 100 samples",
            )]));
        }
        let mut errors = Vec::new();
        report.samples.iter().enumerate().for_each(|(index, sample)| sample.check(index, &mut errors));
        if !errors.is_empty() {
            return Err(ServiceError::Invalid(errors));
        }
        let job = self.store.job(id).await?.ok_or(ServiceError::NotFound)?;
        if job.attempt != report.attempt {
            return Err(JobRefusal::StaleAttempt { reported: report.attempt, current: job.attempt }.into());
        }
        if job.claimant.as_ref() != Some(claimant) {
            return Err(JobRefusal::NotClaimant { attempt: report.attempt }.into());
        }
        let now = Timestamp::now();
        let events = report
            .samples
            .into_iter()
            .map(|sample| {
                let payload = JobMetricsRecorded {
                    job_id: id,
                    host: sample.host,
                    sample_timestamp: sample.sample_timestamp,
                    sample_interval_seconds: sample.sample_interval_seconds,
                    metrics: sample.metrics,
                };
                self.factory.draft(&payload, &job.user_id, cause, now)
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.accept(Unit { events, ..Unit::default() }).await?;
        Ok(Directive::from(&job))
    }
}
