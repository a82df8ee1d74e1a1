//! Job rows.

use std::sync::Arc;

use serde_json::value::RawValue;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::rows::{Args, hex_list, json_list, write_rows};
use crate::domain::job::{Job, JobStatus, Priority, RunnerKind};
use crate::domain::{Id, Timestamp};
use crate::store::{JobFilter, JobSummary, Page, StoreError, Workload};

macro_rules! columns {
    () => {
        "id, user_id, name, agent, runner, dataset_id, tacc_system, external_job_id, status, progress, \
     priority, params, resource_request, result, error, attempt, retry_count, max_retries, retry_at, \
     cancel_requested, claimant, lease_until, estimated_cost_usd, created_at, updated_at, started_at, completed_at"
    };
}

fn bind(args: &mut Args, job: &Job) {
    args.push(job.id.as_bytes().to_vec())
        .push(job.user_id.clone())
        .push(job.name.clone())
        .push(job.agent.clone())
        .push(job.runner.as_str())
        .push(job.dataset_id.clone())
        .push(job.tacc_system.as_str())
        .push(job.external_job_id.clone())
        .push(job.status.as_str())
        .push(job.progress)
        .push(job.priority as i64)
        .push(job.params.get().to_owned())
        .push(json(&job.resource_request))
        .push(job.result.as_ref().map(json))
        .push(job.error.as_ref().map(json))
        .push(i64::from(job.attempt))
        .push(i64::from(job.retry_count))
        .push(i64::from(job.max_retries))
        .push(job.retry_at.map(|t| t.0))
        .push(job.cancel_requested)
        .push(job.claimant.clone())
        .push(job.lease_until.map(|t| t.0))
        .push(job.estimated_cost_usd)
        .push(job.created_at.0)
        .push(job.updated_at.0)
        .push(job.started_at.map(|t| t.0))
        .push(job.completed_at.map(|t| t.0));
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Plain structs of numbers and strings always serialise.
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

const INSERT: &str = concat!("INSERT INTO jobs (", columns!(), ")");
const ROW: &str = "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

pub(super) async fn insert(connection: &mut SqliteConnection, jobs: &[Job]) -> Result<(), sqlx::Error> {
    write_rows(connection, INSERT, ROW, "", jobs, bind).await
}

pub(super) async fn update(connection: &mut SqliteConnection, jobs: &[Job]) -> Result<(), sqlx::Error> {
    const TAIL: &str = "ON CONFLICT (id) DO UPDATE SET external_job_id = excluded.external_job_id, \
         status = excluded.status, progress = excluded.progress, result = excluded.result, error = excluded.error, \
         attempt = excluded.attempt, retry_count = excluded.retry_count, retry_at = excluded.retry_at, \
         cancel_requested = excluded.cancel_requested, claimant = excluded.claimant, \
         lease_until = excluded.lease_until, updated_at = excluded.updated_at, started_at = excluded.started_at, \
         completed_at = excluded.completed_at";
    write_rows(connection, INSERT, ROW, TAIL, jobs, bind).await
}

pub(super) async fn load(
    connection: &mut SqliteConnection,
    ids: impl IntoIterator<Item = &Id>,
) -> Result<Vec<Job>, StoreError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?))");
    let rows = sqlx::query(SQL).bind(hex_list(ids)).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

pub(super) fn read(row: &SqliteRow) -> Result<Job, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let time = |column: &str| row.try_get::<Option<i64>, _>(column).map(|t| t.map(Timestamp));
    let optional = |column: &str| row.try_get::<Option<String>, _>(column);
    Ok(Job {
        id: super::read_id(row, "id")?,
        user_id: text("user_id")?.into(),
        name: text("name")?,
        agent: text("agent")?.into(),
        runner: text("runner")?.parse().map_err(StoreError::Corrupt)?,
        dataset_id: text("dataset_id")?,
        tacc_system: text("tacc_system")?.parse().map_err(StoreError::Corrupt)?,
        external_job_id: optional("external_job_id")?,
        status: text("status")?.parse().map_err(StoreError::Corrupt)?,
        progress: row.try_get("progress")?,
        priority: match row.try_get::<i64, _>("priority")? {
            0 => Priority::Low,
            1 => Priority::Normal,
            _ => Priority::High,
        },
        params: Arc::from(RawValue::from_string(text("params")?).map_err(corrupt)?),
        resource_request: serde_json::from_str(&text("resource_request")?).map_err(corrupt)?,
        result: optional("result")?.map(|t| serde_json::from_str(&t)).transpose().map_err(corrupt)?,
        error: optional("error")?.map(|t| serde_json::from_str(&t)).transpose().map_err(corrupt)?,
        attempt: row.try_get("attempt")?,
        retry_count: row.try_get("retry_count")?,
        max_retries: row.try_get("max_retries")?,
        retry_at: time("retry_at")?,
        cancel_requested: row.try_get("cancel_requested")?,
        claimant: optional("claimant")?.map(Arc::from),
        lease_until: time("lease_until")?,
        estimated_cost_usd: row.try_get("estimated_cost_usd")?,
        created_at: Timestamp(row.try_get("created_at")?),
        updated_at: Timestamp(row.try_get("updated_at")?),
        started_at: time("started_at")?,
        completed_at: time("completed_at")?,
    })
}

fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a job row: {error}"))
}

/// The WHERE clause of a filter: constants only, in the order of [`bind_filter`].
const FILTER: &str = "(?1 IS NULL OR user_id = ?1) AND (?2 IS NULL OR status IN (SELECT value FROM json_each(?2))) \
     AND (?3 IS NULL OR agent = ?3) AND (?4 IS NULL OR tacc_system = ?4) AND (?5 IS NULL OR created_at >= ?5) \
     AND (?6 IS NULL OR created_at < ?6) AND (?7 IS NULL OR name LIKE ?7 ESCAPE '\\' OR id = ?8)";

fn bind_filter(filter: &JobFilter) -> Args {
    let mut args = Args::default();
    let statuses = (!filter.status.is_empty()).then(|| json_list(filter.status.iter().map(|s| s.as_str())));
    let pattern = filter.text.as_ref().map(|text| {
        let escaped = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        format!("%{escaped}%")
    });
    let id = filter.text.as_ref().and_then(|text| text.parse::<Id>().ok()).map(|id| id.as_bytes().to_vec());
    args.push(filter.user.clone())
        .push(statuses)
        .push(filter.agent.clone())
        .push(filter.tacc_system.map(|s| s.as_str()))
        .push(filter.from.map(|t| t.0))
        .push(filter.to.map(|t| t.0))
        .push(pattern)
        .push(id);
    args
}

pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &JobFilter,
    page: Page<Id>,
) -> Result<Vec<Job>, StoreError> {
    let mut args = bind_filter(filter);
    args.push(page.before.map(|id| id.as_bytes().to_vec())).push(i64::from(page.limit));
    // Two statements, because an optional user in one would lose the index.
    let by = if filter.user.is_some() { "user_id = ?1" } else { "1" };
    let below = if page.before.is_some() { "id < ?9" } else { "?9 IS NULL" };
    let sql = format!("SELECT {} FROM jobs WHERE {by} AND {below} AND {FILTER} ORDER BY id DESC LIMIT ?10", columns!());
    let rows = sqlx::query_with(AssertSqlSafe(sql), args.into_inner()).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

pub(super) async fn summary(connection: &mut SqliteConnection, filter: &JobFilter) -> Result<JobSummary, StoreError> {
    let sql = format!(
        "SELECT status, count(*) AS jobs, total(estimated_cost_usd) AS cost, \
           coalesce(sum(CASE WHEN completed_at IS NOT NULL AND started_at IS NOT NULL \
             THEN completed_at - started_at ELSE 0 END), 0) AS run_ms, \
           total(CASE WHEN completed_at IS NOT NULL AND started_at IS NOT NULL THEN \
             (completed_at - started_at) / 3600000.0 * (resource_request ->> 'gpu_count_total') ELSE 0 END) \
             AS gpu_hours \
         FROM jobs WHERE {} AND {FILTER} GROUP BY status",
        if filter.user.is_some() { "user_id = ?1" } else { "1" }
    );
    let rows = sqlx::query_with(AssertSqlSafe(sql), bind_filter(filter).into_inner()).fetch_all(connection).await?;
    let mut summary = JobSummary::default();
    for row in &rows {
        let status: JobStatus = row.try_get::<String, _>("status")?.parse().map_err(StoreError::Corrupt)?;
        let jobs: i64 = row.try_get("jobs")?;
        summary.by_status.insert(status, jobs as u64);
        summary.cost_usd += row.try_get::<f64, _>("cost")?;
        summary.gpu_hours += row.try_get::<f64, _>("gpu_hours")?;
        if status == JobStatus::Completed {
            summary.run_ms_total += row.try_get::<i64, _>("run_ms")?;
            summary.run_count += jobs as u64;
        }
    }
    Ok(summary)
}

pub(super) async fn claimable(
    connection: &mut SqliteConnection,
    runner: RunnerKind,
    agents: &[Arc<str>],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Id>, StoreError> {
    let rows = sqlx::query(
        "SELECT id FROM jobs WHERE status = 'QUEUED' AND runner = ?1 \
           AND (?2 IS NULL OR agent IN (SELECT value FROM json_each(?2))) \
           AND cancel_requested = 0 AND (lease_until IS NULL OR lease_until <= ?3) \
         ORDER BY priority DESC, id LIMIT ?4",
    )
    .bind(runner.as_str())
    .bind((!agents.is_empty()).then(|| json_list(agents.iter())))
    .bind(now.0)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| super::read_id(row, "id")).collect()
}

pub(super) async fn lapsed(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<(Id, u32)>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, attempt FROM jobs WHERE lease_until IS NOT NULL AND lease_until <= ?1 \
           AND status IN ('QUEUED', 'RUNNING') ORDER BY lease_until LIMIT ?2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((super::read_id(row, "id")?, row.try_get("attempt")?))).collect()
}

pub(super) async fn due_retries(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<(Id, u32)>, Option<Timestamp>), StoreError> {
    let rows =
        sqlx::query("SELECT id, attempt, retry_at FROM jobs WHERE retry_at IS NOT NULL ORDER BY retry_at LIMIT ?1")
            .bind(i64::from(limit))
            .fetch_all(connection)
            .await?;
    let mut due = Vec::new();
    for row in &rows {
        let at = Timestamp(row.try_get("retry_at")?);
        if at > now {
            return Ok((due, Some(at)));
        }
        due.push((super::read_id(row, "id")?, row.try_get("attempt")?));
    }
    Ok((due, None))
}

/// Both indexes hold jobs that have not ended alone.
pub(super) async fn workload(connection: &mut SqliteConnection) -> Result<Workload, StoreError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM jobs INDEXED BY jobs_leased \
                 WHERE lease_until IS NOT NULL AND status = 'RUNNING') AS running, \
                (SELECT count(*) FROM jobs INDEXED BY jobs_claimable WHERE status = 'QUEUED') AS queued",
    )
    .fetch_one(connection)
    .await?;
    let count = |name| Ok::<_, StoreError>(row.try_get::<i64, _>(name)?.unsigned_abs());
    Ok(Workload { running: count("running")?, queued: count("queued")? })
}
