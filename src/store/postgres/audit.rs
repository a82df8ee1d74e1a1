//! The audit trail and the read models: rows that consumers write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};
use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{PgConnection, Row};

use super::batch::Batch;
use super::rows::time;
use crate::domain::Timestamp;
use crate::store::plan::ModelKey;
use crate::store::{AuditRow, StoreError};

pub(super) fn write_audit(batch: &mut Batch, rows: &[AuditRow]) {
    if rows.is_empty() {
        return;
    }
    batch
        .part(
            "INSERT INTO audit_log (audit_id, audit_type, actor_user_id, target_resource_type, target_resource_id, at, \
           details) \
         SELECT audit_id, audit_type, actor, type, target, at, details::json \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[]) \
           WITH ORDINALITY AS w(audit_id, audit_type, actor, type, target, at, details, n) ORDER BY n",
        )
        .bind(rows.iter().map(|row| row.audit_id.0).bind_iter())
        .bind(rows.iter().map(|row| row.audit_type).bind_iter())
        .bind(rows.iter().map(|row| &*row.actor_user_id).bind_iter())
        .bind(rows.iter().map(|row| row.target_resource_type).bind_iter())
        .bind(rows.iter().map(|row| &*row.target_resource_id).bind_iter())
        .bind(rows.iter().map(|row| time(row.at)).bind_iter())
        .bind(rows.iter().map(|row| row.details.to_string()).bind_iter());
}

/// Rows of read models under lock.
#[derive(Default)]
pub(super) struct Models {
    pub found: HashMap<ModelKey, Map<String, Value>>,
    /// Empty rows of this transaction.
    pub created: Vec<ModelKey>,
}

/// Locks the rows in the order of their keys; creates those that are missing, so that two
/// transactions never both begin at nothing.
pub(super) async fn lock_models(
    c: &mut PgConnection,
    keys: &BTreeSet<ModelKey>,
    now: Timestamp,
) -> Result<Models, StoreError> {
    if keys.is_empty() {
        return Ok(Models::default());
    }
    let names: BTreeMap<&str, &'static str> = keys.iter().map(|(model, _)| (*model, *model)).collect();
    let mut found = HashMap::with_capacity(keys.len());
    for row in &select_models(c, keys.iter()).await? {
        read_into(&mut found, &names, row)?;
    }
    if found.len() == keys.len() {
        return Ok(Models { found, created: Vec::new() });
    }
    let missing: Vec<&ModelKey> = keys.iter().filter(|key| !found.contains_key(*key)).collect();
    let rows = sqlx::query(
        "INSERT INTO read_models (model, key, data, updated_at) \
         SELECT model, key, '{}', $3 FROM unnest($1::text[], $2::text[]) AS w(model, key) ON CONFLICT DO NOTHING \
         RETURNING model, key",
    )
    .bind(missing.iter().map(|(model, _)| *model).bind_iter())
    .bind(missing.iter().map(|(_, key)| key.as_str()).bind_iter())
    .bind(time(now))
    .fetch_all(&mut *c)
    .await?;
    let mut created = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(model) = names.get(row.try_get::<&str, _>("model")?) {
            created.push((*model, row.try_get("key")?));
        }
    }
    for row in &select_models(c, missing.into_iter()).await? {
        read_into(&mut found, &names, row)?;
    }
    Ok(Models { found, created })
}

fn read_into(
    found: &mut HashMap<ModelKey, Map<String, Value>>,
    names: &BTreeMap<&str, &'static str>,
    row: &PgRow,
) -> Result<(), StoreError> {
    if let Some(model) = names.get(row.try_get::<&str, _>("model")?) {
        found.insert((*model, row.try_get("key")?), parse(row.try_get("data")?)?);
    }
    Ok(())
}

async fn select_models<'k>(
    c: &mut PgConnection,
    keys: impl Iterator<Item = &'k ModelKey> + Clone,
) -> Result<Vec<PgRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT m.model, m.key, m.data::text AS data FROM unnest($1::text[], $2::text[]) AS w(model, key) \
         JOIN read_models AS m ON m.model = w.model AND m.key = w.key ORDER BY m.model, m.key FOR UPDATE OF m",
    )
    .bind(keys.clone().map(|(model, _)| *model).bind_iter())
    .bind(keys.map(|(_, key)| key.as_str()).bind_iter())
    .fetch_all(c)
    .await?;
    Ok(rows)
}

fn parse(data: &str) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_str(data).map_err(|error| StoreError::Corrupt(format!("a read model row: {error}")))
}

/// Writes what the plan has made of the rows; empty ones it has left alone go again.
pub(super) fn write_models(
    batch: &mut Batch,
    models: &BTreeMap<ModelKey, Map<String, Value>>,
    created: &[ModelKey],
    now: Timestamp,
) {
    let unused: Vec<&ModelKey> = created.iter().filter(|key| !models.contains_key(*key)).collect();
    if !unused.is_empty() {
        batch
            .part(
                "DELETE FROM read_models AS m USING unnest($1::text[], $2::text[]) AS w(model, key) \
             WHERE m.model = w.model AND m.key = w.key",
            )
            .bind(unused.iter().map(|(model, _)| *model).bind_iter())
            .bind(unused.iter().map(|(_, key)| key.as_str()).bind_iter());
    }
    if models.is_empty() {
        return;
    }
    let data = models.values().map(|data| serde_json::to_string(data).unwrap_or_else(|_| "{}".into()));
    batch
        .part(
            "UPDATE read_models AS m SET data = w.data::json, updated_at = $4 \
         FROM unnest($1::text[], $2::text[], $3::text[]) AS w(model, key, data) \
         WHERE m.model = w.model AND m.key = w.key",
        )
        .bind(models.keys().map(|(model, _)| *model).bind_iter())
        .bind(models.keys().map(|(_, key)| key.as_str()).bind_iter())
        .bind(data.bind_iter())
        .bind(time(now));
}

pub(super) async fn read_model(c: &mut PgConnection, model: &str, key: &str) -> Result<Option<Value>, StoreError> {
    let row = sqlx::query("SELECT data::text AS data FROM read_models WHERE model = $1 AND key = $2")
        .bind(model)
        .bind(key)
        .fetch_optional(c)
        .await?;
    row.map(|row| parse(row.try_get("data")?).map(Value::Object)).transpose()
}

/// `key` runs through part of the primary key only.
pub(super) async fn read_model_sum(
    c: &mut PgConnection,
    model: &str,
    field: &str,
    from: &str,
) -> Result<f64, StoreError> {
    let row = sqlx::query(
        "SELECT coalesce(sum((data ->> $2::text)::double precision), 0) AS total FROM read_models \
         WHERE model = $1 AND key >= $3",
    )
    .bind(model)
    .bind(field)
    .bind(from)
    .fetch_one(c)
    .await?;
    Ok(row.try_get("total")?)
}
