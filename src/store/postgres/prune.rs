//! Deleting with age. See [`crate::store::prune`] for what may go.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::rows::{read_id, read_text, read_time, time};
use crate::domain::Id;
use crate::store::{Place, Prunable, PruneStep, Pruned, StoreError};

/// Held while a step deletes: of several instances one prunes.
const PRUNING: &str = "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), 1886547301) AS mine";

/// Runs one step in the caller's transaction. Another instance that is at it does it all.
pub(super) async fn step(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    if !step.dry_run && !sqlx::query(PRUNING).fetch_one(&mut *c).await?.try_get::<bool, _>("mine")? {
        return Ok(Pruned::NOTHING);
    }
    match &step.what {
        Prunable::Jobs => jobs(c, step).await,
        Prunable::Events => events(c, step).await,
        Prunable::Inbox => inbox(c, step).await,
        Prunable::Audit => audit(c, step).await,
        Prunable::TimedModel(model) => timed_model(c, step, model).await,
        Prunable::Idempotency => idempotency(c, step).await,
    }
}

async fn jobs(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let after = match step.after {
        Some(Place::Id(id)) => id,
        _ => Id::ZERO,
    };
    let rows = sqlx::query(
        "SELECT id, status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND retry_at IS NULL AND updated_at < $3 AS ended \
         FROM jobs WHERE id > $1 AND id < $2 ORDER BY id LIMIT $4",
    )
    .bind(after.0)
    .bind(step.before.first_id().0)
    .bind(time(step.before))
    .bind(i64::from(step.limit))
    .fetch_all(&mut *c)
    .await?;
    let next = step.behind(&rows, |row| Ok(Place::Id(read_id(row, "id")?)))?;
    let mut gone = BTreeMap::new();
    for row in &rows {
        if row.try_get::<bool, _>("ended")? {
            let id = read_id(row, "id")?;
            gone.insert(id.to_string(), id);
        }
    }
    if !step.dry_run {
        // A retry may be on its way: nobody moves them from here on.
        sqlx::query("SELECT 1 FROM heads WHERE kind = 'job' AND id = ANY($1) ORDER BY kind, id FOR UPDATE")
            .bind(gone.keys().map(String::as_str).bind_iter())
            .execute(&mut *c)
            .await?;
    }
    for needed in jobs_needed(c, gone.keys(), step.before.first_id()).await? {
        gone.remove(&needed);
    }
    let mut count = gone.len() as u64;
    if !step.dry_run && !gone.is_empty() {
        let result = sqlx::query(
            "DELETE FROM jobs WHERE id = ANY($1) AND status IN ('COMPLETED', 'FAILED', 'CANCELLED') \
               AND retry_at IS NULL AND updated_at < $2",
        )
        .bind(gone.values().map(|id| id.0).bind_iter())
        .bind(time(step.before))
        .execute(&mut *c)
        .await?;
        count = result.rows_affected();
        // In whatever model: a key that is the job's id is about the job.
        sqlx::query(
            "WITH RECURSIVE models(name) AS (SELECT min(model) FROM read_models UNION ALL \
               SELECT (SELECT min(model) FROM read_models WHERE model > name) FROM models WHERE name IS NOT NULL) \
             DELETE FROM read_models AS m USING models WHERE m.model = models.name AND m.key = ANY($1)",
        )
        .bind(gone.keys().map(String::as_str).bind_iter())
        .execute(&mut *c)
        .await?;
    }
    Ok(Pruned { rows: count, next })
}

/// Those jobs that have an event which is young, not delivered, or in the backlog.
async fn jobs_needed(
    c: &mut PgConnection,
    ids: impl Iterator<Item = &String>,
    before: Id,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "SELECT w.id FROM unnest($1::text[]) AS w(id) WHERE EXISTS ( \
           SELECT 1 FROM events AS e WHERE e.aggregate_id = w.id AND (e.event_id >= $2 \
             OR EXISTS (SELECT 1 FROM legs AS l WHERE l.position = e.position AND l.state IN (0, 3)) \
             OR EXISTS (SELECT 1 FROM backlog AS b WHERE b.event_id = e.event_id)))",
    )
    .bind(ids.map(String::as_str).bind_iter())
    .bind(before.0)
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// An event on its way out.
struct OldEvent {
    event_id: Id,
    aggregate: String,
    aggregate_id: String,
}

async fn events(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    // The newest stays, as in every store.
    let rows = sqlx::query(
        "SELECT position, event_id, aggregate, aggregate_id FROM events \
         WHERE position > $1 AND position < (SELECT max(position) FROM events) ORDER BY position LIMIT $2",
    )
    .bind(step.position())
    .bind(i64::from(step.limit))
    .fetch_all(&mut *c)
    .await?;
    // Age is when the gateway took it: `occurred_at` may be the sender's.
    let bound = step.before.first_id();
    let mut gone = BTreeMap::new();
    for row in &rows {
        let event_id = read_id(row, "event_id")?;
        if event_id < bound {
            let event =
                OldEvent { event_id, aggregate: row.try_get("aggregate")?, aggregate_id: row.try_get("aggregate_id")? };
            gone.insert(row.try_get::<i64, _>("position")?, event);
        }
    }
    if gone.is_empty() {
        // Ids grow nearly as positions do: behind a whole page of young ones are only younger.
        return Ok(Pruned::NOTHING);
    }
    for needed in events_needed(c, &gone, step).await? {
        gone.remove(&needed);
    }
    if !step.dry_run && !gone.is_empty() {
        delete_events(c, &gone).await?;
    }
    let next = step.behind(&rows, |row| Ok(Place::Position(row.try_get("position")?)))?;
    Ok(Pruned { rows: gone.len() as u64, next })
}

/// Positions of those that are not delivered, in the backlog, or of a job that stays.
async fn events_needed(
    c: &mut PgConnection,
    old: &BTreeMap<i64, OldEvent>,
    step: &PruneStep,
) -> Result<Vec<i64>, StoreError> {
    let jobs = old.values().map(|event| event.aggregate_id.parse::<Uuid>().ok());
    // In a dry run the jobs that will go are still there.
    let rows = sqlx::query(
        "SELECT w.position FROM unnest($1::bigint[], $2::uuid[], $3::uuid[]) AS w(position, event_id, job) WHERE \
           EXISTS (SELECT 1 FROM legs AS l WHERE l.position = w.position AND l.state IN (0, 3)) \
           OR EXISTS (SELECT 1 FROM backlog AS b WHERE b.event_id = w.event_id) \
           OR EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = w.job AND NOT ($4 \
             AND j.status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND j.retry_at IS NULL AND j.updated_at < $5))",
    )
    .bind(old.keys().copied().bind_iter())
    .bind(old.values().map(|event| event.event_id.0).bind_iter())
    .bind(jobs.bind_iter())
    .bind(step.dry_run)
    .bind(time(step.before))
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("position")?)).collect()
}

async fn delete_events(c: &mut PgConnection, gone: &BTreeMap<i64, OldEvent>) -> Result<(), StoreError> {
    for sql in ["DELETE FROM legs WHERE position = ANY($1)", "DELETE FROM events WHERE position = ANY($1)"] {
        sqlx::query(sql).bind(gone.keys().copied().bind_iter()).execute(&mut *c).await?;
    }
    // A job's numbers end with it. Those of other aggregates and of channels go on for ever.
    let aggregates: BTreeSet<_> =
        gone.values().map(|event| (event.aggregate.as_str(), event.aggregate_id.as_str())).collect();
    sqlx::query(
        "DELETE FROM heads AS h USING unnest($1::text[], $2::text[]) AS w(kind, id) \
         WHERE h.kind = w.kind AND h.id = w.id AND h.kind IN ('job', 'job_command', 'job_metrics') \
           AND NOT EXISTS (SELECT 1 FROM events AS e WHERE e.aggregate = h.kind AND e.aggregate_id = h.id)",
    )
    .bind(aggregates.iter().map(|(kind, _)| *kind).bind_iter())
    .bind(aggregates.iter().map(|(_, id)| *id).bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

/// By the ids' time: the primary key, so no index is needed for it. What has another
/// kind of id (messages that could not be read) stays.
async fn inbox(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let (consumer, after) = match &step.after {
        Some(Place::Inbox(consumer, id)) => (consumer.clone(), *id),
        _ => match next_consumer(c, "").await? {
            Some(first) => (first, Id::ZERO),
            None => return Ok(Pruned::NOTHING),
        },
    };
    let rows = sqlx::query(
        "SELECT i.event_id, i.at < $4 AND ($6 OR NOT EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = i.event_id)) \
           AS free FROM inbox AS i WHERE i.consumer = $1 AND i.event_id > $2 AND i.event_id < $3 \
         ORDER BY i.event_id LIMIT $5",
    )
    .bind(&*consumer)
    .bind(after.0)
    .bind(step.before.first_id().0)
    .bind(time(step.before))
    .bind(i64::from(step.limit))
    .bind(step.dry_run)
    .fetch_all(&mut *c)
    .await?;
    let mut gone = Vec::new();
    for row in &rows {
        if row.try_get::<bool, _>("free")? {
            gone.push(row.try_get::<Uuid, _>("event_id")?);
        }
    }
    let count = gone.len() as u64;
    if !step.dry_run && !gone.is_empty() {
        sqlx::query("DELETE FROM inbox WHERE consumer = $1 AND event_id = ANY($2)")
            .bind(&*consumer)
            .bind(gone)
            .execute(&mut *c)
            .await?;
    }
    let same = step.behind(&rows, |row| Ok(Place::Inbox(consumer.clone(), read_id(row, "event_id")?)))?;
    let next = match same {
        Some(place) => Some(place),
        None => next_consumer(c, &consumer).await?.map(|consumer| Place::Inbox(consumer, Id::ZERO)),
    };
    Ok(Pruned { rows: count, next })
}

async fn next_consumer(c: &mut PgConnection, after: &str) -> Result<Option<std::sync::Arc<str>>, StoreError> {
    let row = sqlx::query("SELECT consumer FROM inbox WHERE consumer > $1 ORDER BY consumer LIMIT 1")
        .bind(after)
        .fetch_optional(c)
        .await?;
    Ok(row.map(|row| read_text(&row, "consumer")).transpose()?)
}

/// Only from the old end, and never the last row: the chain is checked from the oldest
/// row kept.
async fn audit(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let rows = sqlx::query(
        "SELECT number, at FROM audit_log WHERE number > $1 AND number < (SELECT max(number) FROM audit_log) \
         ORDER BY number LIMIT $2",
    )
    .bind(step.position())
    .bind(i64::from(step.limit))
    .fetch_all(&mut *c)
    .await?;
    let (mut count, mut last, mut young) = (0, None, false);
    for row in &rows {
        if read_time(row, "at")? >= step.before {
            young = true;
            break;
        }
        count += 1;
        last = Some(row.try_get::<i64, _>("number")?);
    }
    let Some(last) = last else { return Ok(Pruned::NOTHING) };
    if !step.dry_run {
        sqlx::query("DELETE FROM audit_log WHERE number <= $1").bind(last).execute(c).await?;
    }
    let more = !young && rows.len() == step.limit as usize;
    Ok(Pruned { rows: count, next: more.then_some(Place::Position(last)) })
}

async fn timed_model(c: &mut PgConnection, step: &PruneStep, model: &str) -> Result<Pruned, StoreError> {
    if step.dry_run {
        let row = sqlx::query("SELECT count(*) AS old FROM read_models WHERE model = $1 AND key < $2")
            .bind(model)
            .bind(step.before.to_string())
            .fetch_one(c)
            .await?;
        return counted(&row);
    }
    let result = sqlx::query(
        "DELETE FROM read_models WHERE model = $1 AND key = ANY(ARRAY( \
           SELECT key FROM read_models WHERE model = $1 AND key < $2 ORDER BY key LIMIT $3))",
    )
    .bind(model)
    .bind(step.before.to_string())
    .bind(i64::from(step.limit))
    .execute(c)
    .await?;
    Ok(step.after_deleting(result.rows_affected()))
}

async fn idempotency(c: &mut PgConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    if step.dry_run {
        let row = sqlx::query("SELECT count(*) AS old FROM idempotency WHERE at < $1")
            .bind(time(step.before))
            .fetch_one(c)
            .await?;
        return counted(&row);
    }
    let result = sqlx::query(
        "DELETE FROM idempotency WHERE ctid = ANY(ARRAY( \
           SELECT ctid FROM idempotency WHERE at < $1 ORDER BY at LIMIT $2))",
    )
    .bind(time(step.before))
    .bind(i64::from(step.limit))
    .execute(c)
    .await?;
    Ok(step.after_deleting(result.rows_affected()))
}

fn counted(row: &PgRow) -> Result<Pruned, StoreError> {
    Ok(Pruned { rows: row.try_get::<i64, _>("old")?.cast_unsigned(), next: None })
}
