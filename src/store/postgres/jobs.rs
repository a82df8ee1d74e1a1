//! Job rows.

use std::sync::Arc;

use serde_json::value::RawValue;
use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::batch::Batch;
use super::rows::{int, read_id, read_text, read_time, read_time_or_null, read_u32, time};
use crate::domain::job::{Job, JobStatus, Priority, RunnerKind};
use crate::domain::{Id, Timestamp};
use crate::store::{JobFilter, JobSummary, Page, StoreError, Workload};

macro_rules! columns {
    () => {
        "id, user_id, name, agent, runner, dataset_id, tacc_system, external_job_id, status, progress, \
         priority, params::text AS params, resource_request::text AS resource_request, result::text AS result, \
         error::text AS error, attempt, retry_count, max_retries, retry_at, cancel_requested, claimant, lease_until, \
         estimated_cost_usd, created_at, updated_at, started_at, completed_at"
    };
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Plain structs of numbers and strings always serialise.
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

pub(super) fn insert(batch: &mut Batch, jobs: &[Job]) {
    if jobs.is_empty() {
        return;
    }
    batch
        .part(
        "INSERT INTO jobs (id, user_id, name, agent, runner, dataset_id, tacc_system, external_job_id, status, \
           progress, priority, params, resource_request, result, error, attempt, retry_count, max_retries, retry_at, \
           cancel_requested, claimant, lease_until, estimated_cost_usd, created_at, updated_at, started_at, \
           completed_at) \
         SELECT a, b, c, d, e, f, g, h, i, j, k, l::json, m::json, n::json, o::json, p, q, r, s, t, u, v, w, x, y, z, \
           za \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
           $9::text[], $10::float8[], $11::smallint[], $12::text[], $13::text[], $14::text[], $15::text[], \
           $16::integer[], $17::integer[], $18::integer[], $19::timestamptz[], $20::boolean[], $21::text[], \
           $22::timestamptz[], $23::float8[], $24::timestamptz[], $25::timestamptz[], $26::timestamptz[], \
           $27::timestamptz[]) AS new(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z, za)",
    )
    .bind(jobs.iter().map(|job| job.id.0).bind_iter())
    .bind(jobs.iter().map(|job| &*job.user_id).bind_iter())
    .bind(jobs.iter().map(|job| job.name.as_str()).bind_iter())
    .bind(jobs.iter().map(|job| &*job.agent).bind_iter())
    .bind(jobs.iter().map(|job| job.runner.as_str()).bind_iter())
    .bind(jobs.iter().map(|job| job.dataset_id.as_str()).bind_iter())
    .bind(jobs.iter().map(|job| job.tacc_system.as_str()).bind_iter())
    .bind(jobs.iter().map(|job| job.external_job_id.as_deref()).bind_iter())
    .bind(jobs.iter().map(|job| job.status.as_str()).bind_iter())
    .bind(jobs.iter().map(|job| job.progress).bind_iter())
    .bind(jobs.iter().map(|job| job.priority as i16).bind_iter())
    .bind(jobs.iter().map(|job| job.params.get()).bind_iter())
    .bind(jobs.iter().map(|job| json(&job.resource_request)).bind_iter())
    .bind(jobs.iter().map(|job| job.result.as_ref().map(json)).bind_iter())
    .bind(jobs.iter().map(|job| job.error.as_ref().map(json)).bind_iter())
    .bind(jobs.iter().map(|job| int(job.attempt)).bind_iter())
    .bind(jobs.iter().map(|job| int(job.retry_count)).bind_iter())
    .bind(jobs.iter().map(|job| int(job.max_retries)).bind_iter())
    .bind(jobs.iter().map(|job| job.retry_at.map(time)).bind_iter())
    .bind(jobs.iter().map(|job| job.cancel_requested).bind_iter())
    .bind(jobs.iter().map(|job| job.claimant.as_deref()).bind_iter())
    .bind(jobs.iter().map(|job| job.lease_until.map(time)).bind_iter())
    .bind(jobs.iter().map(|job| job.estimated_cost_usd).bind_iter())
    .bind(jobs.iter().map(|job| time(job.created_at)).bind_iter())
    .bind(jobs.iter().map(|job| time(job.updated_at)).bind_iter())
    .bind(jobs.iter().map(|job| job.started_at.map(time)).bind_iter())
    .bind(jobs.iter().map(|job| job.completed_at.map(time)).bind_iter());
}

/// Writes what may change of each job. Their heads are locked.
pub(super) fn update<'j>(batch: &mut Batch, jobs: impl ExactSizeIterator<Item = &'j Job> + Clone) {
    if jobs.len() == 0 {
        return;
    }
    let jobs = || jobs.clone();
    batch
        .part(
            "UPDATE jobs AS j SET external_job_id = w.external_job_id, status = w.status, progress = w.progress, \
           result = w.result::json, error = w.error::json, attempt = w.attempt, retry_count = w.retry_count, \
           retry_at = w.retry_at, cancel_requested = w.cancel_requested, claimant = w.claimant, \
           lease_until = w.lease_until, updated_at = w.updated_at, started_at = w.started_at, \
           completed_at = w.completed_at \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::text[], $7::integer[], \
           $8::integer[], $9::timestamptz[], $10::boolean[], $11::text[], $12::timestamptz[], $13::timestamptz[], \
           $14::timestamptz[], $15::timestamptz[]) \
           AS w(id, external_job_id, status, progress, result, error, attempt, retry_count, retry_at, \
             cancel_requested, claimant, lease_until, updated_at, started_at, completed_at) \
         WHERE j.id = w.id",
        )
        .bind(jobs().map(|job| job.id.0).bind_iter())
        .bind(jobs().map(|job| job.external_job_id.as_deref()).bind_iter())
        .bind(jobs().map(|job| job.status.as_str()).bind_iter())
        .bind(jobs().map(|job| job.progress).bind_iter())
        .bind(jobs().map(|job| job.result.as_ref().map(json)).bind_iter())
        .bind(jobs().map(|job| job.error.as_ref().map(json)).bind_iter())
        .bind(jobs().map(|job| int(job.attempt)).bind_iter())
        .bind(jobs().map(|job| int(job.retry_count)).bind_iter())
        .bind(jobs().map(|job| job.retry_at.map(time)).bind_iter())
        .bind(jobs().map(|job| job.cancel_requested).bind_iter())
        .bind(jobs().map(|job| job.claimant.as_deref()).bind_iter())
        .bind(jobs().map(|job| job.lease_until.map(time)).bind_iter())
        .bind(jobs().map(|job| time(job.updated_at)).bind_iter())
        .bind(jobs().map(|job| job.started_at.map(time)).bind_iter())
        .bind(jobs().map(|job| job.completed_at.map(time)).bind_iter());
}

pub(super) async fn load(c: &mut PgConnection, ids: impl IntoIterator<Item = &Id>) -> Result<Vec<Job>, StoreError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM jobs WHERE id = ANY($1)");
    let rows = sqlx::query(SQL).bind(ids.into_iter().map(|id| id.0).bind_iter()).fetch_all(c).await?;
    rows.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<Job, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let parsed = |column: &str| row.try_get::<&str, _>(column);
    let optional = |column: &str| row.try_get::<Option<&str>, _>(column);
    Ok(Job {
        id: read_id(row, "id")?,
        user_id: read_text(row, "user_id")?,
        name: text("name")?,
        agent: read_text(row, "agent")?,
        runner: parsed("runner")?.parse().map_err(StoreError::Corrupt)?,
        dataset_id: text("dataset_id")?,
        tacc_system: parsed("tacc_system")?.parse().map_err(StoreError::Corrupt)?,
        external_job_id: row.try_get("external_job_id")?,
        status: parsed("status")?.parse().map_err(StoreError::Corrupt)?,
        progress: row.try_get("progress")?,
        priority: match row.try_get::<i16, _>("priority")? {
            0 => Priority::Low,
            1 => Priority::Normal,
            _ => Priority::High,
        },
        params: Arc::from(RawValue::from_string(text("params")?).map_err(corrupt)?),
        resource_request: serde_json::from_str(parsed("resource_request")?).map_err(corrupt)?,
        result: optional("result")?.map(serde_json::from_str).transpose().map_err(corrupt)?,
        error: optional("error")?.map(serde_json::from_str).transpose().map_err(corrupt)?,
        attempt: read_u32(row, "attempt")?,
        retry_count: read_u32(row, "retry_count")?,
        max_retries: read_u32(row, "max_retries")?,
        retry_at: read_time_or_null(row, "retry_at")?,
        cancel_requested: row.try_get("cancel_requested")?,
        claimant: optional("claimant")?.map(Arc::from),
        lease_until: read_time_or_null(row, "lease_until")?,
        estimated_cost_usd: row.try_get("estimated_cost_usd")?,
        created_at: read_time(row, "created_at")?,
        updated_at: read_time(row, "updated_at")?,
        started_at: read_time_or_null(row, "started_at")?,
        completed_at: read_time_or_null(row, "completed_at")?,
    })
}

fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a job row: {error}"))
}

/// The WHERE clause of a filter: constants only, in the order of [`bind_filter!`].
const FILTER: &str = "($1::text IS NULL OR user_id = $1) AND ($2::text[] IS NULL OR status = ANY($2)) \
     AND ($3::text IS NULL OR agent = $3) AND ($4::text IS NULL OR tacc_system = $4) \
     AND ($5::timestamptz IS NULL OR created_at >= $5) AND ($6::timestamptz IS NULL OR created_at < $6) \
     AND ($7::text IS NULL OR name ILIKE $7 OR id = $8::uuid)";

macro_rules! bind_filter {
    ($query:expr, $filter:expr) => {{
        let filter: &JobFilter = $filter;
        let statuses: Vec<&str> = filter.status.iter().map(|status| status.as_str()).collect();
        let pattern = filter.text.as_ref().map(|text| {
            format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_").replace('\0', ""))
        });
        $query
            .bind(filter.user.as_deref())
            .bind((!statuses.is_empty()).then_some(statuses))
            .bind(filter.agent.as_deref())
            .bind(filter.tacc_system.map(|system| system.as_str()))
            .bind(filter.from.map(time))
            .bind(filter.to.map(time))
            .bind(pattern)
            .bind(filter.text.as_ref().and_then(|text| text.parse::<Id>().ok()).map(|id| id.0))
    }};
}

pub(super) async fn list(c: &mut PgConnection, filter: &JobFilter, page: Page<Id>) -> Result<Vec<Job>, StoreError> {
    // Two statements, because an optional user in one would lose the index.
    let by = if filter.user.is_some() { "user_id = $1" } else { "true" };
    let sql = format!("SELECT {} FROM jobs WHERE {by} AND id < $9 AND {FILTER} ORDER BY id DESC LIMIT $10", columns!());
    let rows = bind_filter!(sqlx::query(AssertSqlSafe(sql)), filter)
        .bind(page.before.map_or(uuid::Uuid::max(), |id| id.0))
        .bind(i64::from(page.limit))
        .fetch_all(c)
        .await?;
    rows.iter().map(read).collect()
}

pub(super) async fn summary(c: &mut PgConnection, filter: &JobFilter) -> Result<JobSummary, StoreError> {
    let sql = format!(
        "SELECT status, count(*) AS jobs, coalesce(sum(estimated_cost_usd), 0) AS cost, \
           coalesce(sum(extract(epoch FROM completed_at - started_at) * 1000), 0)::bigint AS run_ms, \
           coalesce(sum(extract(epoch FROM completed_at - started_at) / 3600.0 \
             * (resource_request ->> 'gpu_count_total')::numeric), 0)::float8 AS gpu_hours \
         FROM jobs WHERE {} AND {FILTER} GROUP BY status",
        if filter.user.is_some() { "user_id = $1" } else { "true" }
    );
    let rows = bind_filter!(sqlx::query(AssertSqlSafe(sql)), filter).fetch_all(c).await?;
    let mut summary = JobSummary::default();
    for row in &rows {
        let status: JobStatus = row.try_get::<&str, _>("status")?.parse().map_err(StoreError::Corrupt)?;
        let jobs = row.try_get::<i64, _>("jobs")?.cast_unsigned();
        summary.by_status.insert(status, jobs);
        summary.cost_usd += row.try_get::<f64, _>("cost")?;
        summary.gpu_hours += row.try_get::<f64, _>("gpu_hours")?;
        if status == JobStatus::Completed {
            summary.run_ms_total += row.try_get::<i64, _>("run_ms")?;
            summary.run_count += jobs;
        }
    }
    Ok(summary)
}

pub(super) async fn claimable(
    c: &mut PgConnection,
    runner: RunnerKind,
    agents: &[Arc<str>],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Id>, StoreError> {
    let agents: Vec<&str> = agents.iter().map(|agent| &**agent).collect();
    let rows = sqlx::query(
        "SELECT id FROM jobs WHERE status = 'QUEUED' AND runner = $1 AND ($2::text[] IS NULL OR agent = ANY($2)) \
           AND NOT cancel_requested AND (lease_until IS NULL OR lease_until <= $3) \
         ORDER BY priority DESC, id LIMIT $4",
    )
    .bind(runner.as_str())
    .bind((!agents.is_empty()).then_some(agents))
    .bind(time(now))
    .bind(i64::from(limit))
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(read_id(row, "id")?)).collect()
}

pub(super) async fn lapsed(c: &mut PgConnection, now: Timestamp, limit: u32) -> Result<Vec<(Id, u32)>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, attempt FROM jobs WHERE lease_until IS NOT NULL AND lease_until <= $1 \
           AND status IN ('QUEUED', 'RUNNING') ORDER BY lease_until LIMIT $2",
    )
    .bind(time(now))
    .bind(i64::from(limit))
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok((read_id(row, "id")?, read_u32(row, "attempt")?))).collect()
}

pub(super) async fn due_retries(
    c: &mut PgConnection,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<(Id, u32)>, Option<Timestamp>), StoreError> {
    let rows =
        sqlx::query("SELECT id, attempt, retry_at FROM jobs WHERE retry_at IS NOT NULL ORDER BY retry_at LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(c)
            .await?;
    let mut due = Vec::new();
    for row in &rows {
        let at = read_time(row, "retry_at")?;
        if at > now {
            return Ok((due, Some(at)));
        }
        due.push((read_id(row, "id")?, read_u32(row, "attempt")?));
    }
    Ok((due, None))
}

/// By `jobs_leased` and `jobs_claimable`, which hold jobs that have not ended alone.
pub(super) async fn workload(c: &mut PgConnection) -> Result<Workload, StoreError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL AND status = 'RUNNING') AS running, \
                (SELECT count(*) FROM jobs WHERE status = 'QUEUED') AS queued",
    )
    .fetch_one(c)
    .await?;
    let count = |name| Ok::<_, StoreError>(row.try_get::<i64, _>(name)?.unsigned_abs());
    Ok(Workload { running: count("running")?, queued: count("queued")? })
}
