//! Which events have reached a consumer, and which have not.

use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{PgConnection, Row};

use super::rows::{read_id, read_text, read_time};
use crate::domain::{Broker, Id};
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
             LEFT JOIN legs AS l ON l.position = e.position AND l.broker = $2 AND e.event_type = ANY($3) \
             LEFT JOIN inbox AS i ON i.consumer = $1 AND i.event_id = e.event_id \
             LEFT JOIN backlog AS b ON b.consumer = $1 AND b.event_id = e.event_id ORDER BY e.event_id"
        )
    };
}

pub(super) async fn find(c: &mut PgConnection, query: ArrivalQuery<'_>) -> Result<Vec<Arrival>, StoreError> {
    let sql = match query.events {
        Look::Between { .. } => arrivals!("event_id > $4 AND event_id < $5 ORDER BY event_id LIMIT $6"),
        Look::These(_) => arrivals!("event_id = ANY($4)"),
    };
    let asked =
        sqlx::query(sql).bind(query.consumer).bind(query.broker as i16).bind(query.types.iter().copied().bind_iter());
    let asked = match query.events {
        Look::Between { after, before, limit } => asked.bind(after.0).bind(before.0).bind(i64::from(limit)),
        Look::These(ids) => asked.bind(ids.iter().map(|id| id.0).bind_iter()),
    };
    asked.fetch_all(c).await?.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<Arrival, StoreError> {
    let state: Option<i16> = row.try_get("state")?;
    let missing = match state {
        Some(state) if !row.try_get::<bool, _>("taken")? => Some(Missing {
            event_type: read_text(row, "event_type")?,
            state: LegState::stored(i64::from(state))?,
            at: read_time(row, "at")?,
            partition: row.try_get("partition")?,
        }),
        _ => None,
    };
    Ok(Arrival { event_id: read_id(row, "event_id")?, missing })
}

pub(super) async fn last_handled(
    c: &mut PgConnection,
    consumer: &str,
    broker: Broker,
    before: Id,
) -> Result<Vec<Handled>, StoreError> {
    let rows = sqlx::query(
        "SELECT e.event_type, l.partition, max(l.at) AS at \
         FROM (SELECT event_id FROM inbox WHERE consumer = $1 AND event_id < $2 ORDER BY event_id DESC LIMIT $3) AS i \
           JOIN events AS e ON e.event_id = i.event_id \
           JOIN legs AS l ON l.position = e.position AND l.broker = $4 AND l.state = 1 \
         GROUP BY e.event_type, l.partition",
    )
    .bind(consumer)
    .bind(before.0)
    .bind(HANDLED_OF_LATE)
    .bind(broker as i16)
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Handled {
                event_type: read_text(row, "event_type")?,
                partition: row.try_get("partition")?,
                at: read_time(row, "at")?,
            })
        })
        .collect()
}
