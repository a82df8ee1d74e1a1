//! Failed and parked deliveries.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sqlx::{Row, SqliteConnection};

use super::rows::{json_list, write_rows};
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

pub(super) async fn load_blocked(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<BacklogKey>,
) -> Result<HashSet<BacklogKey>, StoreError> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(
        "SELECT k.consumer, k.key FROM json_each(?) AS wanted JOIN backlog_keys AS k \
           ON k.consumer = wanted.value ->> 0 AND k.key = wanted.value ->> 1",
    )
    .bind(json_list(keys.iter()))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get::<String, _>("consumer")?.into(), row.try_get::<String, _>("key")?.into())))
        .collect()
}

const MOVE: &str = "ON CONFLICT (consumer, event_id) DO UPDATE SET state = excluded.state, \
   attempts = excluded.attempts, next_at = excluded.next_at, at = excluded.at, \
   errors = CASE WHEN excluded.errors = '[]' THEN errors \
     ELSE json_insert(errors, '$[#]', json(excluded.errors ->> '$[0]')) END";

/// Inserts what is delivered, unless it is here: a broker's repeat is not another attempt. What was
/// tried from the backlog moves along: the error history grows, the bytes stay.
pub(super) async fn put(connection: &mut SqliteConnection, rows: &[BacklogPut]) -> Result<(), sqlx::Error> {
    let (tried, delivered): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.claim.from_backlog);
    write(connection, &delivered, "ON CONFLICT (consumer, event_id) DO NOTHING").await?;
    write(connection, &tried, MOVE).await
}

async fn write(
    connection: &mut SqliteConnection,
    rows: &[&BacklogPut],
    on_conflict: &'static str,
) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO backlog (consumer, key, sequence, event_id, state, ordered, attempts, next_at, at, errors, \
         headers, encoding, body, source)",
        "(?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        on_conflict,
        rows,
        |args, row| {
            let claim = &row.claim;
            let (attempts, next_at, error) = row.progress();
            let errors = match error {
                Some(error) => serde_json::json!([{ "at": claim.at, "attempt": attempts, "error": error }]).to_string(),
                None => "[]".to_owned(),
            };
            let message = row.message();
            args.push(claim.consumer.clone())
                .push(claim.key.clone())
                .push(claim.sequence)
                .push(claim.event_id.as_bytes().to_vec())
                .push(row.state as i64)
                .push(claim.ordered)
                .push(i64::from(attempts))
                .push(next_at.map(|t| t.0))
                .push(claim.at.0)
                .push(errors)
                .push(
                    message
                        .and_then(|m| m.headers.as_ref())
                        .and_then(|h| serde_json::to_vec(&**h).ok())
                        .unwrap_or_default(),
                )
                .push(message.map_or("json", |m| encoding_text(m.encoding)))
                .push(message.map_or_else(Vec::new, |m| m.body.to_vec()))
                .push(message.map_or_else(String::new, |m| m.position.clone()));
        },
    )
    .await
}

pub(super) async fn block(connection: &mut SqliteConnection, keys: &BTreeSet<BacklogKey>) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = keys.iter().collect();
    write_rows(
        connection,
        "INSERT INTO backlog_keys (consumer, key)",
        "(?,?)",
        "ON CONFLICT DO NOTHING",
        &rows,
        |args, (consumer, key)| {
            args.push(consumer.clone()).push(key.clone());
        },
    )
    .await
}

/// Removes handled rows, wakes the next one of each key, frees keys that have none.
pub(super) async fn release(
    connection: &mut SqliteConnection,
    released: &[(Arc<str>, Arc<str>, Id)],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    if released.is_empty() {
        return Ok(());
    }
    let list = json_list(released.iter().map(|(consumer, key, id)| (consumer, key, hex::encode(id.as_bytes()))));
    sqlx::query(
        "DELETE FROM backlog WHERE (consumer, event_id) IN \
           (SELECT value ->> 0, unhex(value ->> 2) FROM json_each(?))",
    )
    .bind(&list)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE backlog SET state = 1, next_at = ?2 WHERE state = 2 AND rowid IN \
           (SELECT (SELECT rowid FROM backlog AS b WHERE b.consumer = value ->> 0 AND b.key = value ->> 1 \
                    ORDER BY b.sequence LIMIT 1) FROM json_each(?1))",
    )
    .bind(&list)
    .bind(now.0)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM backlog_keys WHERE (consumer, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?)) \
           AND NOT EXISTS (SELECT 1 FROM backlog WHERE backlog.consumer = backlog_keys.consumer \
                           AND backlog.key = backlog_keys.key)",
    )
    .bind(&list)
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// Wakes the first row of every key that has only parked rows.
pub(super) async fn wake_headless(
    connection: &mut SqliteConnection,
    consumer: &str,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let result = sqlx::query(
        "UPDATE backlog SET state = 1, next_at = ?2 WHERE rowid IN ( \
           SELECT (SELECT rowid FROM backlog AS b WHERE b.consumer = k.consumer AND b.key = k.key \
                   ORDER BY b.sequence LIMIT 1) \
           FROM backlog_keys AS k WHERE k.consumer = ?1 AND NOT EXISTS ( \
             SELECT 1 FROM backlog AS h WHERE h.consumer = k.consumer AND h.key = k.key AND h.state <> 2))",
    )
    .bind(consumer)
    .bind(now.0)
    .execute(&mut *connection)
    .await?;
    Ok(result.rows_affected())
}

pub(super) async fn due(
    connection: &mut SqliteConnection,
    consumer: &str,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<BacklogRow>, Option<Timestamp>), StoreError> {
    let rows = sqlx::query(
        "SELECT consumer, key, sequence, event_id, attempts, next_at, headers, encoding, body, source FROM backlog \
         WHERE consumer = ?1 AND state = 1 ORDER BY next_at LIMIT ?2",
    )
    .bind(consumer)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let mut due = Vec::new();
    for row in &rows {
        let at = Timestamp(row.try_get::<Option<i64>, _>("next_at")?.unwrap_or(0));
        if at > now {
            return Ok((due, Some(at)));
        }
        due.push(BacklogRow {
            consumer: row.try_get::<String, _>("consumer")?.into(),
            key: row.try_get::<String, _>("key")?.into(),
            sequence: row.try_get("sequence")?,
            event_id: super::read_id(row, "event_id")?,
            attempts: row.try_get("attempts")?,
            message: StoredMessage {
                headers: serde_json::from_slice(&row.try_get::<Vec<u8>, _>("headers")?).ok().map(Arc::new),
                encoding: match row.try_get::<String, _>("encoding")?.as_str() {
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

pub(super) async fn figures(
    connection: &mut SqliteConnection,
) -> Result<Vec<(Arc<str>, &'static str, u64)>, StoreError> {
    let rows = sqlx::query("SELECT consumer, state, count(*) AS entries FROM backlog GROUP BY consumer, state")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let state = match BacklogState::from_code(row.try_get("state")?) {
                Some(BacklogState::Retrying) => "retrying",
                Some(BacklogState::Parked) => "parked",
                _ => "dead",
            };
            let entries: i64 = row.try_get("entries")?;
            Ok((row.try_get::<String, _>("consumer")?.into(), state, entries as u64))
        })
        .collect()
}
