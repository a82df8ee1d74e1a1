//! Reading events: by aggregate, channel and filter, with what became of them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sqlx::postgres::{PgBindIterExt, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::backlog::last_error;
use super::outbox::{leg_columns, read_leg};
use super::rows::{read_id, read_text, read_time, read_time_or_null, read_u32, time};
use crate::domain::catalogue::{Catalogue, EventType};
use crate::domain::event::Origin;
use crate::domain::{Channel, EncodedPayload, Event, EventDraft, Id};
use crate::store::{
    ChannelState, Deliveries, EffectRow, EffectState, EventFilter, JobFilter, LegRow, Page, Replay, ReplayLimit,
    SamplePoint, Snapshot, StoreError,
};

/// The columns of `events` as they are read; `("events")` qualifies them.
macro_rules! event_columns {
    () => {
        "position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, occurred_at, \
         correlation_id, causation_id, tags, traceparent, payload::text AS payload"
    };
    ("events") => {
        "events.position, events.event_id, events.event_type, events.aggregate, events.aggregate_id, \
         events.sequence, events.user_id, events.user_offset, events.occurred_at, events.correlation_id, \
         events.causation_id, events.tags, events.traceparent, events.payload::text AS payload"
    };
}
pub(super) use event_columns;

/// Turns rows into events.
#[derive(Debug)]
pub(super) struct EventReader {
    pub catalogue: Arc<Catalogue>,
}

impl EventReader {
    fn event_type(&self, name: &str) -> Result<Arc<EventType>, StoreError> {
        self.catalogue.get(name).cloned().ok_or_else(|| {
            StoreError::Corrupt(format!("event type {name} is stored but not in the catalogue; add its directory"))
        })
    }

    pub fn read(&self, row: &PgRow) -> Result<Arc<Event>, StoreError> {
        self.read_from(row, Origin::default())
    }

    pub fn read_from(&self, row: &PgRow, origin: Origin) -> Result<Arc<Event>, StoreError> {
        Ok(Arc::new(Event {
            position: row.try_get("position")?,
            sequence: row.try_get("sequence")?,
            user_offset: row.try_get("user_offset")?,
            origin,
            draft: EventDraft {
                event_id: read_id(row, "event_id")?,
                event_type: self.event_type(row.try_get("event_type")?)?,
                aggregate_id: read_text(row, "aggregate_id")?,
                user_id: read_text(row, "user_id")?,
                occurred_at: read_time(row, "occurred_at")?,
                correlation_id: read_id(row, "correlation_id")?,
                causation_id: row.try_get::<Option<uuid::Uuid>, _>("causation_id")?.map(Id),
                tags: row.try_get::<Option<Vec<String>>, _>("tags")?.unwrap_or_default(),
                payload: EncodedPayload { json: Bytes::from(row.try_get::<String, _>("payload")?), avro: None },
                traceparent: row.try_get::<Option<&str>, _>("traceparent")?.map(Arc::from),
                skip: Vec::new(),
            },
        }))
    }

    fn all(&self, rows: &[PgRow]) -> Result<Vec<Arc<Event>>, StoreError> {
        rows.iter().map(|row| self.read(row)).collect()
    }

    pub async fn by_id(&self, c: &mut PgConnection, ids: &[Id]) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(concat!("SELECT ", event_columns!(), " FROM events WHERE event_id = ANY($1)"))
            .bind(ids.iter().map(|id| id.0).bind_iter())
            .fetch_all(c)
            .await?;
        self.all(&rows)
    }

    pub async fn by_aggregate(
        &self,
        c: &mut PgConnection,
        aggregate: &str,
        id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE aggregate_id = $1 AND aggregate = $2 AND sequence > $3 ORDER BY sequence LIMIT $4"
        ))
        .bind(id)
        .bind(aggregate)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
        self.all(&rows)
    }

    pub async fn list(
        &self,
        c: &mut PgConnection,
        filter: &EventFilter,
        page: Page<i64>,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let by_aggregate = if filter.aggregate_id.is_some() { "aggregate_id = $3" } else { "$3::text IS NULL" };
        let sql = format!(
            "SELECT {} FROM events WHERE {by_aggregate} AND ($1::text IS NULL OR event_type = $1) \
             AND ($2::text IS NULL OR aggregate = $2) AND ($4::text IS NULL OR user_id = $4) \
             AND ($5::timestamptz IS NULL OR occurred_at >= $5) AND ($6::timestamptz IS NULL OR occurred_at < $6) \
             AND ($7::bigint IS NULL OR position < $7) ORDER BY position DESC LIMIT $8",
            event_columns!()
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(filter.event_type.as_deref())
            .bind(filter.aggregate_type.as_deref())
            .bind(filter.aggregate_id.as_deref())
            .bind(filter.user.as_deref())
            .bind(filter.since.map(time))
            .bind(filter.until.map(time))
            .bind(page.before)
            .bind(i64::from(page.limit))
            .fetch_all(c)
            .await?;
        self.all(&rows)
    }

    /// All of a job's events and commands (not its samples) by commit position.
    pub async fn of_job(
        &self,
        c: &mut PgConnection,
        job: Id,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE aggregate_id = $1 AND aggregate IN ('job', 'job_command') AND position > $2 \
             ORDER BY position LIMIT $3"
        ))
        .bind(job.to_string())
        .bind(after.unwrap_or(0))
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
        self.all(&rows)
    }

    /// Adds legs and consumer effects: three queries for any number of events.
    pub async fn deliveries(
        &self,
        c: &mut PgConnection,
        events: Vec<Arc<Event>>,
    ) -> Result<Vec<Deliveries>, StoreError> {
        let rows = sqlx::query(concat!("SELECT ", leg_columns!(), " FROM legs WHERE position = ANY($1) ORDER BY 1, 2"))
            .bind(events.iter().map(|event| event.position).bind_iter())
            .fetch_all(&mut *c)
            .await?;
        let mut legs: HashMap<i64, Vec<LegRow>> = HashMap::new();
        for row in &rows {
            let leg = read_leg(row)?;
            legs.entry(leg.position).or_default().push(leg);
        }
        let ids: Vec<uuid::Uuid> = events.iter().map(|event| event.event_id.0).collect();
        let mut effects = effects(c, &ids).await?;
        Ok(events
            .into_iter()
            .map(|event| Deliveries {
                legs: legs.remove(&event.position).unwrap_or_default(),
                effects: effects.remove(&event.event_id).unwrap_or_default(),
                event,
            })
            .collect())
    }

    /// Samples of several jobs in one query, in time order per job.
    pub async fn samples_of(
        &self,
        c: &mut PgConnection,
        jobs: &[Id],
        limit: u32,
    ) -> Result<Vec<(Id, SamplePoint)>, StoreError> {
        let rows = sqlx::query(
            "SELECT aggregate_id, occurred_at, payload::text AS payload FROM events \
             WHERE aggregate_id = ANY($1) AND aggregate = 'job_metrics' ORDER BY aggregate_id, sequence LIMIT $2",
        )
        .bind(jobs.iter().map(ToString::to_string).bind_iter())
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
        rows.iter()
            .map(|row| {
                let job = row
                    .try_get::<&str, _>("aggregate_id")?
                    .parse()
                    .map_err(|_| StoreError::Corrupt("a sample of no job".into()))?;
                let point = SamplePoint {
                    at: read_time(row, "occurred_at")?,
                    payload_json: Bytes::from(row.try_get::<String, _>("payload")?),
                };
                Ok((job, point))
            })
            .collect()
    }

    /// Call inside one snapshot: head and replay must agree.
    pub async fn channels(
        &self,
        c: &mut PgConnection,
        wanted: &[(Channel, Option<i64>)],
        limit: ReplayLimit,
    ) -> Result<Vec<ChannelState>, StoreError> {
        let heads = heads(c, &wanted.iter().map(|(channel, _)| channel.clone()).collect::<Vec<_>>()).await?;
        let (mut events_left, mut bytes_left) = (limit.events, limit.bytes);
        let mut states = Vec::with_capacity(wanted.len());
        for ((channel, cursor), head) in wanted.iter().zip(heads) {
            // A cursor ahead of the head comes from another history: start over.
            let missed = cursor.filter(|after| (0..=head).contains(after)).map(|after| (after, head - after));
            let replay = match missed {
                Some((_, 0)) => Replay::Events(Vec::new()),
                Some((after, count)) if count as usize <= events_left => {
                    let ranges = [(channel.clone(), after, head)];
                    let events: Vec<_> = self.ranges(c, &ranges).await?.into_iter().map(|(_, event)| event).collect();
                    let bytes: usize = events.iter().map(|event| event.payload.json.len() + 300).sum();
                    if bytes <= bytes_left && events.len() as i64 == count {
                        events_left -= events.len();
                        bytes_left -= bytes;
                        Replay::Events(events)
                    } else {
                        // Too large, or a part of it is no longer kept.
                        Replay::Snapshot(snapshot(c, channel).await?)
                    }
                }
                _ => Replay::Snapshot(snapshot(c, channel).await?),
            };
            states.push(ChannelState { channel: channel.clone(), head, replay });
        }
        Ok(states)
    }

    /// Events within (after, upto] of each channel, in offset order per channel: two
    /// queries for any number of channels.
    pub async fn ranges(
        &self,
        c: &mut PgConnection,
        ranges: &[(Channel, i64, i64)],
    ) -> Result<Vec<(Channel, Arc<Event>)>, StoreError> {
        let (mut of_jobs, mut of_users) = (Vec::new(), Vec::new());
        for (channel, after, upto) in ranges {
            match channel {
                Channel::Job(id) => of_jobs.push((id.to_string(), *after, *upto)),
                Channel::User(user) => of_users.push((user.to_string(), *after, *upto)),
            }
        }
        let mut found = Vec::new();
        const JOBS: &str = concat!(
            "SELECT ",
            event_columns!("events"),
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w(id, after, upto) JOIN events \
               ON events.aggregate_id = w.id AND events.aggregate = 'job' AND events.sequence > w.after \
               AND events.sequence <= w.upto ORDER BY events.aggregate_id, events.sequence"
        );
        const USERS: &str = concat!(
            "SELECT ",
            event_columns!("events"),
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w(id, after, upto) JOIN events \
               ON events.user_id = w.id AND events.user_offset > w.after AND events.user_offset <= w.upto \
               AND events.user_offset IS NOT NULL ORDER BY events.user_id, events.user_offset"
        );
        for row in &in_ranges(c, JOBS, &of_jobs).await? {
            let event = self.read(row)?;
            if let Ok(id) = event.aggregate_id.parse() {
                found.push((Channel::Job(id), event));
            }
        }
        for row in &in_ranges(c, USERS, &of_users).await? {
            let event = self.read(row)?;
            found.push((Channel::User(event.user_id.clone()), event));
        }
        Ok(found)
    }
}

async fn in_ranges(
    c: &mut PgConnection,
    sql: &'static str,
    ranges: &[(String, i64, i64)],
) -> Result<Vec<PgRow>, StoreError> {
    if ranges.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(sql)
        .bind(ranges.iter().map(|(id, ..)| id.as_str()).bind_iter())
        .bind(ranges.iter().map(|(_, after, _)| *after).bind_iter())
        .bind(ranges.iter().map(|(.., upto)| *upto).bind_iter())
        .fetch_all(c)
        .await?;
    Ok(rows)
}

/// What consumers have done with these events, and what waits.
async fn effects(c: &mut PgConnection, ids: &[uuid::Uuid]) -> Result<HashMap<Id, Vec<EffectRow>>, StoreError> {
    let mut effects: HashMap<Id, Vec<EffectRow>> = HashMap::new();
    // The primary key leads with the consumer: name the few there are.
    let done = sqlx::query(
        "WITH RECURSIVE consumers(name) AS (SELECT min(consumer) FROM inbox UNION ALL \
           SELECT (SELECT min(consumer) FROM inbox WHERE consumer > name) FROM consumers WHERE name IS NOT NULL) \
         SELECT i.consumer, i.event_id, i.at FROM consumers JOIN inbox AS i \
           ON i.consumer = consumers.name AND i.event_id = ANY($1) WHERE consumers.name IS NOT NULL",
    )
    .bind(ids)
    .fetch_all(&mut *c)
    .await?;
    for row in &done {
        let effect = EffectRow {
            event_id: read_id(row, "event_id")?,
            consumer: read_text(row, "consumer")?,
            state: EffectState::Done,
            attempts: 1,
            at: read_time(row, "at")?,
            next_at: None,
            error: None,
        };
        effects.entry(effect.event_id).or_default().push(effect);
    }
    let waiting = sqlx::query(
        "SELECT consumer, event_id, state, attempts, at, next_at, errors FROM backlog WHERE event_id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(c)
    .await?;
    for row in &waiting {
        let effect = EffectRow {
            event_id: read_id(row, "event_id")?,
            consumer: read_text(row, "consumer")?,
            state: match row.try_get::<i16, _>("state")? {
                1 => EffectState::Retrying,
                2 => EffectState::Parked,
                _ => EffectState::Dead,
            },
            attempts: read_u32(row, "attempts")?,
            at: read_time(row, "at")?,
            next_at: read_time_or_null(row, "next_at")?,
            error: last_error(&row.try_get::<Value, _>("errors")?),
        };
        effects.entry(effect.event_id).or_default().push(effect);
    }
    Ok(effects)
}

/// The heads of channels, in the order asked; 0 where there is none.
pub(super) async fn heads(c: &mut PgConnection, channels: &[Channel]) -> Result<Vec<i64>, StoreError> {
    let keys: Vec<(&str, String)> = channels
        .iter()
        .map(|channel| match channel {
            Channel::Job(id) => ("job", id.to_string()),
            Channel::User(user) => ("user", user.to_string()),
        })
        .collect();
    let rows = sqlx::query(
        "SELECT coalesce(h.last, 0) AS last FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(kind, id, n) \
         LEFT JOIN heads AS h ON h.kind = w.kind AND h.id = w.id ORDER BY w.n",
    )
    .bind(keys.iter().map(|(kind, _)| *kind).bind_iter())
    .bind(keys.iter().map(|(_, id)| id.as_str()).bind_iter())
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("last")?)).collect()
}

async fn snapshot(c: &mut PgConnection, channel: &Channel) -> Result<Snapshot, StoreError> {
    match channel {
        Channel::Job(id) => Ok(Snapshot::Job(super::jobs::load(c, [id]).await?.pop().map(Box::new))),
        Channel::User(user) => {
            let filter = JobFilter { user: Some(user.clone()), ..JobFilter::default() };
            let jobs = super::jobs::list(c, &filter, Page { before: None, limit: 50 }).await?;
            Ok(Snapshot::User { jobs, unread: 0 })
        }
    }
}
