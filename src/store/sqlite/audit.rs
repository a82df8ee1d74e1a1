//! The audit trail and the read models: rows that consumers write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};
use sqlx::{Row, SqliteConnection};

use super::rows::{json_list, write_rows};
use crate::domain::Timestamp;
use crate::store::plan::ModelKey;
use crate::store::{AuditRow, StoreError};

pub(super) async fn write_audit(connection: &mut SqliteConnection, rows: &[AuditRow]) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO audit_log (audit_id, audit_type, actor_user_id, target_resource_type, target_resource_id, at, \
         details)",
        "(?,?,?,?,?,?,?)",
        "",
        rows,
        |args, row| {
            args.push(row.audit_id.as_bytes().to_vec())
                .push(row.audit_type)
                .push(row.actor_user_id.clone())
                .push(row.target_resource_type)
                .push(row.target_resource_id.clone())
                .push(row.at.0)
                .push(row.details.to_string());
        },
    )
    .await
}

pub(super) async fn load_models(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<ModelKey>,
) -> Result<HashMap<ModelKey, Map<String, Value>>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "SELECT m.model, m.key, m.data FROM json_each(?) AS wanted JOIN read_models AS m \
           ON m.model = wanted.value ->> 0 AND m.key = wanted.value ->> 1",
    )
    .bind(json_list(keys.iter()))
    .fetch_all(connection)
    .await?;
    let names: BTreeMap<&str, &'static str> = keys.iter().map(|(model, _)| (*model, *model)).collect();
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let model: String = row.try_get("model")?;
        if let Some(model) = names.get(model.as_str()) {
            found.insert((*model, row.try_get("key")?), parse(&row.try_get::<String, _>("data")?)?);
        }
    }
    Ok(found)
}

fn parse(data: &str) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_str(data).map_err(|error| StoreError::Corrupt(format!("a read model row: {error}")))
}

pub(super) async fn write_models(
    connection: &mut SqliteConnection,
    models: &BTreeMap<ModelKey, Map<String, Value>>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = models.iter().collect();
    write_rows(
        connection,
        "INSERT INTO read_models (model, key, data, updated_at)",
        "(?,?,?,?)",
        "ON CONFLICT (model, key) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at",
        &rows,
        |args, ((model, key), data)| {
            let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".into());
            args.push(*model).push(key.clone()).push(data).push(now.0);
        },
    )
    .await
}

pub(super) async fn read_model(
    connection: &mut SqliteConnection,
    model: &str,
    key: &str,
) -> Result<Option<Value>, StoreError> {
    let row = sqlx::query("SELECT data FROM read_models WHERE model = ?1 AND key = ?2")
        .bind(model.to_owned())
        .bind(key.to_owned())
        .fetch_optional(connection)
        .await?;
    row.map(|row| parse(&row.try_get::<String, _>("data")?).map(Value::Object)).transpose()
}

/// `key` runs through part of the primary key only.
pub(super) async fn read_model_sum(
    connection: &mut SqliteConnection,
    model: &str,
    field: &str,
    from: &str,
) -> Result<f64, StoreError> {
    let row = sqlx::query("SELECT total(data ->> ?2) AS total FROM read_models WHERE model = ?1 AND key >= ?3")
        .bind(model.to_owned())
        .bind(field.to_owned())
        .bind(from.to_owned())
        .fetch_one(connection)
        .await?;
    Ok(row.try_get("total")?)
}
