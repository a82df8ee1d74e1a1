//! Events, their legs, and the heads that number them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{PgConnection, Row};

use super::history::{EventReader, event_columns};
use super::rows::{int, read_broker, read_text, read_time, read_time_or_null, read_u32, time};
use crate::domain::event::SkipReason;
use crate::domain::{Broker, Event, Timestamp};
use crate::store::plan::{BUCKETS, HeadKey, NewLeg};
use crate::store::{BrokerEnd, LegMark, LegRow, LegState, StoreError};

/// Positions of one transaction: its block number times this, and up.
pub(super) const BLOCK: i64 = 65_536;

/// Locks the heads, in the order of their keys; creates those that are missing.
pub(super) async fn lock_heads(
    c: &mut PgConnection,
    keys: &BTreeSet<HeadKey>,
) -> Result<HashMap<HeadKey, i64>, StoreError> {
    let mut found = select_heads(c, keys.iter()).await?;
    let missing: Vec<&HeadKey> = keys.iter().filter(|key| !found.contains_key(*key)).collect();
    if missing.is_empty() {
        return Ok(found);
    }
    // Waits for whoever is creating the same one.
    let rows = sqlx::query(
        "INSERT INTO heads (kind, id, last) SELECT kind, id, 0 FROM unnest($1::text[], $2::text[]) AS w(kind, id) \
         ON CONFLICT DO NOTHING RETURNING kind, id, last",
    )
    .bind(missing.iter().map(|key| &*key.kind).bind_iter())
    .bind(missing.iter().map(|key| &*key.id).bind_iter())
    .fetch_all(&mut *c)
    .await?;
    for row in &rows {
        found.insert(head_key(row)?, 0);
    }
    let others: Vec<&HeadKey> = missing.into_iter().filter(|key| !found.contains_key(*key)).collect();
    if !others.is_empty() {
        found.extend(select_heads(c, others.into_iter()).await?);
    }
    Ok(found)
}

async fn select_heads<'k>(
    c: &mut PgConnection,
    keys: impl Iterator<Item = &'k HeadKey> + Clone,
) -> Result<HashMap<HeadKey, i64>, StoreError> {
    let rows = sqlx::query(
        "SELECT h.kind, h.id, h.last FROM unnest($1::text[], $2::text[]) AS w(kind, id) \
         JOIN heads AS h ON h.kind = w.kind AND h.id = w.id ORDER BY h.kind, h.id FOR UPDATE OF h",
    )
    .bind(keys.clone().map(|key| &*key.kind).bind_iter())
    .bind(keys.map(|key| &*key.id).bind_iter())
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok((head_key(row)?, row.try_get("last")?))).collect()
}

fn head_key(row: &PgRow) -> Result<HeadKey, sqlx::Error> {
    Ok(HeadKey { kind: read_text(row, "kind")?, id: read_text(row, "id")? })
}

pub(super) async fn write_heads(c: &mut PgConnection, heads: &BTreeMap<HeadKey, i64>) -> Result<(), StoreError> {
    if heads.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO heads (kind, id, last) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
         ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last",
    )
    .bind(heads.keys().map(|key| &*key.kind).bind_iter())
    .bind(heads.keys().map(|key| &*key.id).bind_iter())
    .bind(heads.values().copied().bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

/// This transaction's id and, when it will write events, its block of positions. Call
/// with every head locked: positions then grow with sequences.
pub(super) async fn draw(c: &mut PgConnection, events: bool) -> Result<(String, Option<i64>), StoreError> {
    let row =
        sqlx::query("SELECT pg_current_xact_id()::text AS xid, CASE WHEN $1 THEN next_event_block() END AS block")
            .bind(events)
            .fetch_one(c)
            .await?;
    Ok((row.try_get("xid")?, row.try_get("block")?))
}

pub(super) async fn write_events(c: &mut PgConnection, events: &[Arc<Event>]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let tags = events
        .iter()
        .map(|event| (!event.tags.is_empty()).then(|| serde_json::to_string(&event.tags).unwrap_or_default()));
    let payloads = events.iter().map(|event| std::str::from_utf8(&event.payload.json).unwrap_or_default());
    sqlx::query(
        "INSERT INTO events (position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, \
           occurred_at, correlation_id, causation_id, tags, traceparent, payload) \
         SELECT position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, occurred_at, \
           correlation_id, causation_id, \
           CASE WHEN tags IS NOT NULL THEN ARRAY (SELECT json_array_elements_text(tags::json)) END, traceparent, \
           payload::json \
         FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], \
           $8::bigint[], $9::timestamptz[], $10::uuid[], $11::uuid[], $12::text[], $13::text[], $14::text[]) \
           AS w(position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, occurred_at, \
             correlation_id, causation_id, tags, traceparent, payload)",
    )
    .bind(events.iter().map(|event| event.position).bind_iter())
    .bind(events.iter().map(|event| event.event_id.0).bind_iter())
    .bind(events.iter().map(|event| &*event.event_type.name).bind_iter())
    .bind(events.iter().map(|event| &*event.event_type.aggregate).bind_iter())
    .bind(events.iter().map(|event| &*event.aggregate_id).bind_iter())
    .bind(events.iter().map(|event| event.sequence).bind_iter())
    .bind(events.iter().map(|event| &*event.user_id).bind_iter())
    .bind(events.iter().map(|event| event.user_offset).bind_iter())
    .bind(events.iter().map(|event| time(event.occurred_at)).bind_iter())
    .bind(events.iter().map(|event| event.correlation_id.0).bind_iter())
    .bind(events.iter().map(|event| event.causation_id.map(|id| id.0)).bind_iter())
    .bind(tags.bind_iter())
    .bind(events.iter().map(|event| event.traceparent.as_deref()).bind_iter())
    .bind(payloads.bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

pub(super) async fn write_legs(c: &mut PgConnection, legs: &[NewLeg]) -> Result<(), StoreError> {
    if legs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO legs (position, broker, state, bucket, attempts, at, skip) \
         SELECT position, broker, state, bucket, 0, at, skip \
         FROM unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::smallint[], $5::timestamptz[], $6::smallint[]) \
           AS w(position, broker, state, bucket, at, skip)",
    )
    .bind(legs.iter().map(|leg| leg.position).bind_iter())
    .bind(legs.iter().map(|leg| leg.broker as i16).bind_iter())
    .bind(legs.iter().map(|leg| leg.state() as i16).bind_iter())
    .bind(legs.iter().map(|leg| i16::from(leg.bucket)).bind_iter())
    .bind(legs.iter().map(|leg| time(leg.at)).bind_iter())
    .bind(legs.iter().map(|leg| leg.skip.map(|reason| reason as i16)).bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

/// One statement a window. Of several marks of one leg the last counts; a done leg stays.
pub(super) async fn mark_legs(c: &mut PgConnection, marks: &[LegMark]) -> Result<(), StoreError> {
    let mut last: BTreeMap<(i64, i16), &LegMark> = BTreeMap::new();
    for mark in marks {
        let entry = last.entry((mark.position, mark.broker as i16)).or_insert(mark);
        if entry.state != LegState::Done {
            *entry = mark;
        }
    }
    if last.is_empty() {
        return Ok(());
    }
    let marks = || last.values().copied();
    sqlx::query(
        "UPDATE legs AS l SET state = w.state, attempts = w.attempts, at = w.at, partition = w.partition, \
           \"offset\" = w.\"offset\", next_at = w.next_at, skip = w.skip, error = w.error \
         FROM unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::integer[], $5::timestamptz[], $6::integer[], \
           $7::bigint[], $8::timestamptz[], $9::smallint[], $10::text[]) \
           AS w(position, broker, state, attempts, at, partition, \"offset\", next_at, skip, error) \
         WHERE l.position = w.position AND l.broker = w.broker AND l.state <> 1",
    )
    .bind(marks().map(|mark| mark.position).bind_iter())
    .bind(marks().map(|mark| mark.broker as i16).bind_iter())
    .bind(marks().map(|mark| mark.state as i16).bind_iter())
    .bind(marks().map(|mark| int(mark.attempts)).bind_iter())
    .bind(marks().map(|mark| time(mark.at)).bind_iter())
    .bind(marks().map(|mark| mark.partition).bind_iter())
    .bind(marks().map(|mark| mark.offset).bind_iter())
    .bind(marks().map(|mark| mark.next_at.map(time)).bind_iter())
    .bind(marks().map(|mark| mark.skip.map(|reason| reason as i16)).bind_iter())
    .bind(marks().map(|mark| mark.error.as_ref().map(|error| error.replace('\0', "\u{fffd}"))).bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

pub(super) async fn write_ends(c: &mut PgConnection, ends: &[BrokerEnd]) -> Result<(), StoreError> {
    // One row a log, the furthest: a statement may not touch a row twice.
    let mut furthest: BTreeMap<(i16, &str, i32), i64> = BTreeMap::new();
    for end in ends {
        let entry = furthest.entry((end.broker as i16, &end.log, end.partition)).or_default();
        *entry = (*entry).max(end.end);
    }
    if furthest.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO broker_ends (broker, log, partition, \"end\") \
         SELECT * FROM unnest($1::smallint[], $2::text[], $3::integer[], $4::bigint[]) \
         ON CONFLICT (broker, log, partition) DO UPDATE SET \"end\" = greatest(broker_ends.\"end\", excluded.\"end\")",
    )
    .bind(furthest.keys().map(|(broker, ..)| *broker).bind_iter())
    .bind(furthest.keys().map(|(_, log, _)| *log).bind_iter())
    .bind(furthest.keys().map(|(.., partition)| *partition).bind_iter())
    .bind(furthest.values().copied().bind_iter())
    .execute(c)
    .await?;
    Ok(())
}

pub(super) async fn ends(c: &mut PgConnection) -> Result<Vec<BrokerEnd>, StoreError> {
    let rows = sqlx::query("SELECT broker, log, partition, \"end\" FROM broker_ends").fetch_all(c).await?;
    rows.iter()
        .map(|row| {
            Ok(BrokerEnd {
                broker: read_broker(row)?,
                log: read_text(row, "log")?,
                partition: row.try_get("partition")?,
                end: row.try_get("end")?,
            })
        })
        .collect()
}

/// Done legs whose record is gone become pending again.
pub(super) async fn reopen(c: &mut PgConnection, lost: &[BrokerEnd], reader: &EventReader) -> Result<u64, StoreError> {
    let mut reopened = 0;
    for end in lost {
        // Few rows: what the broker had confirmed but not synced when the machine died.
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!("events"),
            " FROM legs JOIN events USING (position) \
             WHERE legs.broker = $1 AND legs.state = 1 AND legs.partition = $2 AND legs.\"offset\" >= $3"
        ))
        .bind(end.broker as i16)
        .bind(end.partition)
        .bind(end.end)
        .fetch_all(&mut *c)
        .await?;
        let mut positions = Vec::new();
        for row in &rows {
            let event = reader.read(row)?;
            if reader.catalogue.log_of(&event, end.broker).as_ref() == Some(&end.log) {
                positions.push(event.position);
            }
        }
        let result = sqlx::query(
            "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL WHERE broker = $1 AND position = ANY($2)",
        )
        .bind(end.broker as i16)
        .bind(positions)
        .execute(&mut *c)
        .await?;
        reopened += result.rows_affected();
        sqlx::query("UPDATE broker_ends SET \"end\" = $4 WHERE broker = $1 AND log = $2 AND partition = $3")
            .bind(end.broker as i16)
            .bind(&*end.log)
            .bind(end.partition)
            .bind(end.end)
            .execute(&mut *c)
            .await?;
    }
    Ok(reopened)
}

macro_rules! leg_columns {
    () => {
        "legs.position AS leg_position, legs.broker, legs.state, legs.attempts, legs.at, legs.partition, \
         legs.\"offset\", legs.next_at, legs.skip, legs.error"
    };
}
pub(super) use leg_columns;

pub(super) fn read_leg(row: &PgRow) -> Result<LegRow, StoreError> {
    let state = i64::from(row.try_get::<i16, _>("state")?);
    Ok(LegRow {
        position: row.try_get("leg_position")?,
        broker: read_broker(row)?,
        state: LegState::from_code(state).ok_or_else(|| StoreError::Corrupt(format!("leg state {state}")))?,
        attempts: read_u32(row, "attempts")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        at: read_time(row, "at")?,
        next_at: read_time_or_null(row, "next_at")?,
        error: row.try_get("error")?,
        skip: row.try_get::<Option<i16>, _>("skip")?.and_then(|code| SkipReason::from_code(i64::from(code))),
    })
}

/// Up to where positions are settled, and the newest block that is drawn. Another
/// instance's transaction may still commit positions beyond the first.
pub(super) async fn horizon(c: &mut PgConnection) -> Result<(i64, i64), StoreError> {
    let row = sqlx::query("SELECT horizon, newest FROM event_horizon()").fetch_one(c).await?;
    Ok((row.try_get("horizon")?, row.try_get("newest")?))
}

/// Which open legs are wanted.
#[derive(Clone, Copy)]
pub(super) struct OpenLegs {
    pub broker: Broker,
    /// (index, count)
    pub lane: Option<(u8, u8)>,
    pub after: i64,
    pub limit: u32,
}

/// Those within the settled positions.
pub(super) async fn open_legs(
    c: &mut PgConnection,
    reader: &EventReader,
    wanted: OpenLegs,
    horizon: i64,
) -> Result<Vec<(Arc<Event>, LegRow)>, StoreError> {
    let (lane, lanes) = wanted.lane.unwrap_or((0, 1));
    debug_assert!(lanes <= BUCKETS);
    let rows = sqlx::query(concat!(
        "SELECT ",
        event_columns!("events"),
        ", ",
        leg_columns!(),
        " FROM legs JOIN events USING (position) \
         WHERE legs.broker = $1 AND legs.state IN (0, 3) AND legs.position > $2 AND legs.position < $6 \
           AND legs.bucket % $3 = $4 ORDER BY legs.position LIMIT $5"
    ))
    .bind(wanted.broker as i16)
    .bind(wanted.after)
    .bind(i16::from(lanes))
    .bind(i16::from(lane))
    .bind(i64::from(wanted.limit))
    .bind((horizon + 1) * BLOCK)
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok((reader.read(row)?, read_leg(row)?))).collect()
}

/// (broker, open legs, oldest) for metrics. `legs_open` makes it an index scan.
pub(super) async fn open_figures(c: &mut PgConnection) -> Result<Vec<(Broker, u64, Option<Timestamp>)>, StoreError> {
    let rows = sqlx::query(
        "SELECT broker, count(*) AS open, min(at) AS oldest FROM legs WHERE state IN (0, 3) GROUP BY broker",
    )
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            let open: i64 = row.try_get("open")?;
            Ok((read_broker(row)?, open.cast_unsigned(), read_time_or_null(row, "oldest")?))
        })
        .collect()
}
