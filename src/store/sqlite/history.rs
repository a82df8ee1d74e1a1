//! Reading events: by aggregate, channel and filter, with what became of them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::outbox::{leg_columns, read_leg};
use super::rows::{Args, hex_list, json_list};
use crate::domain::catalogue::{Catalogue, EventType};
use crate::domain::event::Origin;
use crate::domain::job::Job;
use crate::domain::{Channel, EncodedPayload, Event, EventDraft, Id, Timestamp};
use crate::store::{
    ChannelState, Deliveries, EffectRow, EffectState, EventFilter, JobFilter, LegRow, Page, Replay, ReplayLimit,
    SamplePoint, Snapshot, StoreError,
};

/// The columns of `events`, in the order of `INSERT`; `("table")` qualifies them.
macro_rules! event_columns {
    () => {
        "position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, occurred_at, \
         correlation_id, causation_id, tags, traceparent, payload"
    };
    ("events") => {
        "events.position, events.event_id, events.event_type, events.aggregate, events.aggregate_id, \
         events.sequence, events.user_id, events.user_offset, events.occurred_at, events.correlation_id, \
         events.causation_id, events.tags, events.traceparent, events.payload"
    };
}
pub(super) use event_columns;

// The primary keys lead with the consumer, so the few there are get named; and joined in this
// order: without CROSS the planner reads everything a consumer ever did.

/// What consumers have done with the events of a list.
const EFFECTS_DONE: &str = "WITH RECURSIVE consumers(name) AS (SELECT min(consumer) FROM inbox UNION ALL \
       SELECT (SELECT min(consumer) FROM inbox WHERE consumer > name) FROM consumers WHERE name IS NOT NULL) \
     SELECT i.consumer, i.event_id, i.at FROM consumers CROSS JOIN json_each(?) AS wanted CROSS JOIN inbox AS i \
       ON i.consumer = consumers.name AND i.event_id = unhex(wanted.value)";

/// What waits of the events of a list.
const EFFECTS_WAITING: &str = "WITH RECURSIVE consumers(name) AS (SELECT min(consumer) FROM backlog UNION ALL \
       SELECT (SELECT min(consumer) FROM backlog WHERE consumer > name) FROM consumers WHERE name IS NOT NULL) \
     SELECT b.consumer, b.event_id, b.state, b.attempts, b.at, b.next_at, b.errors ->> '$[#-1].error' AS error \
       FROM consumers CROSS JOIN json_each(?) AS wanted CROSS JOIN backlog AS b \
       ON b.consumer = consumers.name AND b.event_id = unhex(wanted.value)";

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

    pub fn read(&self, row: &SqliteRow) -> Result<Arc<Event>, StoreError> {
        let tags = match row.try_get::<Option<String>, _>("tags")? {
            None => Vec::new(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| StoreError::Corrupt(format!("tags of an event: {error}")))?,
        };
        let causation: Option<Vec<u8>> = row.try_get("causation_id")?;
        Ok(Arc::new(Event {
            position: row.try_get("position")?,
            sequence: row.try_get("sequence")?,
            user_offset: row.try_get("user_offset")?,
            origin: Origin::default(),
            draft: EventDraft {
                event_id: super::read_id(row, "event_id")?,
                event_type: self.event_type(&row.try_get::<String, _>("event_type")?)?,
                aggregate_id: row.try_get::<String, _>("aggregate_id")?.into(),
                user_id: row.try_get::<String, _>("user_id")?.into(),
                occurred_at: Timestamp(row.try_get("occurred_at")?),
                correlation_id: super::read_id(row, "correlation_id")?,
                causation_id: causation.map(|bytes| super::id_from(&bytes)).transpose()?,
                tags,
                payload: EncodedPayload { json: Bytes::from(row.try_get::<String, _>("payload")?), avro: None },
                traceparent: row.try_get::<Option<String>, _>("traceparent")?.map(Arc::from),
                skip: Vec::new(),
            },
        }))
    }

    fn all(&self, rows: &[SqliteRow]) -> Result<Vec<Arc<Event>>, StoreError> {
        rows.iter().map(|row| self.read(row)).collect()
    }

    pub async fn by_id(&self, c: &mut SqliteConnection, ids: &[Id]) -> Result<Vec<Arc<Event>>, StoreError> {
        const SQL: &str = concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE event_id IN (SELECT unhex(value) FROM json_each(?))"
        );
        let rows = sqlx::query(SQL).bind(hex_list(ids)).fetch_all(c).await?;
        self.all(&rows)
    }

    pub async fn by_aggregate(
        &self,
        c: &mut SqliteConnection,
        aggregate: &str,
        id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE aggregate_id = ?1 AND aggregate = ?2 AND sequence > ?3 ORDER BY sequence LIMIT ?4"
        ))
        .bind(id.to_owned())
        .bind(aggregate.to_owned())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
        self.all(&rows)
    }

    pub async fn list(
        &self,
        c: &mut SqliteConnection,
        filter: &EventFilter,
        page: Page<i64>,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let by_aggregate = if filter.aggregate_id.is_some() { "aggregate_id = ?3" } else { "?3 IS NULL" };
        let sql = format!(
            "SELECT {} FROM events WHERE {by_aggregate} AND (?1 IS NULL OR event_type = ?1) \
             AND (?2 IS NULL OR aggregate = ?2) AND (?4 IS NULL OR user_id = ?4) \
             AND (?5 IS NULL OR occurred_at >= ?5) AND (?6 IS NULL OR occurred_at < ?6) \
             AND (?7 IS NULL OR position < ?7) ORDER BY position DESC LIMIT ?8",
            event_columns!()
        );
        let mut args = Args::default();
        args.push(filter.event_type.clone())
            .push(filter.aggregate_type.clone())
            .push(filter.aggregate_id.clone())
            .push(filter.user.clone())
            .push(filter.since.map(|t| t.0))
            .push(filter.until.map(|t| t.0))
            .push(page.before)
            .push(i64::from(page.limit));
        let rows = sqlx::query_with(AssertSqlSafe(sql), args.into_inner()).fetch_all(c).await?;
        self.all(&rows)
    }

    /// All of a job's events and commands (not its samples) by commit position.
    pub async fn of_job(
        &self,
        c: &mut SqliteConnection,
        job: Id,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            " FROM events WHERE aggregate_id = ?1 AND aggregate IN ('job', 'job_command') AND position > ?2 \
             ORDER BY position LIMIT ?3"
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
        c: &mut SqliteConnection,
        events: Vec<Arc<Event>>,
    ) -> Result<Vec<Deliveries>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            leg_columns!(),
            " FROM json_each(?) AS wanted JOIN legs ON legs.position = wanted.value"
        ))
        .bind(json_list(events.iter().map(|event| event.position)))
        .fetch_all(&mut *c)
        .await?;
        let mut legs: HashMap<i64, Vec<LegRow>> = HashMap::new();
        for row in &rows {
            let leg = read_leg(row)?;
            legs.entry(leg.position).or_default().push(leg);
        }
        let ids = hex_list(events.iter().map(|event| &event.draft.event_id));
        let mut effects: HashMap<Id, Vec<EffectRow>> = HashMap::new();
        let done = sqlx::query(EFFECTS_DONE).bind(&ids).fetch_all(&mut *c).await?;
        for row in &done {
            let effect = EffectRow {
                event_id: super::read_id(row, "event_id")?,
                consumer: row.try_get::<String, _>("consumer")?.into(),
                state: EffectState::Done,
                attempts: 1,
                at: Timestamp(row.try_get("at")?),
                next_at: None,
                error: None,
            };
            effects.entry(effect.event_id).or_default().push(effect);
        }
        let waiting = sqlx::query(EFFECTS_WAITING).bind(&ids).fetch_all(&mut *c).await?;
        for row in &waiting {
            let effect = EffectRow {
                event_id: super::read_id(row, "event_id")?,
                consumer: row.try_get::<String, _>("consumer")?.into(),
                state: match row.try_get::<i64, _>("state")? {
                    1 => EffectState::Retrying,
                    2 => EffectState::Parked,
                    _ => EffectState::Dead,
                },
                attempts: row.try_get("attempts")?,
                at: Timestamp(row.try_get("at")?),
                next_at: row.try_get::<Option<i64>, _>("next_at")?.map(Timestamp),
                error: row.try_get("error")?,
            };
            effects.entry(effect.event_id).or_default().push(effect);
        }
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
        c: &mut SqliteConnection,
        jobs: &[Id],
        limit: u32,
    ) -> Result<Vec<(Id, SamplePoint)>, StoreError> {
        let rows = sqlx::query(
            "SELECT e.aggregate_id, e.occurred_at, e.payload FROM json_each(?1) AS wanted JOIN events AS e \
               ON e.aggregate_id = wanted.value AND e.aggregate = 'job_metrics' \
             ORDER BY e.aggregate_id, e.sequence LIMIT ?2",
        )
        .bind(json_list(jobs))
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
        rows.iter()
            .map(|row| {
                let job = row
                    .try_get::<String, _>("aggregate_id")?
                    .parse()
                    .map_err(|_| StoreError::Corrupt("a sample of no job".into()))?;
                let point = SamplePoint {
                    at: Timestamp(row.try_get("occurred_at")?),
                    payload_json: Bytes::from(row.try_get::<String, _>("payload")?),
                };
                Ok((job, point))
            })
            .collect()
    }

    /// Call inside one read transaction: head and replay must agree.
    pub async fn channels(
        &self,
        c: &mut SqliteConnection,
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
                    let events = self.range(c, channel, after, head).await?;
                    let bytes: usize = events.iter().map(|event| event.payload.json.len() + 300).sum();
                    if bytes <= bytes_left && events.len() as i64 == count {
                        events_left -= events.len();
                        bytes_left -= bytes;
                        Replay::Events(events)
                    } else {
                        Replay::Snapshot(snapshot(c, channel).await?)
                    }
                }
                _ => Replay::Snapshot(snapshot(c, channel).await?),
            };
            states.push(ChannelState { channel: channel.clone(), head, replay });
        }
        Ok(states)
    }

    async fn range(
        &self,
        c: &mut SqliteConnection,
        channel: &Channel,
        after: i64,
        upto: i64,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let ranges = [(channel.clone(), after, upto)];
        Ok(self.ranges(c, &ranges).await?.into_iter().map(|(_, event)| event).collect())
    }

    /// Events within (after, upto] of each channel, in offset order per channel: two
    /// queries for any number of channels.
    pub async fn ranges(
        &self,
        c: &mut SqliteConnection,
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
        if !of_jobs.is_empty() {
            let rows = sqlx::query(concat!(
                "SELECT ",
                event_columns!("events"),
                " FROM json_each(?) AS wanted JOIN events ON events.aggregate_id = wanted.value ->> 0 \
                 AND events.aggregate = 'job' AND events.sequence > wanted.value ->> 1 \
                 AND events.sequence <= wanted.value ->> 2 ORDER BY events.aggregate_id, events.sequence"
            ))
            .bind(json_list(of_jobs))
            .fetch_all(&mut *c)
            .await?;
            for row in &rows {
                let event = self.read(row)?;
                if let Ok(id) = event.aggregate_id.parse() {
                    found.push((Channel::Job(id), event));
                }
            }
        }
        if !of_users.is_empty() {
            let rows = sqlx::query(concat!(
                "SELECT ",
                event_columns!("events"),
                " FROM json_each(?) AS wanted JOIN events ON events.user_id = wanted.value ->> 0 \
                 AND events.user_offset > wanted.value ->> 1 AND events.user_offset <= wanted.value ->> 2 \
                 AND events.user_offset IS NOT NULL ORDER BY events.user_id, events.user_offset"
            ))
            .bind(json_list(of_users))
            .fetch_all(&mut *c)
            .await?;
            for row in &rows {
                let event = self.read(row)?;
                found.push((Channel::User(event.user_id.clone()), event));
            }
        }
        Ok(found)
    }
}

/// The heads of channels, in the order asked; 0 where there is none.
pub(super) async fn heads(c: &mut SqliteConnection, channels: &[Channel]) -> Result<Vec<i64>, StoreError> {
    let list = json_list(channels.iter().map(|channel| match channel {
        Channel::Job(id) => ["job".to_owned(), id.to_string()],
        Channel::User(user) => ["user".to_owned(), user.to_string()],
    }));
    let rows = sqlx::query(
        "SELECT coalesce(heads.last, 0) AS last FROM json_each(?) AS wanted LEFT JOIN heads \
           ON heads.kind = wanted.value ->> 0 AND heads.id = wanted.value ->> 1 ORDER BY wanted.key",
    )
    .bind(list)
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("last")?)).collect()
}

async fn snapshot(c: &mut SqliteConnection, channel: &Channel) -> Result<Snapshot, StoreError> {
    match channel {
        Channel::Job(id) => {
            let job = super::jobs::load(c, [id]).await?.pop();
            Ok(Snapshot::Job(job.map(Box::new)))
        }
        Channel::User(user) => {
            let filter = JobFilter { user: Some(user.clone()), ..JobFilter::default() };
            let jobs: Vec<Job> = super::jobs::list(c, &filter, Page { before: None, limit: 50 }).await?;
            Ok(Snapshot::User { jobs, unread: 0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::factory::EventFactory;
    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn the_ledger_reads_no_more_than_the_events_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let factory = Arc::new(EventFactory::new(Catalogue::load(&[]).unwrap(), HashSet::new(), 0));
        let store = SqliteStore::open(&dir.path().join("gateway.db"), factory).await.unwrap();
        let mut reader = store.readers.acquire().await.unwrap();
        for (statement, table) in [(EFFECTS_DONE, "SEARCH i "), (EFFECTS_WAITING, "SEARCH b ")] {
            let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
            let plan: Vec<String> = sqlx::query(explain)
                .bind("[]")
                .fetch_all(&mut *reader)
                .await
                .unwrap()
                .iter()
                .map(|row| row.get("detail"))
                .collect();
            let by_key = |line: &String| line.starts_with(table) && line.ends_with("(consumer=? AND event_id=?)");
            assert!(plan.iter().any(by_key), "{plan:#?}");
        }
    }
}
