//! Deleting with age. See [`crate::store::prune`] for what may go.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::read_id;
use super::rows::{hex_list, json_list};
use crate::domain::Id;
use crate::store::{Place, Prunable, PruneStep, Pruned, StoreError};

/// Runs one step; the caller holds the transaction (any connection for a dry run).
pub(super) async fn step(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    match &step.what {
        Prunable::Jobs => jobs(c, step).await,
        Prunable::Events => events(c, step).await,
        Prunable::Inbox => inbox(c, step).await,
        Prunable::Audit => audit(c, step).await,
        Prunable::TimedModel(model) => timed_model(c, step, model).await,
        Prunable::Idempotency => idempotency(c, step).await,
    }
}

fn last_id(step: &PruneStep) -> Vec<u8> {
    match step.after {
        Some(Place::Id(id)) => id.as_bytes().to_vec(),
        _ => Vec::new(),
    }
}

async fn jobs(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let rows = sqlx::query(
        "SELECT id, status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND retry_at IS NULL AND updated_at < ?3 AS ended \
         FROM jobs WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?4",
    )
    .bind(last_id(step))
    .bind(step.before.first_id().as_bytes().to_vec())
    .bind(step.before.0)
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
    for needed in jobs_needed(c, gone.keys(), step.before.first_id()).await? {
        gone.remove(&needed);
    }
    if !step.dry_run && !gone.is_empty() {
        sqlx::query("DELETE FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?))")
            .bind(hex_list(gone.values()))
            .execute(&mut *c)
            .await?;
        // In whatever model: a key that is the job's id is about the job.
        sqlx::query(
            "WITH RECURSIVE models(name) AS (SELECT min(model) FROM read_models UNION ALL \
               SELECT (SELECT min(model) FROM read_models WHERE model > name) FROM models WHERE name IS NOT NULL) \
             DELETE FROM read_models WHERE (model, key) IN \
               (SELECT models.name, wanted.value FROM models, json_each(?) AS wanted)",
        )
        .bind(json_list(gone.keys()))
        .execute(&mut *c)
        .await?;
    }
    Ok(Pruned { rows: gone.len() as u64, next })
}

/// Those jobs that have an event which is young, not delivered, or in the backlog.
async fn jobs_needed(
    c: &mut SqliteConnection,
    ids: impl Iterator<Item = &String>,
    before: Id,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "SELECT wanted.value AS id FROM json_each(?1) AS wanted WHERE EXISTS ( \
           SELECT 1 FROM events AS e WHERE e.aggregate_id = wanted.value AND (e.event_id >= ?2 \
             OR EXISTS (SELECT 1 FROM legs AS l WHERE l.position = e.position AND l.state IN (0, 3)) \
             OR EXISTS (SELECT 1 FROM backlog AS b WHERE b.event_id = e.event_id)))",
    )
    .bind(json_list(ids))
    .bind(before.as_bytes().to_vec())
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

async fn events(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    // The newest stays: the next position follows from it.
    let rows = sqlx::query(
        "SELECT position, event_id, aggregate, aggregate_id FROM events \
         WHERE position > ?1 AND position < (SELECT max(position) FROM events) ORDER BY position LIMIT ?2",
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
        // Positions are in commit order, ids nearly so: behind a whole page of young ones are only younger.
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
    c: &mut SqliteConnection,
    old: &BTreeMap<i64, OldEvent>,
    step: &PruneStep,
) -> Result<Vec<i64>, StoreError> {
    let list = json_list(old.iter().map(|(position, event)| {
        let job = event.aggregate_id.parse::<Id>().ok().map(|id| hex::encode(id.as_bytes()));
        (position, hex::encode(event.event_id.as_bytes()), job)
    }));
    // In a dry run the jobs that will go are still there.
    let rows = sqlx::query(
        "SELECT wanted.value ->> 0 AS position FROM json_each(?1) AS wanted WHERE \
           EXISTS (SELECT 1 FROM legs AS l WHERE l.position = wanted.value ->> 0 AND l.state IN (0, 3)) \
           OR EXISTS (SELECT 1 FROM backlog AS b WHERE b.event_id = unhex(wanted.value ->> 1)) \
           OR EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = unhex(wanted.value ->> 2) AND NOT (?2 \
             AND j.status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND j.retry_at IS NULL AND j.updated_at < ?3))",
    )
    .bind(list)
    .bind(step.dry_run)
    .bind(step.before.0)
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("position")?)).collect()
}

async fn delete_events(c: &mut SqliteConnection, gone: &BTreeMap<i64, OldEvent>) -> Result<(), StoreError> {
    let positions = json_list(gone.keys());
    for sql in [
        "DELETE FROM legs WHERE position IN (SELECT value FROM json_each(?))",
        "DELETE FROM events WHERE position IN (SELECT value FROM json_each(?))",
    ] {
        sqlx::query(sql).bind(&positions).execute(&mut *c).await?;
    }
    // A job's numbers end with it. Those of other aggregates and of channels go on for ever.
    let aggregates: BTreeSet<_> =
        gone.values().map(|event| (event.aggregate.as_str(), event.aggregate_id.as_str())).collect();
    sqlx::query(
        "DELETE FROM heads WHERE kind IN ('job', 'job_command', 'job_metrics') \
           AND (kind, id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?)) \
           AND NOT EXISTS (SELECT 1 FROM events AS e WHERE e.aggregate = heads.kind AND e.aggregate_id = heads.id)",
    )
    .bind(json_list(aggregates))
    .execute(c)
    .await?;
    Ok(())
}

/// By the ids' time: the primary key, so no index is needed for it. What has another
/// kind of id (messages that could not be read) stays.
async fn inbox(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let (consumer, after) = match &step.after {
        Some(Place::Inbox(consumer, id)) => (consumer.to_string(), id.as_bytes().to_vec()),
        _ => match next_consumer(c, "").await? {
            Some(first) => (first, Vec::new()),
            None => return Ok(Pruned::NOTHING),
        },
    };
    let rows = sqlx::query(
        "SELECT i.event_id, i.at < ?4 AND (?6 OR NOT EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = i.event_id)) \
           AS free FROM inbox AS i WHERE i.consumer = ?1 AND i.event_id > ?2 AND i.event_id < ?3 \
         ORDER BY i.event_id LIMIT ?5",
    )
    .bind(&consumer)
    .bind(after)
    .bind(step.before.first_id().as_bytes().to_vec())
    .bind(step.before.0)
    .bind(i64::from(step.limit))
    .bind(step.dry_run)
    .fetch_all(&mut *c)
    .await?;
    let mut gone = Vec::new();
    for row in &rows {
        if row.try_get::<bool, _>("free")? {
            gone.push(read_id(row, "event_id")?);
        }
    }
    if !step.dry_run && !gone.is_empty() {
        sqlx::query("DELETE FROM inbox WHERE consumer = ?1 AND event_id IN (SELECT unhex(value) FROM json_each(?2))")
            .bind(&consumer)
            .bind(hex_list(&gone))
            .execute(&mut *c)
            .await?;
    }
    let same = step.behind(&rows, |row| Ok(Place::Inbox(consumer.as_str().into(), read_id(row, "event_id")?)))?;
    let next = match same {
        Some(place) => Some(place),
        None => next_consumer(c, &consumer).await?.map(|consumer| Place::Inbox(consumer.into(), Id::ZERO)),
    };
    Ok(Pruned { rows: gone.len() as u64, next })
}

async fn next_consumer(c: &mut SqliteConnection, after: &str) -> Result<Option<String>, StoreError> {
    let row = sqlx::query("SELECT min(consumer) AS consumer FROM inbox WHERE consumer > ?1")
        .bind(after.to_owned())
        .fetch_one(c)
        .await?;
    Ok(row.try_get("consumer")?)
}

/// Only from the old end, and never the last row: the chain is checked from the oldest
/// row kept, and numbers go on from the newest.
async fn audit(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    let rows = sqlx::query(
        "SELECT number, at FROM audit_log WHERE number > ?1 AND number < (SELECT max(number) FROM audit_log) \
         ORDER BY number LIMIT ?2",
    )
    .bind(step.position())
    .bind(i64::from(step.limit))
    .fetch_all(&mut *c)
    .await?;
    let (mut count, mut last, mut young) = (0, None, false);
    for row in &rows {
        if row.try_get::<i64, _>("at")? >= step.before.0 {
            young = true;
            break;
        }
        count += 1;
        last = Some(row.try_get::<i64, _>("number")?);
    }
    let Some(last) = last else { return Ok(Pruned::NOTHING) };
    if !step.dry_run {
        sqlx::query("DELETE FROM audit_log WHERE number <= ?1").bind(last).execute(c).await?;
    }
    let more = !young && rows.len() == step.limit as usize;
    Ok(Pruned { rows: count, next: more.then_some(Place::Position(last)) })
}

async fn timed_model(c: &mut SqliteConnection, step: &PruneStep, model: &str) -> Result<Pruned, StoreError> {
    if step.dry_run {
        let row = sqlx::query("SELECT count(*) AS old FROM read_models WHERE model = ?1 AND key < ?2")
            .bind(model)
            .bind(step.before.to_string())
            .fetch_one(c)
            .await?;
        return counted(&row);
    }
    let result = sqlx::query(
        "DELETE FROM read_models WHERE model = ?1 AND key IN \
           (SELECT key FROM read_models WHERE model = ?1 AND key < ?2 ORDER BY key LIMIT ?3)",
    )
    .bind(model)
    .bind(step.before.to_string())
    .bind(i64::from(step.limit))
    .execute(c)
    .await?;
    Ok(step.after_deleting(result.rows_affected()))
}

async fn idempotency(c: &mut SqliteConnection, step: &PruneStep) -> Result<Pruned, StoreError> {
    if step.dry_run {
        let row = sqlx::query("SELECT count(*) AS old FROM idempotency WHERE at < ?1")
            .bind(step.before.0)
            .fetch_one(c)
            .await?;
        return counted(&row);
    }
    let result = sqlx::query(
        "DELETE FROM idempotency WHERE rowid IN (SELECT rowid FROM idempotency WHERE at < ?1 ORDER BY at LIMIT ?2)",
    )
    .bind(step.before.0)
    .bind(i64::from(step.limit))
    .execute(c)
    .await?;
    Ok(step.after_deleting(result.rows_affected()))
}

fn counted(row: &SqliteRow) -> Result<Pruned, StoreError> {
    let old: i64 = row.try_get("old")?;
    Ok(Pruned { rows: old as u64, next: None })
}
