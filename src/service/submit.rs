//! Submitting jobs, one or many.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::agents::Agent;
use super::{Answer, Context, EventService, FieldError, ServiceError};
use crate::domain::job::{Job, JobCommand, JobStatus, Priority, ResourceRequest, TaccSystem, submission_events};
use crate::domain::{Id, Role};
use crate::store::{JobWrite, Outcome, StoredResponse, Unit};

/// What somebody asks to run.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJob {
    /// One of `GET /api/v1/agents`.
    #[schema(example = "AnomalyDetection", min_length = 1, max_length = 100)]
    pub agent: String,
    /// One of the agent's datasets.
    #[schema(example = "anomaly-detection/quiet-receiver.csv", min_length = 1, max_length = 500)]
    pub dataset_id: String,
    /// For people; the agent and dataset when missing.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    #[serde(default)]
    pub tacc_system: TaccSystem,
    #[serde(default)]
    pub priority: Priority,
    /// The agent's parameters; checked against its schema.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::HashMap<String, Value>>)]
    pub params: Option<Map<String, Value>>,
    #[serde(default)]
    pub resource_request: Option<ResourceRequest>,
    /// Automatic retries of retriable failures.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub max_retries: Option<u32>,
}

/// One item of a partial batch.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BatchItem {
    /// 201 or 422.
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

const ROUTE: &str = "POST /api/v1/jobs";
const BATCH_ROUTE: &str = "POST /api/v1/jobs/batch";

impl EventService {
    /// Submits one job. `raw` is the request body as received: what an
    /// `Idempotency-Key` stands for.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] with every wrong field; conflicts of the key; overload.
    pub async fn submit(&self, context: &Context, request: SubmitJob, raw: &[u8]) -> Result<Answer, ServiceError> {
        self.check_owner(context)?;
        let job = self.check_submit(context, request).await.map_err(ServiceError::Invalid)?;
        let response =
            StoredResponse { status: 201, location: Some(format!("/api/v1/jobs/{}", job.id)), body: encode(&job)? };
        let mut unit = Unit::default();
        self.add_submission(context, &mut unit, job)?;
        self.commit_answered(context, ROUTE, raw, unit, response).await
    }

    /// Submits several jobs in one COMMIT. All or nothing, unless `partial`: then the
    /// valid ones are submitted and the others answered with their errors (207).
    pub async fn submit_batch(
        &self,
        context: &Context,
        requests: Vec<Result<SubmitJob, FieldError>>,
        partial: bool,
        raw: &[u8],
    ) -> Result<Answer, ServiceError> {
        self.check_owner(context)?;
        let limit = self.options.batch_limit;
        if requests.is_empty() || requests.len() > limit {
            let message = format!("a batch takes 1 to {limit} jobs, this one has {}", requests.len());
            return Err(ServiceError::Invalid(vec![FieldError::new("jobs", "out_of_range", message)]));
        }
        let mut unit = Unit::default();
        let mut items = Vec::with_capacity(requests.len());
        let mut errors = Vec::new();
        for (index, request) in requests.into_iter().enumerate() {
            let checked = match request {
                Ok(request) => self.check_submit(context, request).await,
                Err(error) => Err(vec![error]),
            };
            match checked {
                Ok(job) => {
                    items.push(BatchItem { status: 201, job: Some(job.clone()), errors: Vec::new() });
                    self.add_submission(context, &mut unit, job)?;
                }
                Err(wrong) => {
                    errors.extend(wrong.iter().map(|error| FieldError {
                        field: format!("jobs.{index}.{}", error.field).trim_end_matches('.').to_owned(),
                        ..error.clone()
                    }));
                    items.push(BatchItem { status: 422, job: None, errors: wrong });
                }
            }
        }
        if !partial && !errors.is_empty() {
            return Err(ServiceError::Invalid(errors));
        }
        let (status, body) = if partial {
            (207, encode(&serde_json::json!({ "items": items }))?)
        } else {
            let jobs: Vec<&Job> = items.iter().filter_map(|item| item.job.as_ref()).collect();
            (201, encode(&serde_json::json!({ "items": jobs }))?)
        };
        let response = StoredResponse { status, location: None, body };
        self.commit_answered(context, BATCH_ROUTE, raw, unit, response).await
    }

    /// Commits a unit whose answer is known beforehand.
    async fn commit_answered(
        &self,
        context: &Context,
        route: &'static str,
        raw: &[u8],
        mut unit: Unit,
        response: StoredResponse,
    ) -> Result<Answer, ServiceError> {
        unit.idempotency = self.idempotency(context, route, raw, response.clone());
        if unit.idempotency.is_some() {
            return self.commit_claimed(unit).await;
        }
        self.accept(unit).await?;
        Ok(answer(response, false))
    }

    /// Commits a unit that carries an idempotency claim, whose answer it is.
    pub(super) async fn commit_claimed(&self, unit: Unit) -> Result<Answer, ServiceError> {
        let Some(claim) = &unit.idempotency else {
            return Err(ServiceError::Internal("a claim is missing".into()));
        };
        let response = claim.response.clone();
        let _in_flight = self.begin(&claim.key)?;
        match self.committer.accept(unit).await? {
            Outcome::Committed { .. } => Ok(answer(response, false)),
            Outcome::Repeated(stored) => Ok(answer(stored, true)),
            Outcome::KeyReused => Err(ServiceError::KeyReused),
            Outcome::Refused { refusal, .. } => Err(refusal.into()),
            other => Err(ServiceError::Internal(format!("unexpected outcome {other:?}"))),
        }
    }

    fn check_owner(&self, context: &Context) -> Result<(), ServiceError> {
        if context.on_behalf_of.is_some() && !context.principal.has(Role::Operator) {
            return Err(ServiceError::Forbidden("X-On-Behalf-Of needs the role operator".into()));
        }
        if !context.principal.has(Role::User) && !context.principal.has(Role::Operator) {
            return Err(ServiceError::Forbidden("submitting needs the role user or operator".into()));
        }
        Ok(())
    }

    fn add_submission(&self, context: &Context, unit: &mut Unit, job: Job) -> Result<(), ServiceError> {
        let now = job.created_at;
        let drafts = submission_events(&job)
            .iter()
            .map(|event| self.factory.job_event(&job, event, &context.cause, now))
            .collect::<Result<Vec<_>, _>>()?;
        unit.effects.extend(self.audit_on_behalf(context, "job.submit", job.id));
        unit.jobs.push(JobWrite {
            job_id: job.id,
            command: JobCommand::Submit(Box::new(job)),
            cause: context.cause.clone(),
            drafts,
        });
        Ok(())
    }

    /// Turns a request into a job, or names everything that is wrong with it.
    async fn check_submit(&self, context: &Context, request: SubmitJob) -> Result<Job, Vec<FieldError>> {
        let mut errors = Vec::new();
        let params = Value::Object(request.params.unwrap_or_default());
        let agent = self.agents.check(&request.agent, &request.dataset_id, &params, &mut errors).await;
        let resources = request.resource_request.unwrap_or_default();
        check_resources(&resources, &mut errors);
        let name = request.name.unwrap_or_else(|| format!("{} on {}", request.agent, request.dataset_id));
        let name = if name.chars().count() > 200 && errors.is_empty() {
            errors.push(FieldError::new("name", "out_of_range", "must have at most 200 characters"));
            name
        } else {
            name
        };
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            errors.push(FieldError::new("name", "out_of_range", "must not be empty or hold control characters"));
        }
        let max_retries = request.max_retries.unwrap_or(self.options.max_retries_default);
        if max_retries > self.options.max_retries_limit {
            errors.push(FieldError::new(
                "max_retries",
                "out_of_range",
                format!("must be at most {}", self.options.max_retries_limit),
            ));
        }
        let Some(agent) = agent.filter(|_| errors.is_empty()) else { return Err(errors) };
        let params = serde_json::to_string(&params)
            .and_then(RawValue::from_string)
            .map_err(|error| vec![FieldError::new("params", "invalid", error.to_string())])?;
        let now = context.received_at;
        Ok(Job {
            id: Id::new(),
            user_id: context.owner().clone(),
            name,
            agent: agent.name.clone(),
            runner: agent.runner,
            dataset_id: request.dataset_id,
            tacc_system: request.tacc_system,
            external_job_id: None,
            status: JobStatus::Queued,
            progress: None,
            priority: request.priority,
            params: Arc::from(params),
            estimated_cost_usd: estimated_cost(&agent, &resources),
            resource_request: resources,
            result: None,
            error: None,
            attempt: 1,
            retry_count: 0,
            max_retries,
            retry_at: None,
            cancel_requested: false,
            claimant: None,
            lease_until: None,
            created_at: now,
            updated_at: now,
            started_at: None,
            completed_at: None,
        })
    }
}

/// GPUs x hours of wall time x the agent's rate, in cents precision.
fn estimated_cost(agent: &Agent, resources: &ResourceRequest) -> f64 {
    let hours = f64::from(resources.wall_time_minutes) / 60.0;
    let cost = f64::from(resources.gpu_count_total) * hours * agent.cost_per_gpu_hour_usd;
    (cost * 100.0).round() / 100.0
}

fn check_resources(request: &ResourceRequest, errors: &mut Vec<FieldError>) {
    let mut check = |field: &str, value: f64, low: f64, high: f64| {
        if !(low..=high).contains(&value) {
            let message = format!("must be between {low} and {high}, is {value}");
            errors.push(FieldError::new(format!("resource_request.{field}"), "out_of_range", message));
        }
    };
    check("num_nodes", f64::from(request.num_nodes), 1.0, 100_000.0);
    check("cores_per_node", f64::from(request.cores_per_node), 1.0, 1_024.0);
    check("gpu_count_total", f64::from(request.gpu_count_total), 0.0, 100_000.0);
    check("memory_gb", request.memory_gb, 0.0, 1_000_000.0);
    check("wall_time_minutes", f64::from(request.wall_time_minutes), 1.0, 525_600.0);
}

fn answer(response: StoredResponse, repeated: bool) -> Answer {
    Answer { status: response.status, location: response.location, body: response.body, repeated }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, ServiceError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| ServiceError::Internal(error.to_string()))
}
