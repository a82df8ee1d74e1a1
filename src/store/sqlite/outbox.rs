//! Events, their legs, and the heads that number them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::{Row, SqliteConnection};

use super::history::{EventReader, event_columns};
use super::rows::{json_list, write_rows};
use crate::domain::event::SkipReason;
use crate::domain::{Broker, Event, Timestamp};
use crate::store::plan::{BUCKETS, HeadKey, NewLeg};
use crate::store::{BrokerEnd, LegMark, LegRow, LegState, StoreError};

pub(super) async fn load_heads(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<HeadKey>,
) -> Result<HashMap<HeadKey, i64>, StoreError> {
    let list = json_list(keys.iter().map(|key| [&*key.kind, &*key.id]));
    let rows = sqlx::query(
        "SELECT heads.kind, heads.id, heads.last FROM json_each(?) AS wanted \
         JOIN heads ON heads.kind = wanted.value ->> 0 AND heads.id = wanted.value ->> 1",
    )
    .bind(list)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let key =
                HeadKey { kind: row.try_get::<String, _>("kind")?.into(), id: row.try_get::<String, _>("id")?.into() };
            Ok((key, row.try_get("last")?))
        })
        .collect()
}

pub(super) async fn write_heads(
    connection: &mut SqliteConnection,
    heads: &BTreeMap<HeadKey, i64>,
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = heads.iter().collect();
    write_rows(
        connection,
        "INSERT INTO heads (kind, id, last)",
        "(?,?,?)",
        "ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last",
        &rows,
        |args, (key, last)| {
            args.push(key.kind.clone()).push(key.id.clone()).push(**last);
        },
    )
    .await
}

pub(super) async fn write_events(connection: &mut SqliteConnection, events: &[Arc<Event>]) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        concat!("INSERT INTO events (", event_columns!(), ")"),
        "(?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "",
        events,
        |args, event| {
            let payload = std::str::from_utf8(&event.payload.json).unwrap_or_default().to_owned();
            let tags = (!event.tags.is_empty()).then(|| json_list(&event.tags));
            args.push(event.position)
                .push(event.event_id.as_bytes().to_vec())
                .push(event.event_type.name.clone())
                .push(event.event_type.aggregate.clone())
                .push(event.aggregate_id.clone())
                .push(event.sequence)
                .push(event.user_id.clone())
                .push(event.user_offset)
                .push(event.occurred_at.0)
                .push(event.correlation_id.as_bytes().to_vec())
                .push(event.causation_id.map(|id| id.as_bytes().to_vec()))
                .push(tags)
                .push(event.traceparent.clone())
                .push(payload);
        },
    )
    .await
}

pub(super) async fn write_legs(connection: &mut SqliteConnection, legs: &[NewLeg]) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO legs (position, broker, state, bucket, attempts, at, skip)",
        "(?,?,?,?,0,?,?)",
        "",
        legs,
        |args, leg| {
            args.push(leg.position)
                .push(leg.broker as i64)
                .push(leg.state() as i64)
                .push(i64::from(leg.bucket))
                .push(leg.at.0)
                .push(leg.skip.map(|reason| reason as i64));
        },
    )
    .await
}

/// Marks are upserts of rows that exist: one statement a window.
pub(super) async fn mark_legs(connection: &mut SqliteConnection, marks: &[LegMark]) -> Result<(), sqlx::Error> {
    write_rows(
        connection,
        "INSERT INTO legs (position, broker, state, bucket, attempts, at, partition, \"offset\", next_at, skip, error)",
        "(?,?,?,0,?,?,?,?,?,?,?)",
        "ON CONFLICT (position, broker) DO UPDATE SET state = excluded.state, attempts = excluded.attempts, \
         at = excluded.at, partition = excluded.partition, \"offset\" = excluded.\"offset\", \
         next_at = excluded.next_at, skip = excluded.skip, error = excluded.error WHERE legs.state <> 1",
        marks,
        |args, mark| {
            args.push(mark.position)
                .push(mark.broker as i64)
                .push(mark.state as i64)
                .push(i64::from(mark.attempts))
                .push(mark.at.0)
                .push(mark.partition.map(i64::from))
                .push(mark.offset)
                .push(mark.next_at.map(|t| t.0))
                .push(mark.skip.map(|reason| reason as i64))
                .push(mark.error.clone());
        },
    )
    .await
}

pub(super) async fn write_ends(connection: &mut SqliteConnection, ends: &[BrokerEnd]) -> Result<(), sqlx::Error> {
    // One row a log, the furthest: a statement may not touch a row twice.
    let mut furthest: BTreeMap<(i64, &str, i32), i64> = BTreeMap::new();
    for end in ends {
        let entry = furthest.entry((end.broker as i64, &end.log, end.partition)).or_default();
        *entry = (*entry).max(end.end);
    }
    let rows: Vec<_> = furthest.into_iter().map(|((b, log, p), end)| (b, log.to_owned(), p, end)).collect();
    write_rows(
        connection,
        "INSERT INTO broker_ends (broker, log, partition, \"end\")",
        "(?,?,?,?)",
        "ON CONFLICT (broker, log, partition) DO UPDATE SET \"end\" = max(\"end\", excluded.\"end\")",
        &rows,
        |args, (broker, log, partition, end)| {
            args.push(*broker).push(log.clone()).push(i64::from(*partition)).push(*end);
        },
    )
    .await
}

pub(super) async fn ends(connection: &mut SqliteConnection) -> Result<Vec<BrokerEnd>, StoreError> {
    let rows = sqlx::query("SELECT broker, log, partition, \"end\" FROM broker_ends").fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(BrokerEnd {
                broker: read_broker(row)?,
                log: row.try_get::<String, _>("log")?.into(),
                partition: row.try_get("partition")?,
                end: row.try_get("end")?,
            })
        })
        .collect()
}

/// Done legs of these events become pending again.
pub(super) async fn publish_again(
    connection: &mut SqliteConnection,
    broker: Broker,
    positions: &[i64],
    now: Timestamp,
) -> Result<u64, StoreError> {
    let result = sqlx::query(
        "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL, at = ?3 \
         WHERE broker = ?1 AND state = 1 AND position IN (SELECT value FROM json_each(?2))",
    )
    .bind(broker as i64)
    .bind(json_list(positions))
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// Done legs whose record is gone become pending again.
pub(super) async fn reopen(
    connection: &mut SqliteConnection,
    lost: &[BrokerEnd],
    reader: &EventReader,
) -> Result<u64, StoreError> {
    let mut reopened = 0;
    for end in lost {
        // Few rows: what the broker had confirmed but not synced when the machine died.
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            ", legs.broker FROM legs JOIN events USING (position) \
             WHERE legs.broker = ?1 AND legs.state = 1 AND legs.partition = ?2 AND legs.\"offset\" >= ?3"
        ))
        .bind(end.broker as i64)
        .bind(i64::from(end.partition))
        .bind(end.end)
        .fetch_all(&mut *connection)
        .await?;
        let mut positions = Vec::new();
        for row in &rows {
            let event = reader.read(row)?;
            if reader.catalogue.log_of(&event, end.broker).as_ref() == Some(&end.log) {
                positions.push(event.position);
            }
        }
        let result = sqlx::query(
            "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL \
             WHERE broker = ?1 AND position IN (SELECT value FROM json_each(?2))",
        )
        .bind(end.broker as i64)
        .bind(json_list(positions))
        .execute(&mut *connection)
        .await?;
        reopened += result.rows_affected();
        sqlx::query("UPDATE broker_ends SET \"end\" = ?4 WHERE broker = ?1 AND log = ?2 AND partition = ?3")
            .bind(end.broker as i64)
            .bind(&*end.log)
            .bind(i64::from(end.partition))
            .bind(end.end)
            .execute(&mut *connection)
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

pub(super) fn read_leg(row: &sqlx::sqlite::SqliteRow) -> Result<LegRow, StoreError> {
    let state: i64 = row.try_get("state")?;
    Ok(LegRow {
        position: row.try_get("leg_position")?,
        broker: read_broker(row)?,
        state: LegState::stored(state)?,
        attempts: row.try_get("attempts")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        at: Timestamp(row.try_get("at")?),
        next_at: row.try_get::<Option<i64>, _>("next_at")?.map(Timestamp),
        error: row.try_get("error")?,
        skip: row.try_get::<Option<i64>, _>("skip")?.and_then(SkipReason::from_code),
    })
}

fn read_broker(row: &sqlx::sqlite::SqliteRow) -> Result<Broker, StoreError> {
    let code: i64 = row.try_get("broker")?;
    Broker::from_code(code).ok_or_else(|| StoreError::Corrupt(format!("broker {code}")))
}

pub(super) async fn open_legs(
    connection: &mut SqliteConnection,
    reader: &EventReader,
    broker: Broker,
    lane: Option<(u8, u8)>,
    after: i64,
    limit: u32,
) -> Result<Vec<(Arc<Event>, LegRow)>, StoreError> {
    let (lane, lanes) = lane.unwrap_or((0, 1));
    debug_assert!(lanes <= BUCKETS);
    let rows = sqlx::query(concat!(
        "SELECT ",
        event_columns!("events"),
        ", ",
        leg_columns!(),
        " FROM legs JOIN events USING (position) \
         WHERE legs.broker = ?1 AND legs.state IN (0, 3) AND legs.position > ?2 AND legs.bucket % ?3 = ?4 \
         ORDER BY legs.position LIMIT ?5"
    ))
    .bind(broker as i64)
    .bind(after)
    .bind(i64::from(lanes))
    .bind(i64::from(lane))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((reader.read(row)?, read_leg(row)?))).collect()
}

/// (broker, open legs, oldest) for metrics. `legs_open` makes it an index scan.
pub(super) async fn open_figures(
    connection: &mut SqliteConnection,
) -> Result<Vec<(Broker, u64, Option<Timestamp>)>, StoreError> {
    let rows = sqlx::query(
        "SELECT broker, count(*) AS open, (SELECT at FROM legs AS oldest WHERE oldest.broker = legs.broker \
           AND oldest.state IN (0, 3) ORDER BY oldest.position LIMIT 1) AS oldest \
         FROM legs WHERE state IN (0, 3) GROUP BY broker",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let open: i64 = row.try_get("open")?;
            Ok((read_broker(row)?, open as u64, row.try_get::<Option<i64>, _>("oldest")?.map(Timestamp)))
        })
        .collect()
}
