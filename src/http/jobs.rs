//! Jobs: submit, list, read, cancel, retry.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::cursor::{self, List};
use super::extract::{self, Caller, JsonBody, LargeBody, Params, PathId, Readers, Submitters};
use super::json::{self, JsonError};
use super::problem::{Kind, Problem};
use crate::domain::job::{Job, JobStatus, TaccSystem};
use crate::domain::{Principal, Timestamp};
use crate::service::{Answer, BatchItem, FieldError, SubmitJob};
use crate::store::{JobFilter, Page};
use crate::telemetry::metrics::Accepted;

/// Set on an answer that was stored for an earlier request with the same Idempotency-Key.
pub const IDEMPOTENT_REPLAY: HeaderName = HeaderName::from_static("idempotent-replay");

/// Items of a page unless asked otherwise, and at most.
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 500;

/// The size of a page.
pub fn page_size(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::field("limit", "out_of_range", format!("must be 1 to {MAX_LIMIT}")))
}

/// Submit a job.
///
/// The 201 is sent after the job and its events are committed. With an `Idempotency-Key`
/// the same request may be sent again: it gets the same answer, and the header
/// `idempotent-replay: true`.
#[utoipa::path(
    post,
    path = "/api/v1/jobs",
    operation_id = "submitJob",
    tag = "jobs",
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
         description = "Makes a repeat of this request safe; kept for idempotency.keep (24 h)"),
        ("X-On-Behalf-Of" = Option<String>, Header, min_length = 1, max_length = 128,
         description = "Operators: submit for this user; recorded in the audit trail"),
    ),
    request_body = SubmitJob,
    responses(
        (status = 201, description = "Committed", body = Job, headers(
            ("Location" = String, description = "The job"),
            ("idempotent-replay" = Option<String>, description = "`true` on a stored answer"),
        )),
        (status = 409, description = "A request with this key is being processed"),
    ),
)]
pub async fn submit(
    State(state): State<Arc<AppState>>,
    caller: Caller<Submitters>,
    body: JsonBody<SubmitJob>,
) -> Result<Response, Problem> {
    let answer = state.service.submit(&caller.context()?, body.value, &body.raw).await?;
    Ok(answered(&state, answer))
}

/// The jobs of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SubmitJobs)]
#[expect(dead_code, reason = "the shape for the documentation; items are read one by one")]
pub struct SubmitJobs {
    #[schema(min_items = 1, max_items = 500)]
    jobs: Vec<SubmitJob>,
}

/// Each item still as text, so that one that cannot be read spoils only itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJobs<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BatchParams {
    /// Submit the valid ones and answer 207 with a result for each.
    partial: Option<bool>,
}

/// The jobs of a batch, all committed.
#[derive(Serialize, ToSchema)]
pub struct SubmittedJobs {
    items: Vec<Job>,
}

/// What became of each item of a partial batch, in order.
#[derive(Serialize, ToSchema)]
pub struct BatchResult {
    items: Vec<BatchItem>,
}

/// Submit up to 500 jobs in one commit.
///
/// All or nothing; with `partial=true` each on its own.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/batch",
    operation_id = "submitJobs",
    tag = "jobs",
    params(
        BatchParams,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
         description = "Makes a repeat of this request safe; kept for idempotency.keep (24 h)"),
        ("X-On-Behalf-Of" = Option<String>, Header, min_length = 1, max_length = 128,
         description = "Operators: submit for this user; recorded in the audit trail"),
    ),
    request_body = SubmitJobs,
    responses(
        (status = 201, description = "All committed", body = SubmittedJobs, headers(
            ("idempotent-replay" = Option<String>, description = "`true` on a stored answer"),
        )),
        (status = 207, description = "Partial: a result for each, in order", body = BatchResult, headers(
            ("idempotent-replay" = Option<String>, description = "`true` on a stored answer"),
        )),
        (status = 409, description = "A request with this key is being processed"),
    ),
)]
pub async fn submit_batch(
    State(state): State<Arc<AppState>>,
    caller: Caller<Submitters>,
    Params(params): Params<BatchParams>,
    body: LargeBody,
) -> Result<Response, Problem> {
    extract::require_json(&body.headers)?;
    let items: RawJobs<'_> = match serde_json::from_slice(&body.raw) {
        Ok(items) if body.raw.trim_ascii_start().starts_with(b"{") => items,
        // Once more, for the name of the field.
        _ => {
            json::parse::<serde_json::Value>(&body.raw)?;
            json::parse_object::<SubmitJobs>(&body.raw)?;
            return Err(Problem::new(Kind::Malformed, "send {\"jobs\": [...]}"));
        }
    };
    let requests =
        items.jobs.iter().map(|item| json::parse_object::<SubmitJob>(item.get().as_bytes()).map_err(wrong_item));
    let partial = params.partial.unwrap_or(false);
    let answer = state.service.submit_batch(&caller.context()?, requests.collect(), partial, &body.raw).await?;
    Ok(answered(&state, answer))
}

fn wrong_item(error: JsonError) -> FieldError {
    match error {
        JsonError::Field(error) => error,
        JsonError::Syntax(why) => FieldError::new("", "malformed", why),
    }
}

/// Sends the stored bytes as they are: a repeat gets the very same answer.
fn answered(state: &AppState, answer: Answer) -> Response {
    if !answer.repeated {
        state.metrics.accepted[Accepted::Job].inc();
    }
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(location) = answer.location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    if answer.repeated {
        headers.insert(IDEMPOTENT_REPLAY, HeaderValue::from_static("true"));
    }
    response
}

macro_rules! filtered {
    ($(#[$doc:meta])* $name:ident { $($(#[$more:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            /// Statuses, separated by commas.
            #[param(pattern = "^(QUEUED|RUNNING|COMPLETED|FAILED|CANCELLED)(,(QUEUED|RUNNING|COMPLETED|FAILED|CANCELLED))*$",
                    example = "QUEUED,RUNNING")]
            status: Option<String>,
            #[param(min_length = 1)]
            agent: Option<String>,
            tacc_system: Option<TaccSystem>,
            /// Whose jobs; others than one's own for operators and auditors.
            #[param(min_length = 1)]
            user: Option<String>,
            /// Created at or after this time.
            from: Option<Timestamp>,
            /// Created before this time.
            to: Option<Timestamp>,
            /// A part of the name, or a whole id.
            #[param(min_length = 1, max_length = 200)]
            q: Option<String>,
            $($(#[$more])* $field: $type,)*
        }

        impl $name {
            fn filter(&mut self, principal: &Principal) -> Result<JobFilter, Problem> {
                Ok(JobFilter {
                    user: visible_user(principal, self.user.take())?,
                    status: self.status.as_deref().map(statuses).transpose()?.unwrap_or_default(),
                    agent: self.agent.take(),
                    tacc_system: self.tacc_system,
                    from: self.from,
                    to: self.to,
                    text: self.q.take().map(search_text).transpose()?,
                })
            }
        }
    };
}

filtered! {
    /// Which jobs a list shows.
    JobListParams {
        /// `next_cursor` of the page before.
        #[param(min_length = 1)]
        cursor: Option<String>,
        /// Jobs of a page.
        #[param(minimum = 1, maximum = 500, default = 50)]
        limit: Option<u32>,
    }
}

filtered! {
    /// Which jobs are counted.
    JobSummaryParams {}
}

/// Users see what is theirs, operators and auditors what they ask for.
pub fn visible_user(principal: &Principal, asked: Option<String>) -> Result<Option<Arc<str>>, Problem> {
    match asked {
        Some(user) if principal.may_read(&user) => Ok(Some(user.into())),
        Some(_) => Err(Problem::new(Kind::Forbidden, "what belongs to others needs the role operator or auditor")),
        None if principal.sees_everything() => Ok(None),
        None => Ok(Some(principal.user_id.clone())),
    }
}

fn statuses(list: &str) -> Result<Vec<JobStatus>, Problem> {
    let parsed: Result<Vec<JobStatus>, String> = list.split(',').map(str::parse).collect();
    parsed.map_err(|why| Problem::field("status", "unknown_value", why))
}

fn search_text(text: String) -> Result<String, Problem> {
    if text.chars().count() <= 200 {
        return Ok(text);
    }
    Err(Problem::field("q", "out_of_range", "must have at most 200 characters"))
}

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
pub struct JobPage {
    items: Vec<Job>,
    /// Goes into `cursor` for the next page; null at the end.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List jobs, newest first.
///
/// Users see their own jobs, operators and auditors those of everybody.
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    operation_id = "listJobs",
    tag = "jobs",
    params(JobListParams),
    responses((status = 200, description = "A page", body = JobPage)),
)]
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    Params(mut params): Params<JobListParams>,
) -> Result<Json<JobPage>, Problem> {
    let filter = params.filter(&caller.principal)?;
    let limit = page_size(params.limit)?;
    let before = params.cursor.map(|cursor| cursor::decode(List::Jobs, &cursor)).transpose()?;
    // One more than asked tells whether there is a next page.
    let mut items = state.service.store().jobs(&filter, Page { before, limit: limit + 1 }).await.map_err(store)?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = if more { items.last().map(|job| cursor::encode(List::Jobs, job.id)) } else { None };
    Ok(Json(JobPage { items, next_cursor }))
}

/// A read of the store that failed.
pub fn store(error: crate::store::StoreError) -> Problem {
    crate::service::ServiceError::from(error).into()
}

/// Counts and totals over jobs.
#[derive(Serialize, ToSchema)]
#[schema(as = JobSummary)]
pub struct Summary {
    total: u64,
    /// All five statuses.
    #[schema(value_type = BTreeMap<String, u64>)]
    by_status: BTreeMap<JobStatus, u64>,
    /// Completed of completed and failed, 0 to 1; null before any has ended.
    #[schema(required = true, minimum = 0, maximum = 1)]
    success_rate: Option<f64>,
    /// Of completed jobs.
    #[schema(required = true)]
    mean_run_seconds: Option<f64>,
    gpu_hours: f64,
    /// Estimated.
    cost_usd: f64,
}

/// Counts, success rate, mean run time, GPU hours and cost.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/summary",
    operation_id = "summariseJobs",
    tag = "jobs",
    params(JobSummaryParams),
    responses((status = 200, description = "Over the jobs that the filter shows", body = Summary)),
)]
pub async fn summary(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    Params(mut params): Params<JobSummaryParams>,
) -> Result<Json<Summary>, Problem> {
    let filter = params.filter(&caller.principal)?;
    let found = state.service.store().job_summary(&filter).await.map_err(store)?;
    let count = |status: JobStatus| found.by_status.get(&status).copied().unwrap_or(0);
    let (completed, failed) = (count(JobStatus::Completed), count(JobStatus::Failed));
    Ok(Json(Summary {
        total: found.by_status.values().sum(),
        by_status: JobStatus::ALL.iter().map(|status| (*status, count(*status))).collect(),
        success_rate: (completed + failed > 0).then(|| completed as f64 / (completed + failed) as f64),
        mean_run_seconds: (found.run_count > 0).then(|| found.run_ms_total as f64 / found.run_count as f64 / 1000.0),
        gpu_hours: found.gpu_hours,
        cost_usd: found.cost_usd,
    }))
}

/// Read a job.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    operation_id = "getJob",
    tag = "jobs",
    params(("id" = crate::domain::Id, Path, description = "The job")),
    responses((status = 200, description = "The job", body = Job)),
)]
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    PathId(id): PathId,
) -> Result<Json<Job>, Problem> {
    Ok(Json(state.service.job(&caller.principal, id).await?))
}

/// Cancel a job.
///
/// An open job or a pending retry is cancelled at once; a running one is asked to stop
/// (`cancel_requested`) and becomes CANCELLED when its runner has stopped it.
#[utoipa::path(
    delete,
    path = "/api/v1/jobs/{id}",
    operation_id = "cancelJob",
    tag = "jobs",
    params(("id" = crate::domain::Id, Path, description = "The job")),
    responses(
        (status = 202, description = "The job as it is now", body = Job),
        (status = 409, description = "The job has ended"),
    ),
)]
pub async fn cancel(
    State(state): State<Arc<AppState>>,
    caller: Caller<Submitters>,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let job = state.service.cancel(&caller.context()?, id).await?;
    state.metrics.accepted[Accepted::Cancel].inc();
    Ok((StatusCode::ACCEPTED, Json(job)).into_response())
}

/// Run a failed job again, now.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/retry",
    operation_id = "retryJob",
    tag = "jobs",
    params(("id" = crate::domain::Id, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, queued again", body = Job),
        (status = 409, description = "The job has not failed"),
    ),
)]
pub async fn retry(
    State(state): State<Arc<AppState>>,
    caller: Caller<Submitters>,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let job = state.service.retry(&caller.context()?, id).await?;
    state.metrics.accepted[Accepted::Retry].inc();
    Ok((StatusCode::ACCEPTED, Json(job)).into_response())
}
