//! Idempotency keys of requests and the inbox of consumers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::{Row, SqliteConnection};

use super::rows::{json_list, write_rows};
use crate::domain::{Id, Timestamp};
use crate::store::{IdempotencyClaim, IdempotencyKey, StoreError, StoredResponse};

pub(super) async fn load_keys(
    connection: &mut SqliteConnection,
    keys: &[&IdempotencyKey],
) -> Result<HashMap<IdempotencyKey, ([u8; 32], StoredResponse)>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let list = json_list(keys.iter().map(|key| [&*key.user_id, &*key.route, &*key.key]));
    let rows = sqlx::query(
        "SELECT i.user_id, i.route, i.key, i.fingerprint, i.status, i.location, i.body \
         FROM json_each(?) AS wanted JOIN idempotency AS i ON i.user_id = wanted.value ->> 0 \
           AND i.route = wanted.value ->> 1 AND i.key = wanted.value ->> 2",
    )
    .bind(list)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let key = IdempotencyKey {
                user_id: row.try_get::<String, _>("user_id")?.into(),
                route: row.try_get::<String, _>("route")?.into(),
                key: row.try_get::<String, _>("key")?.into(),
            };
            let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
            let fingerprint = fingerprint
                .try_into()
                .map_err(|_| StoreError::Corrupt("an idempotency fingerprint is not 32 bytes".into()))?;
            let response = StoredResponse {
                status: row.try_get("status")?,
                location: row.try_get("location")?,
                body: row.try_get::<Vec<u8>, _>("body")?.into(),
            };
            Ok((key, (fingerprint, response)))
        })
        .collect()
}

pub(super) async fn write_keys(
    connection: &mut SqliteConnection,
    claims: &[IdempotencyClaim],
) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO idempotency (user_id, route, key, fingerprint, status, location, body, at)",
        "(?,?,?,?,?,?,?,?)",
        "",
        claims,
        |args, claim| {
            args.push(claim.key.user_id.clone())
                .push(claim.key.route.clone())
                .push(claim.key.key.clone())
                .push(claim.fingerprint.to_vec())
                .push(i64::from(claim.response.status))
                .push(claim.response.location.clone())
                .push(claim.response.body.to_vec())
                .push(claim.at.0);
        },
    )
    .await
}

pub(super) async fn load_inbox(
    connection: &mut SqliteConnection,
    wanted: &[(&Arc<str>, Id)],
) -> Result<HashSet<(Arc<str>, Id)>, StoreError> {
    if wanted.is_empty() {
        return Ok(HashSet::new());
    }
    let list = json_list(wanted.iter().map(|(consumer, id)| (consumer, hex::encode(id.as_bytes()))));
    let rows = sqlx::query(
        "SELECT inbox.consumer, inbox.event_id FROM json_each(?) AS wanted \
         JOIN inbox ON inbox.consumer = wanted.value ->> 0 AND inbox.event_id = unhex(wanted.value ->> 1)",
    )
    .bind(list)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get::<String, _>("consumer")?.into(), super::read_id(row, "event_id")?)))
        .collect()
}

pub(super) async fn write_inbox(
    connection: &mut SqliteConnection,
    rows: &[(Arc<str>, Id, Timestamp)],
) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO inbox (consumer, event_id, at)",
        "(?,?,?)",
        "",
        rows,
        |args, (consumer, id, at)| {
            args.push(consumer.clone()).push(id.as_bytes().to_vec()).push(at.0);
        },
    )
    .await
}
