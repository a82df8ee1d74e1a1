//! Idempotency keys of requests and the inbox of consumers. Both are claimed by inserting
//! first: whoever comes second waits for the first transaction and then sees its row.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sqlx::postgres::PgBindIterExt;
use sqlx::{PgConnection, Row};

use super::batch::Batch;
use super::rows::{read_id, read_text, time};
use crate::domain::{Id, Timestamp};
use crate::store::{IdempotencyClaim, IdempotencyKey, StoreError, StoredResponse, Unit};

/// Keys that this transaction has inserted, with what it wrote.
pub(super) type Claimed = BTreeMap<IdempotencyKey, IdempotencyClaim>;
/// What was answered before for a key: the body's fingerprint and the answer.
type Answers = HashMap<IdempotencyKey, ([u8; 32], StoredResponse)>;
/// (consumer, event).
pub(super) type InboxKey = (Arc<str>, Id);

/// Inserts every key of the units; those that were there already are returned as found.
pub(super) async fn claim_keys(c: &mut PgConnection, units: &[Unit]) -> Result<(Claimed, Answers), StoreError> {
    let mut claims = Claimed::new();
    for claim in units.iter().filter_map(|unit| unit.idempotency.as_ref()) {
        claims.entry(claim.key.clone()).or_insert_with(|| claim.clone());
    }
    if claims.is_empty() {
        return Ok((claims, HashMap::new()));
    }
    let inserted: HashSet<IdempotencyKey> = insert_keys(c, claims.values()).await?.into_iter().collect();
    let (claimed, known): (Claimed, Claimed) = claims.into_iter().partition(|(key, _)| inserted.contains(key));
    let found = load_keys(c, known.keys()).await?;
    Ok((claimed, found))
}

async fn insert_keys<'k>(
    c: &mut PgConnection,
    claims: impl Iterator<Item = &'k IdempotencyClaim> + Clone,
) -> Result<Vec<IdempotencyKey>, StoreError> {
    let rows = sqlx::query(
        "INSERT INTO idempotency (user_id, route, key, fingerprint, status, location, body, at) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::text[], \
           $7::bytea[], $8::timestamptz[]) \
         ON CONFLICT DO NOTHING RETURNING user_id, route, key",
    )
    .bind(claims.clone().map(|claim| &*claim.key.user_id).bind_iter())
    .bind(claims.clone().map(|claim| &*claim.key.route).bind_iter())
    .bind(claims.clone().map(|claim| &*claim.key.key).bind_iter())
    .bind(claims.clone().map(|claim| &claim.fingerprint[..]).bind_iter())
    .bind(claims.clone().map(|claim| claim.response.status.cast_signed()).bind_iter())
    .bind(claims.clone().map(|claim| claim.response.location.as_deref()).bind_iter())
    .bind(claims.clone().map(|claim| &claim.response.body[..]).bind_iter())
    .bind(claims.map(|claim| time(claim.at)).bind_iter())
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(IdempotencyKey {
                user_id: read_text(row, "user_id")?,
                route: read_text(row, "route")?,
                key: read_text(row, "key")?,
            })
        })
        .collect()
}

async fn load_keys(
    c: &mut PgConnection,
    keys: impl ExactSizeIterator<Item = &IdempotencyKey> + Clone,
) -> Result<Answers, StoreError> {
    if keys.len() == 0 {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "SELECT i.user_id, i.route, i.key, i.fingerprint, i.status, i.location, i.body \
         FROM unnest($1::text[], $2::text[], $3::text[]) AS w(user_id, route, key) \
         JOIN idempotency AS i ON i.user_id = w.user_id AND i.route = w.route AND i.key = w.key",
    )
    .bind(keys.clone().map(|key| &*key.user_id).bind_iter())
    .bind(keys.clone().map(|key| &*key.route).bind_iter())
    .bind(keys.map(|key| &*key.key).bind_iter())
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            let key = IdempotencyKey {
                user_id: read_text(row, "user_id")?,
                route: read_text(row, "route")?,
                key: read_text(row, "key")?,
            };
            let fingerprint = row
                .try_get::<&[u8], _>("fingerprint")?
                .try_into()
                .map_err(|_| StoreError::Corrupt("an idempotency fingerprint is not 32 bytes".into()))?;
            let response = StoredResponse {
                status: row.try_get::<i16, _>("status")?.cast_unsigned(),
                location: row.try_get("location")?,
                body: row.try_get::<Vec<u8>, _>("body")?.into(),
            };
            Ok((key, (fingerprint, response)))
        })
        .collect()
}

/// Gives back the keys of units that came to nothing. A later unit of the batch may have
/// won a key that the first lost: then its answer counts.
pub(super) async fn settle_keys(
    c: &mut PgConnection,
    mut claimed: Claimed,
    won: &[IdempotencyClaim],
) -> Result<(), StoreError> {
    let mut rewritten = Vec::new();
    for claim in won {
        match claimed.remove(&claim.key) {
            Some(first) if first.fingerprint == claim.fingerprint && first.response == claim.response => {}
            Some(first) => {
                claimed.insert(first.key.clone(), first);
                rewritten.push(claim);
            }
            None => {}
        }
    }
    if claimed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM idempotency AS i USING unnest($1::text[], $2::text[], $3::text[]) AS w(user_id, route, key) \
         WHERE i.user_id = w.user_id AND i.route = w.route AND i.key = w.key",
    )
    .bind(claimed.keys().map(|key| &*key.user_id).bind_iter())
    .bind(claimed.keys().map(|key| &*key.route).bind_iter())
    .bind(claimed.keys().map(|key| &*key.key).bind_iter())
    .execute(&mut *c)
    .await?;
    if !rewritten.is_empty() {
        insert_keys(c, rewritten.iter().copied()).await?;
    }
    Ok(())
}

/// Inserts a row for every message of the units. Returns those inserted now and those
/// that were there already.
pub(super) async fn claim_inbox(
    c: &mut PgConnection,
    units: &[Unit],
) -> Result<(HashSet<InboxKey>, HashSet<InboxKey>), StoreError> {
    let mut wanted: BTreeMap<InboxKey, Timestamp> = BTreeMap::new();
    for delivery in units.iter().filter_map(|unit| unit.delivery.as_ref()) {
        wanted.insert((delivery.consumer.clone(), delivery.event_id), delivery.at);
    }
    if wanted.is_empty() {
        return Ok((HashSet::new(), HashSet::new()));
    }
    let rows = sqlx::query(
        "INSERT INTO inbox (consumer, event_id, at) SELECT * FROM unnest($1::text[], $2::uuid[], $3::timestamptz[]) \
         ON CONFLICT DO NOTHING RETURNING consumer, event_id",
    )
    .bind(wanted.keys().map(|(consumer, _)| &**consumer).bind_iter())
    .bind(wanted.keys().map(|(_, id)| id.0).bind_iter())
    .bind(wanted.values().map(|at| time(*at)).bind_iter())
    .fetch_all(c)
    .await?;
    let mut claimed = HashSet::with_capacity(rows.len());
    for row in &rows {
        claimed.insert((read_text(row, "consumer")?, read_id(row, "event_id")?));
    }
    let known = wanted.into_keys().filter(|key| !claimed.contains(key)).collect();
    Ok((claimed, known))
}

/// Takes back what was not handled after all: it failed, parks, or its unit was refused.
pub(super) fn settle_inbox(batch: &mut Batch, mut claimed: HashSet<InboxKey>, handled: &[(Arc<str>, Id, Timestamp)]) {
    for (consumer, id, _) in handled {
        claimed.remove(&(consumer.clone(), *id));
    }
    if claimed.is_empty() {
        return;
    }
    batch
        .part(
            "DELETE FROM inbox AS i USING unnest($1::text[], $2::uuid[]) AS w(consumer, event_id) \
         WHERE i.consumer = w.consumer AND i.event_id = w.event_id",
        )
        .bind(claimed.iter().map(|(consumer, _)| &**consumer).bind_iter())
        .bind(claimed.iter().map(|(_, id)| id.0).bind_iter());
}
