//! Values between Rust and PostgreSQL. Lists travel as arrays: `unnest($1, $2)` keeps
//! every statement static, whatever the size of a batch.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::domain::{Broker, Id, Timestamp};
use crate::store::StoreError;

/// Milliseconds as `timestamptz`. What lies beyond chrono's years becomes its last.
pub(super) fn time(at: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

pub(super) fn read_time(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    Ok(Timestamp(row.try_get::<DateTime<Utc>, _>(column)?.timestamp_millis()))
}

pub(super) fn read_time_or_null(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(|at| Timestamp(at.timestamp_millis())))
}

pub(super) fn read_id(row: &PgRow, column: &str) -> Result<Id, sqlx::Error> {
    row.try_get::<Uuid, _>(column).map(Id)
}

pub(super) fn read_text(row: &PgRow, column: &str) -> Result<Arc<str>, sqlx::Error> {
    row.try_get::<&str, _>(column).map(Arc::from)
}

pub(super) fn read_u32(row: &PgRow, column: &str) -> Result<u32, StoreError> {
    let value: i32 = row.try_get(column)?;
    u32::try_from(value).map_err(|_| StoreError::Corrupt(format!("{column} is negative")))
}

pub(super) fn read_broker(row: &PgRow) -> Result<Broker, StoreError> {
    let code: i16 = row.try_get("broker")?;
    Broker::from_code(i64::from(code)).ok_or_else(|| StoreError::Corrupt(format!("broker {code}")))
}

/// A count of Rust as an `integer`, the largest where it does not fit.
pub(super) fn int(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Splits rows so that no two of one key share a statement: PostgreSQL updates a row
/// once a statement. Mostly there is one part; the order of rows with one key is kept.
pub(super) fn rounds<R, K: Ord>(rows: &[R], key: impl Fn(&R) -> K) -> Vec<Vec<&R>> {
    let mut seen = std::collections::BTreeMap::new();
    let mut rounds: Vec<Vec<&R>> = Vec::new();
    for row in rows {
        let round = seen.entry(key(row)).and_modify(|last| *last += 1).or_insert(0_usize);
        if rounds.len() <= *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(row);
    }
    rounds
}
