//! The worker API: claim jobs of external agents, stay alive, report, send samples.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::AppState;
use super::extract::{Caller, JsonBody, PathId, Workers};
use super::problem::Problem;
use crate::domain::job::{Job, ResourceRequest};
use crate::domain::{Id, Timestamp};
use crate::service::{ClaimRequest, Directive, SamplesReport, StatusReport};
use crate::telemetry::metrics::Accepted;

/// A claimed job: what its worker needs to run it.
#[derive(Serialize, ToSchema)]
pub struct ClaimedJob {
    id: Id,
    /// Goes into every heartbeat and report.
    #[schema(minimum = 1)]
    attempt: u32,
    /// When the claim ends unless a heartbeat or report renews it.
    #[schema(required = true)]
    lease_until: Option<Timestamp>,
    /// Somebody wants the job to stop.
    cancel: bool,
    #[schema(value_type = String)]
    agent: Arc<str>,
    dataset_id: String,
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    params: Arc<RawValue>,
    resource_request: ResourceRequest,
}

impl From<Job> for ClaimedJob {
    fn from(job: Job) -> Self {
        Self {
            id: job.id,
            attempt: job.attempt,
            lease_until: job.lease_until,
            cancel: job.cancel_requested,
            agent: job.agent,
            dataset_id: job.dataset_id,
            params: job.params,
            resource_request: job.resource_request,
        }
    }
}

/// What was claimed, best first; empty when nothing waits.
#[derive(Serialize, ToSchema)]
pub struct ClaimedJobs {
    items: Vec<ClaimedJob>,
}

/// Claim queued jobs of external agents.
///
/// The claim is a lease: a worker that sends neither heartbeat nor report loses the job,
/// which then fails as `runner_lost` and is tried again.
#[utoipa::path(
    post,
    path = "/api/v1/worker/claim",
    operation_id = "claimJobs",
    tag = "worker",
    request_body = ClaimRequest,
    responses((status = 200, description = "What was claimed", body = ClaimedJobs)),
)]
pub async fn claim(
    State(state): State<Arc<AppState>>,
    caller: Caller<Workers>,
    body: JsonBody<ClaimRequest>,
) -> Result<Json<ClaimedJobs>, Problem> {
    let jobs = state.service.claim_external(&caller.principal.user_id, &body.value).await?;
    state.metrics.accepted[Accepted::Claim].inc_by(jobs.len() as u64);
    Ok(Json(ClaimedJobs { items: jobs.into_iter().map(ClaimedJob::from).collect() }))
}

/// A sign of life.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    #[schema(minimum = 1)]
    attempt: u32,
}

/// Extend the lease.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/heartbeat",
    operation_id = "heartbeat",
    tag = "worker",
    params(("id" = Id, Path, description = "The job")),
    request_body = Heartbeat,
    responses(
        (status = 202, description = "Whether to stop, and the new end of the lease", body = Directive),
        (status = 409, description = "A stale attempt, or somebody else's claim"),
    ),
)]
pub async fn heartbeat(
    State(state): State<Arc<AppState>>,
    caller: Caller<Workers>,
    PathId(id): PathId,
    body: JsonBody<Heartbeat>,
) -> Result<Response, Problem> {
    let claimant = &caller.principal.user_id;
    let directive = state.service.heartbeat(id, body.value.attempt, claimant, None).await?;
    Ok(accepted(&state, Accepted::Heartbeat, directive))
}

/// Report a start, progress or the end.
///
/// Repeating the last report answers 202 and writes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/status",
    operation_id = "reportStatus",
    tag = "worker",
    params(("id" = Id, Path, description = "The job")),
    request_body = StatusReport,
    responses(
        (status = 202, description = "Whether to stop, and the end of the lease", body = Directive),
        (status = 409, description = "A stale attempt, somebody else's claim, or a transition that is not allowed"),
    ),
)]
pub async fn status(
    State(state): State<Arc<AppState>>,
    caller: Caller<Workers>,
    PathId(id): PathId,
    body: JsonBody<StatusReport>,
) -> Result<Response, Problem> {
    let directive = state.service.report_status(id, &caller.principal.user_id, body.value, &caller.cause).await?;
    Ok(accepted(&state, Accepted::Status, directive))
}

/// Send samples of what the job uses.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/metrics",
    operation_id = "sendSamples",
    tag = "worker",
    params(("id" = Id, Path, description = "The job")),
    request_body = SamplesReport,
    responses(
        (status = 202, description = "Whether to stop, and the end of the lease", body = Directive),
        (status = 409, description = "A stale attempt, or somebody else's claim"),
    ),
)]
pub async fn metrics(
    State(state): State<Arc<AppState>>,
    caller: Caller<Workers>,
    PathId(id): PathId,
    body: JsonBody<SamplesReport>,
) -> Result<Response, Problem> {
    let directive = state.service.samples(id, &caller.principal.user_id, body.value, &caller.cause).await?;
    Ok(accepted(&state, Accepted::Samples, directive))
}

fn accepted(state: &AppState, kind: Accepted, directive: Directive) -> Response {
    state.metrics.accepted[kind].inc();
    (StatusCode::ACCEPTED, Json(directive)).into_response()
}
