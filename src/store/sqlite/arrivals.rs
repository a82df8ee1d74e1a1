//! Which events have reached a consumer, and which have not.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::read_id;
use super::rows::{hex_list, json_list};
use crate::domain::{Broker, Id, Timestamp};
use crate::store::arrivals::HANDLED_OF_LATE;
use crate::store::{Arrival, ArrivalQuery, Handled, LegState, Look, Missing, StoreError};

/// Legs, inbox and backlog are looked up by their primary keys.
macro_rules! arrivals {
    ($events:literal) => {
        concat!(
            "SELECT e.event_id, e.event_type, l.state, l.at, l.partition, \
               i.event_id IS NOT NULL OR b.event_id IS NOT NULL AS taken \
             FROM (SELECT position, event_id, event_type FROM events WHERE ",
            $events,
            ") AS e \
             LEFT JOIN legs AS l ON l.position = e.position AND l.broker = ?2 \
               AND e.event_type IN (SELECT value FROM json_each(?3)) \
             LEFT JOIN inbox AS i ON i.consumer = ?1 AND i.event_id = e.event_id \
             LEFT JOIN backlog AS b ON b.consumer = ?1 AND b.event_id = e.event_id ORDER BY e.event_id"
        )
    };
}

pub(super) async fn find(c: &mut SqliteConnection, query: ArrivalQuery<'_>) -> Result<Vec<Arrival>, StoreError> {
    let sql = match query.events {
        Look::Between { .. } => arrivals!("event_id > ?4 AND event_id < ?5 ORDER BY event_id LIMIT ?6"),
        Look::These(_) => arrivals!("event_id IN (SELECT unhex(value) FROM json_each(?4))"),
    };
    let asked = sqlx::query(sql).bind(query.consumer.to_owned()).bind(query.broker as i64).bind(json_list(query.types));
    let asked = match query.events {
        Look::Between { after, before, limit } => {
            asked.bind(after.as_bytes().to_vec()).bind(before.as_bytes().to_vec()).bind(i64::from(limit))
        }
        Look::These(ids) => asked.bind(hex_list(ids)),
    };
    asked.fetch_all(c).await?.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Arrival, StoreError> {
    let state: Option<i64> = row.try_get("state")?;
    let missing = match state {
        Some(state) if !row.try_get::<bool, _>("taken")? => Some(Missing {
            event_type: row.try_get::<String, _>("event_type")?.into(),
            state: LegState::stored(state)?,
            at: Timestamp(row.try_get("at")?),
            partition: row.try_get("partition")?,
        }),
        _ => None,
    };
    Ok(Arrival { event_id: read_id(row, "event_id")?, missing })
}

pub(super) async fn last_handled(
    c: &mut SqliteConnection,
    consumer: &str,
    broker: Broker,
    before: Id,
) -> Result<Vec<Handled>, StoreError> {
    let rows = sqlx::query(
        "SELECT e.event_type, l.partition, max(l.at) AS at \
         FROM (SELECT event_id FROM inbox WHERE consumer = ?1 AND event_id < ?2 ORDER BY event_id DESC LIMIT ?3) AS i \
           CROSS JOIN events AS e ON e.event_id = i.event_id \
           CROSS JOIN legs AS l ON l.position = e.position AND l.broker = ?4 AND l.state = 1 \
         GROUP BY e.event_type, l.partition",
    )
    .bind(consumer.to_owned())
    .bind(before.as_bytes().to_vec())
    .bind(HANDLED_OF_LATE)
    .bind(broker as i64)
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Handled {
                event_type: row.try_get::<String, _>("event_type")?.into(),
                partition: row.try_get("partition")?,
                at: Timestamp(row.try_get("at")?),
            })
        })
        .collect()
}
