//! Failed and parked deliveries.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::postgres::PgBindIterExt;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::batch::Batch;
use super::rows::{int, read_id, read_text, read_time_or_null, read_u32, rounds, time};
use crate::domain::event::Encoding;
use crate::domain::{Id, Timestamp};
use crate::store::plan::{BacklogKey, BacklogPut, BacklogState};
use crate::store::{BacklogRow, StoreError, StoredMessage};

fn encoding_text(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "json",
        Encoding::Avro => "avro",
    }
}

/// Locks the keys that are blocked: parking and releasing take turns.
pub(super) async fn lock_blocked(
    c: &mut PgConnection,
    keys: &BTreeSet<BacklogKey>,
) -> Result<HashSet<BacklogKey>, StoreError> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(
        "SELECT k.consumer, k.key FROM unnest($1::text[], $2::text[]) AS w(consumer, key) \
         JOIN backlog_keys AS k ON k.consumer = w.consumer AND k.key = w.key \
         ORDER BY k.consumer, k.key FOR UPDATE OF k",
    )
    .bind(keys.iter().map(|(consumer, _)| &**consumer).bind_iter())
    .bind(keys.iter().map(|(_, key)| &**key).bind_iter())
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok((read_text(row, "consumer")?, read_text(row, "key")?))).collect()
}

const INSERT: &str = "INSERT INTO backlog (consumer, key, sequence, event_id, state, ordered, attempts, next_at, at, \
   errors, headers, encoding, body, source) \
 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::smallint[], $6::boolean[], \
   $7::integer[], $8::timestamptz[], $9::timestamptz[], $10::jsonb[], $11::bytea[], $12::text[], \
   $13::bytea[], $14::text[]) \
 ON CONFLICT (consumer, event_id)";
const MOVE: &str = "DO UPDATE SET state = excluded.state, attempts = excluded.attempts, \
   next_at = excluded.next_at, at = excluded.at, errors = backlog.errors || excluded.errors";

/// Inserts what is delivered, unless it is here: a broker's repeat is not another attempt. What was
/// tried from the backlog moves along: the error history grows, the bytes stay.
pub(super) async fn put(c: &mut PgConnection, rows: &[BacklogPut]) -> Result<(), StoreError> {
    for rows in rounds(rows, |row| (row.claim.consumer.clone(), row.claim.event_id)) {
        let (tried, delivered): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.claim.from_backlog);
        write(c, &delivered, "DO NOTHING").await?;
        write(c, &tried, MOVE).await?;
    }
    Ok(())
}

async fn write(c: &mut PgConnection, rows: &[&BacklogPut], on_conflict: &'static str) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let claims = rows.iter().map(|row| &row.claim);
    let errors = rows.iter().map(|row| {
        let (attempts, _, error) = row.progress();
        // PostgreSQL keeps no NUL, and an error may quote anything.
        let error = error.map(|error| error.replace('\0', "\u{fffd}"));
        error.map_or_else(|| json!([]), |error| json!([{ "at": row.claim.at, "attempt": attempts, "error": error }]))
    });
    let headers = rows.iter().map(|row| {
        let headers = row.message().and_then(|message| message.headers.as_ref());
        headers.and_then(|headers| serde_json::to_vec(&**headers).ok()).unwrap_or_default()
    });
    sqlx::query(AssertSqlSafe(format!("{INSERT} {on_conflict}")))
        .bind(claims.clone().map(|claim| &*claim.consumer).bind_iter())
        .bind(claims.clone().map(|claim| &*claim.key).bind_iter())
        .bind(claims.clone().map(|claim| claim.sequence).bind_iter())
        .bind(claims.clone().map(|claim| claim.event_id.0).bind_iter())
        .bind(rows.iter().map(|row| row.state as i16).bind_iter())
        .bind(claims.clone().map(|claim| claim.ordered).bind_iter())
        .bind(rows.iter().map(|row| int(row.progress().0)).bind_iter())
        .bind(rows.iter().map(|row| row.progress().1.map(time)).bind_iter())
        .bind(claims.map(|claim| time(claim.at)).bind_iter())
        .bind(errors.bind_iter())
        .bind(headers.bind_iter())
        .bind(rows.iter().map(|row| row.message().map_or("json", |m| encoding_text(m.encoding))).bind_iter())
        .bind(rows.iter().map(|row| row.message().map_or(&[][..], |m| &m.body[..])).bind_iter())
        .bind(rows.iter().map(|row| row.message().map_or("", |m| &*m.position)).bind_iter())
        .execute(c)
        .await?;
    Ok(())
}

pub(super) fn block(batch: &mut Batch, keys: &BTreeSet<BacklogKey>) {
    if keys.is_empty() {
        return;
    }
    batch
        .part(
        "INSERT INTO backlog_keys (consumer, key) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING",
    )
    .bind(keys.iter().map(|(consumer, _)| &**consumer).bind_iter())
    .bind(keys.iter().map(|(_, key)| &**key).bind_iter());
}

/// Removes handled rows, wakes the next one of each key, frees keys that have none.
pub(super) async fn release(
    c: &mut PgConnection,
    released: &[(Arc<str>, Arc<str>, Id)],
    now: Timestamp,
) -> Result<(), StoreError> {
    if released.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM backlog AS b USING unnest($1::text[], $2::uuid[]) AS w(consumer, event_id) \
         WHERE b.consumer = w.consumer AND b.event_id = w.event_id",
    )
    .bind(released.iter().map(|(consumer, ..)| &**consumer).bind_iter())
    .bind(released.iter().map(|(.., id)| id.0).bind_iter())
    .execute(&mut *c)
    .await?;
    let keys: BTreeSet<(&str, &str)> = released.iter().map(|(consumer, key, _)| (&**consumer, &**key)).collect();
    sqlx::query(
        "UPDATE backlog AS b SET state = 1, next_at = $3 FROM unnest($1::text[], $2::text[]) AS w(consumer, key) \
           CROSS JOIN LATERAL (SELECT f.event_id FROM backlog AS f WHERE f.consumer = w.consumer AND f.key = w.key \
                               ORDER BY f.sequence LIMIT 1) AS first \
         WHERE b.consumer = w.consumer AND b.event_id = first.event_id AND b.state = 2",
    )
    .bind(keys.iter().map(|(consumer, _)| *consumer).bind_iter())
    .bind(keys.iter().map(|(_, key)| *key).bind_iter())
    .bind(time(now))
    .execute(&mut *c)
    .await?;
    sqlx::query(
        "DELETE FROM backlog_keys AS k USING unnest($1::text[], $2::text[]) AS w(consumer, key) \
         WHERE k.consumer = w.consumer AND k.key = w.key \
           AND NOT EXISTS (SELECT 1 FROM backlog AS b WHERE b.consumer = k.consumer AND b.key = k.key)",
    )
    .bind(keys.iter().map(|(consumer, _)| *consumer).bind_iter())
    .bind(keys.iter().map(|(_, key)| *key).bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

/// Wakes the first row of every key that has only parked rows.
pub(super) async fn wake_headless(c: &mut PgConnection, consumer: &str, now: Timestamp) -> Result<u64, StoreError> {
    let result = sqlx::query(
        "WITH headless AS (SELECT k.consumer, k.key FROM backlog_keys AS k WHERE k.consumer = $1 AND NOT EXISTS ( \
             SELECT 1 FROM backlog AS h WHERE h.consumer = k.consumer AND h.key = k.key AND h.state <> 2) \
           ORDER BY k.key FOR UPDATE OF k) \
         UPDATE backlog AS b SET state = 1, next_at = $2 FROM headless AS k \
           CROSS JOIN LATERAL (SELECT f.event_id FROM backlog AS f WHERE f.consumer = k.consumer AND f.key = k.key \
                               ORDER BY f.sequence LIMIT 1) AS first \
         WHERE b.consumer = k.consumer AND b.event_id = first.event_id AND b.state = 2",
    )
    .bind(consumer)
    .bind(time(now))
    .execute(c)
    .await?;
    Ok(result.rows_affected())
}

pub(super) async fn due(
    c: &mut PgConnection,
    consumer: &str,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<BacklogRow>, Option<Timestamp>), StoreError> {
    let rows = sqlx::query(
        "SELECT consumer, key, sequence, event_id, attempts, next_at, headers, encoding, body, source FROM backlog \
         WHERE consumer = $1 AND state = 1 ORDER BY next_at LIMIT $2",
    )
    .bind(consumer)
    .bind(i64::from(limit))
    .fetch_all(c)
    .await?;
    let mut due = Vec::new();
    for row in &rows {
        let at = read_time_or_null(row, "next_at")?.unwrap_or_default();
        if at > now {
            return Ok((due, Some(at)));
        }
        due.push(BacklogRow {
            consumer: read_text(row, "consumer")?,
            key: read_text(row, "key")?,
            sequence: row.try_get("sequence")?,
            event_id: read_id(row, "event_id")?,
            attempts: read_u32(row, "attempts")?,
            message: StoredMessage {
                headers: serde_json::from_slice(row.try_get::<&[u8], _>("headers")?).ok().map(Arc::new),
                encoding: match row.try_get::<&str, _>("encoding")? {
                    "avro" => Encoding::Avro,
                    _ => Encoding::Json,
                },
                body: row.try_get::<Vec<u8>, _>("body")?.into(),
                position: row.try_get("source")?,
            },
        });
    }
    Ok((due, None))
}

pub(super) async fn figures(c: &mut PgConnection) -> Result<Vec<(Arc<str>, &'static str, u64)>, StoreError> {
    let rows = sqlx::query("SELECT consumer, state, count(*) AS entries FROM backlog GROUP BY consumer, state")
        .fetch_all(c)
        .await?;
    rows.iter()
        .map(|row| {
            let state = match BacklogState::from_code(i64::from(row.try_get::<i16, _>("state")?)) {
                Some(BacklogState::Retrying) => "retrying",
                Some(BacklogState::Parked) => "parked",
                _ => "dead",
            };
            Ok((read_text(row, "consumer")?, state, row.try_get::<i64, _>("entries")?.cast_unsigned()))
        })
        .collect()
}

/// The last error of a row's history.
pub(super) fn last_error(errors: &Value) -> Option<String> {
    errors.as_array()?.last()?.get("error")?.as_str().map(str::to_owned)
}
