//! Events, their legs, and the heads that number them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{PgConnection, Row};

use super::batch::Batch;
use super::history::{EventReader, event_columns};
use super::rows::{int, read_broker, read_text, read_time, read_time_or_null, read_u32, time};
use crate::domain::catalogue::Order;
use crate::domain::event::{Origin, SkipReason};
use crate::domain::{Broker, Event, Timestamp};
use crate::store::plan::{BUCKETS, HeadKey, NewLeg};
use crate::store::{BrokerEnd, LegMark, LegRow, LegState, StoreError};

/// Positions of one transaction: its block number times this, and up.
pub(super) const BLOCK: i64 = 65_536;

/// A head under lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    pub last: i64,
    /// Who committed the last event.
    pub owner: i32,
}

/// A transaction with its heads under lock.
pub(super) struct Begun {
    pub transaction: Transaction,
    pub heads: HashMap<HeadKey, Head>,
    /// Its block of positions, if it will write events.
    pub block: Option<i64>,
}

/// The heads of `$1` and `$2`, locked in the order of their keys.
macro_rules! locked_heads {
    () => {
        "SELECT h.kind, h.id, h.last, h.owner FROM unnest($1::text[], $2::text[]) AS w(kind, id) \
         JOIN heads AS h ON h.kind = w.kind AND h.id = w.id ORDER BY h.kind, h.id FOR UPDATE OF h"
    };
}

/// Locks the heads, in the order of their keys, and creates those that are missing. Then,
/// with every head locked, so that positions grow with sequences, draws a block.
///
/// # Errors
/// [`StoreError::LeaseLost`]: the owner has been adopted; nobody can adopt it from here on
/// until the transaction ends.
pub(super) async fn begin(
    c: &mut PgConnection,
    owner: i32,
    keys: &BTreeSet<HeadKey>,
    events: bool,
) -> Result<Begun, StoreError> {
    // One roundtrip, as mostly every head is there.
    let rows = sqlx::query(concat!(
        "WITH locked AS MATERIALIZED (",
        locked_heads!(),
        "), drawn AS MATERIALIZED ( \
           SELECT hold_ownership($3), pg_current_xact_id()::text AS xid, pg_backend_pid() AS pid, \
             CASE WHEN $4 AND found = cardinality($1) THEN next_event_block() END AS block \
           FROM (SELECT count(*) AS found FROM locked) AS counted) \
         SELECT xid, pid, block, kind, id, last, owner FROM drawn LEFT JOIN locked ON true"
    ))
    .bind(keys.iter().map(|key| &*key.kind).bind_iter())
    .bind(keys.iter().map(|key| &*key.id).bind_iter())
    .bind(owner)
    .bind(events)
    .fetch_all(&mut *c)
    .await?;
    let first = rows.first().ok_or_else(|| StoreError::Corrupt("a transaction without an id".into()))?;
    let transaction = Transaction { xid: first.try_get("xid")?, pid: first.try_get("pid")? };
    let block = first.try_get("block")?;
    let mut heads: HashMap<HeadKey, Head> = HashMap::with_capacity(keys.len());
    for row in &rows {
        if row.try_get::<Option<&str>, _>("kind")?.is_some() {
            heads.insert(head_key(row)?, head(row)?);
        }
    }
    if heads.len() == keys.len() {
        return Ok(Begun { transaction, heads, block });
    }
    let missing: Vec<&HeadKey> = keys.iter().filter(|key| !heads.contains_key(*key)).collect();
    let mut block = create_heads(c, &missing, &mut heads, events).await?;
    if heads.len() < keys.len() {
        lock_created(c, &missing, &mut heads).await?;
        if events {
            block = Some(sqlx::query("SELECT next_event_block() AS block").fetch_one(c).await?.try_get("block")?);
        }
    }
    Ok(Begun { transaction, heads, block })
}

/// Creates heads; where nobody else did, also draws the block.
async fn create_heads(
    c: &mut PgConnection,
    missing: &[&HeadKey],
    heads: &mut HashMap<HeadKey, Head>,
    events: bool,
) -> Result<Option<i64>, StoreError> {
    // Waits for whoever is creating the same one.
    let rows = sqlx::query(
        "WITH created AS ( \
           INSERT INTO heads (kind, id, last) SELECT kind, id, 0 FROM unnest($1::text[], $2::text[]) AS w(kind, id) \
           ON CONFLICT DO NOTHING RETURNING kind, id), \
         drawn AS MATERIALIZED ( \
           SELECT CASE WHEN $3 AND found = cardinality($1) THEN next_event_block() END AS block \
           FROM (SELECT count(*) AS found FROM created) AS counted) \
         SELECT block, kind, id FROM drawn LEFT JOIN created ON true",
    )
    .bind(missing.iter().map(|key| &*key.kind).bind_iter())
    .bind(missing.iter().map(|key| &*key.id).bind_iter())
    .bind(events)
    .fetch_all(c)
    .await?;
    for row in &rows {
        if row.try_get::<Option<&str>, _>("kind")?.is_some() {
            heads.insert(head_key(row)?, Head::default());
        }
    }
    Ok(rows.first().map(|row| row.try_get("block")).transpose()?.flatten())
}

/// Locks those that somebody else has just created.
async fn lock_created(
    c: &mut PgConnection,
    missing: &[&HeadKey],
    heads: &mut HashMap<HeadKey, Head>,
) -> Result<(), StoreError> {
    let others = || missing.iter().filter(|key| !heads.contains_key(**key));
    let rows = sqlx::query(locked_heads!())
        .bind(others().map(|key| &*key.kind).bind_iter())
        .bind(others().map(|key| &*key.id).bind_iter())
        .fetch_all(c)
        .await?;
    for row in &rows {
        heads.insert(head_key(row)?, head(row)?);
    }
    Ok(())
}

fn head(row: &PgRow) -> Result<Head, sqlx::Error> {
    Ok(Head { last: row.try_get("last")?, owner: row.try_get("owner")? })
}

fn head_key(row: &PgRow) -> Result<HeadKey, sqlx::Error> {
    Ok(HeadKey { kind: read_text(row, "kind")?, id: read_text(row, "id")? })
}

pub(super) fn write_heads(batch: &mut Batch, heads: &BTreeMap<HeadKey, i64>, owner: i32) {
    if heads.is_empty() {
        return;
    }
    batch
        .part(
            "INSERT INTO heads (kind, id, last, owner) \
         SELECT kind, id, last, $4 FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w(kind, id, last) \
         ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last, owner = excluded.owner",
        )
        .bind(heads.keys().map(|key| &*key.kind).bind_iter())
        .bind(heads.keys().map(|key| &*key.id).bind_iter())
        .bind(heads.values().copied().bind_iter())
        .bind(owner);
}

/// What a transaction is known by outside of it.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub xid: String,
    /// The server's process.
    pub pid: i32,
}

pub(super) fn write_events(batch: &mut Batch, events: &[Arc<Event>]) {
    if events.is_empty() {
        return;
    }
    let tags = events
        .iter()
        .map(|event| (!event.tags.is_empty()).then(|| serde_json::to_string(&event.tags).unwrap_or_default()));
    let payloads = events.iter().map(|event| std::str::from_utf8(&event.payload.json).unwrap_or_default());
    batch
        .part(
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
    .bind(payloads.bind_iter());
}

pub(super) fn write_legs(batch: &mut Batch, legs: &[NewLeg], owner: i32) {
    if legs.is_empty() {
        return;
    }
    batch
        .part(
            "INSERT INTO legs (position, broker, state, bucket, attempts, at, skip, owner) \
         SELECT position, broker, state, bucket, 0, at, skip, $7 \
         FROM unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::smallint[], $5::timestamptz[], $6::smallint[]) \
           AS w(position, broker, state, bucket, at, skip)",
        )
        .bind(legs.iter().map(|leg| leg.position).bind_iter())
        .bind(legs.iter().map(|leg| leg.broker as i16).bind_iter())
        .bind(legs.iter().map(|leg| leg.state() as i16).bind_iter())
        .bind(legs.iter().map(|leg| i16::from(leg.bucket)).bind_iter())
        .bind(legs.iter().map(|leg| time(leg.at)).bind_iter())
        .bind(legs.iter().map(|leg| leg.skip.map(|reason| reason as i16)).bind_iter())
        .bind(owner);
}

/// One statement a window. Of several marks of one leg the last counts; a done leg stays.
pub(super) fn mark_legs(batch: &mut Batch, marks: &[LegMark]) {
    let mut last: BTreeMap<(i64, i16), &LegMark> = BTreeMap::new();
    for mark in marks {
        let entry = last.entry((mark.position, mark.broker as i16)).or_insert(mark);
        if entry.state != LegState::Done {
            *entry = mark;
        }
    }
    if last.is_empty() {
        return;
    }
    let marks = || last.values().copied();
    batch
        .part(
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
        .bind(marks().map(|mark| mark.error.as_ref().map(|error| error.replace('\0', "\u{fffd}"))).bind_iter());
}

pub(super) fn write_ends(batch: &mut Batch, ends: &[BrokerEnd]) {
    // One row a log, the furthest: a statement may not touch a row twice.
    let mut furthest: BTreeMap<(i16, &str, i32), i64> = BTreeMap::new();
    for end in ends {
        let entry = furthest.entry((end.broker as i16, &end.log, end.partition)).or_default();
        *entry = (*entry).max(end.end);
    }
    if furthest.is_empty() {
        return;
    }
    batch
        .part(
            "INSERT INTO broker_ends (broker, log, partition, \"end\") \
         SELECT * FROM unnest($1::smallint[], $2::text[], $3::integer[], $4::bigint[]) \
         ON CONFLICT (broker, log, partition) DO UPDATE SET \"end\" = greatest(broker_ends.\"end\", excluded.\"end\")",
        )
        .bind(furthest.keys().map(|(broker, ..)| *broker).bind_iter())
        .bind(furthest.keys().map(|(_, log, _)| *log).bind_iter())
        .bind(furthest.keys().map(|(.., partition)| *partition).bind_iter())
        .bind(furthest.values().copied().bind_iter());
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

/// Done legs whose record is gone become pending again, this owner's.
pub(super) async fn reopen(
    c: &mut PgConnection,
    owner: i32,
    lost: &[BrokerEnd],
    reader: &EventReader,
) -> Result<u64, StoreError> {
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
            "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL, owner = $3 \
             WHERE broker = $1 AND position = ANY($2)",
        )
        .bind(end.broker as i16)
        .bind(positions)
        .bind(owner)
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
        state: LegState::stored(state)?,
        attempts: read_u32(row, "attempts")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        at: read_time(row, "at")?,
        next_at: read_time_or_null(row, "next_at")?,
        error: row.try_get("error")?,
        skip: row.try_get::<Option<i16>, _>("skip")?.and_then(|code| SkipReason::from_code(i64::from(code))),
    })
}

/// Which open legs are wanted.
pub(super) struct OpenLegs {
    pub owners: Arc<[i32]>,
    pub broker: Broker,
    /// (index, count)
    pub lane: Option<(u8, u8)>,
    pub after: i64,
    pub limit: u32,
}

pub(super) async fn open_legs(
    c: &mut PgConnection,
    reader: &EventReader,
    wanted: &OpenLegs,
) -> Result<Vec<(Arc<Event>, LegRow)>, StoreError> {
    let (lane, lanes) = wanted.lane.unwrap_or((0, 1));
    debug_assert!(lanes <= BUCKETS);
    // By owner first: the index then gives each one's in order, whatever the others have.
    let rows = sqlx::query(concat!(
        "SELECT ",
        event_columns!("events"),
        ", ",
        leg_columns!(),
        ", legs.owner FROM unnest($1::integer[]) AS o(owner) \
         CROSS JOIN LATERAL (SELECT * FROM legs AS l WHERE l.broker = $2 AND l.owner = o.owner \
           AND l.state IN (0, 3) AND l.position > $3 AND l.bucket % $4 = $5 ORDER BY l.position LIMIT $6) AS legs \
         JOIN events ON events.position = legs.position ORDER BY legs.position LIMIT $6"
    ))
    .bind(&wanted.owners[..])
    .bind(wanted.broker as i16)
    .bind(wanted.after)
    .bind(i16::from(lanes))
    .bind(i16::from(lane))
    .bind(i64::from(wanted.limit))
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            // Who committed the one before is not kept with an event.
            let origin = Origin { owner: row.try_get("owner")?, follows_other: true };
            Ok((reader.read_from(row, origin)?, read_leg(row)?))
        })
        .collect()
}

/// Earlier events looked at in one query for each that asks.
const BEFORE: i64 = 8;

/// The nearest earlier leg of each event's aggregate to the same destination, if it is open.
pub(super) async fn open_before(
    c: &mut PgConnection,
    reader: &EventReader,
    broker: Broker,
    events: &[Arc<Event>],
) -> Result<Vec<Option<LegState>>, StoreError> {
    let mut found = vec![None; events.len()];
    // (index, destination, sequences below which to look)
    let mut asking: Vec<(usize, Arc<str>, i64)> = events
        .iter()
        .enumerate()
        .filter_map(|(index, event)| Some((index, destination(event, broker)?, event.sequence)))
        .collect();
    while !asking.is_empty() {
        let rows = earlier(c, broker, events, &asking).await?;
        let mut pages: HashMap<i64, Vec<&PgRow>> = HashMap::new();
        for row in &rows {
            pages.entry(row.try_get("n")?).or_default().push(row);
        }
        let mut further = Vec::new();
        for (n, (index, target, _)) in asking.into_iter().enumerate() {
            let page = pages.remove(&(n as i64 + 1)).unwrap_or_default();
            let mut before = None;
            let mut settled = false;
            for row in &page {
                let event = reader.read(row)?;
                before = Some(event.sequence);
                if destination(&event, broker).as_ref() == Some(&target) {
                    let state = read_leg(row)?.state;
                    found[index] = matches!(state, LegState::Pending | LegState::Dead).then_some(state);
                    settled = true;
                    break;
                }
            }
            if let Some(before) = before
                && !settled
                && page.len() as i64 == BEFORE
            {
                further.push((index, target, before));
            }
        }
        asking = further;
    }
    Ok(found)
}

/// Where an event that keeps its order goes.
fn destination(event: &Event, broker: Broker) -> Option<Arc<str>> {
    if event.event_type.order != Order::Aggregate {
        return None;
    }
    let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
    routes.into_iter().find(|route| route.broker == broker).map(|route| route.target)
}

async fn earlier(
    c: &mut PgConnection,
    broker: Broker,
    events: &[Arc<Event>],
    asking: &[(usize, Arc<str>, i64)],
) -> Result<Vec<PgRow>, StoreError> {
    let of = || asking.iter().map(|(index, ..)| &events[*index]);
    let rows = sqlx::query(concat!(
        "SELECT w.n, found.* FROM unnest($2::text[], $3::text[], $4::bigint[]) \
           WITH ORDINALITY AS w(aggregate, aggregate_id, below, n) \
         CROSS JOIN LATERAL (SELECT ",
        event_columns!("events"),
        ", ",
        leg_columns!(),
        " FROM events JOIN legs ON legs.position = events.position AND legs.broker = $1 \
           WHERE events.aggregate_id = w.aggregate_id AND events.aggregate = w.aggregate \
             AND events.sequence < w.below ORDER BY events.sequence DESC LIMIT $5) AS found \
         ORDER BY w.n, found.sequence DESC"
    ))
    .bind(broker as i16)
    .bind(of().map(|event| &*event.event_type.aggregate).bind_iter())
    .bind(of().map(|event| &*event.aggregate_id).bind_iter())
    .bind(asking.iter().map(|(.., below)| *below).bind_iter())
    .bind(BEFORE)
    .fetch_all(c)
    .await?;
    Ok(rows)
}

/// (broker, open legs, oldest) for metrics. `legs_owed` makes it an index scan, once the table is
/// analyzed.
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
