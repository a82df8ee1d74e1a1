//! Room to compare more legs and messages than memory holds: a private SQLite database
//! that keeps 64 MiB in memory and the rest in the system's directory for temporary files,
//! about 250 bytes a leg. It is gone when it is closed, whatever happens.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::absence::Command;
use crate::broker::Position;
use crate::domain::{Id, Timestamp};
use crate::store::LegState;

const SCHEMA: &str = "
    CREATE TABLE legs (
        event_id    BLOB    NOT NULL PRIMARY KEY,
        committed   INTEGER NOT NULL,
        event_type  TEXT    NOT NULL,
        aggregate   TEXT    NOT NULL,
        id          TEXT    NOT NULL,
        sequence    INTEGER NOT NULL,
        ordered     INTEGER NOT NULL,
        state       INTEGER NOT NULL,
        log         TEXT,
        target      TEXT    NOT NULL,
        partition   INTEGER,
        \"offset\"  INTEGER,
        occurred_at INTEGER NOT NULL,
        command     TEXT
    ) WITHOUT ROWID;
    CREATE TABLE seen (
        event_id   BLOB    NOT NULL PRIMARY KEY,
        log        TEXT    NOT NULL,
        partition  INTEGER NOT NULL,
        \"offset\" INTEGER NOT NULL,
        copies     INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE handled (
        reader   INTEGER NOT NULL,
        event_id BLOB    NOT NULL,
        at       INTEGER,
        PRIMARY KEY (reader, event_id)
    ) WITHOUT ROWID;
    CREATE TABLE emitted (
        cause      BLOB    NOT NULL,
        event_type TEXT    NOT NULL,
        position   INTEGER NOT NULL,
        PRIMARY KEY (cause, event_type)
    ) WITHOUT ROWID;
    CREATE TABLE owed (
        reader    INTEGER NOT NULL,
        committed INTEGER NOT NULL,
        event_id  BLOB    NOT NULL,
        PRIMARY KEY (reader, committed)
    ) WITHOUT ROWID;
    CREATE TABLE lost (committed INTEGER PRIMARY KEY);";

/// A leg, as far as it is compared.
#[derive(Clone, Debug)]
pub(super) struct OwedLeg {
    pub event_id: Id,
    /// The event's commit position.
    pub committed: i64,
    pub event_type: Arc<str>,
    pub aggregate: Arc<str>,
    pub aggregate_id: Arc<str>,
    pub sequence: i64,
    /// Whether its place among the aggregate's events matters.
    pub ordered: bool,
    pub state: LegState,
    /// `None`: no log takes it.
    pub log: Option<Arc<str>>,
    /// Exchange, topic or subject.
    pub target: Arc<str>,
    /// Where it was confirmed, if the broker tells.
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub occurred_at: Timestamp,
    /// Of a work queue's command: what its consumption leaves behind.
    pub command: Option<Command>,
}

/// The first message of an event, and how many there are.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub event_id: Id,
    pub position: Position,
    pub copies: u64,
}

/// An event that a consumer has handled.
#[derive(Clone, Debug)]
pub(super) struct Handled {
    pub leg: OwedLeg,
    pub at: Timestamp,
    /// The commit position of what it emitted for it.
    pub emitted: Option<i64>,
}

/// The legs and messages of one broker, and what the consumers of its queues have done.
pub(super) struct Scratch {
    connection: SqliteConnection,
}

type Rows<'a, T> = BoxStream<'a, Result<T, sqlx::Error>>;

impl Scratch {
    pub async fn new() -> Result<Self, sqlx::Error> {
        // Without a name SQLite makes a file of its own and deletes it at once.
        let options = SqliteConnectOptions::new()
            .filename("")
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Off)
            .synchronous(SqliteSynchronous::Off)
            .pragma("cache_size", "-65536")
            .pragma("temp_store", "file")
            .disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        Ok(Self { connection })
    }

    pub async fn add_legs(&mut self, legs: &[OwedLeg]) -> Result<(), sqlx::Error> {
        let rows: Vec<_> = legs
            .iter()
            .map(|leg| {
                json!([
                    hex::encode(leg.event_id.as_bytes()),
                    leg.committed,
                    leg.event_type,
                    leg.aggregate,
                    leg.aggregate_id,
                    leg.sequence,
                    i64::from(leg.ordered),
                    leg.state as i64,
                    leg.log,
                    leg.target,
                    leg.partition,
                    leg.offset,
                    leg.occurred_at.0,
                    leg.command,
                ])
            })
            .collect();
        let sql = "INSERT INTO legs SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
                   value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, \
                   value ->> 12, value ->> 13 \
                   FROM json_each(?)";
        self.write(sql, rows).await
    }

    /// Messages in the order of their partition.
    pub async fn add_seen(&mut self, messages: &[(Id, Position)]) -> Result<(), sqlx::Error> {
        let rows: Vec<_> = messages
            .iter()
            .map(|(id, position)| {
                json!([hex::encode(id.as_bytes()), position.log, position.partition, position.offset.unwrap_or(-1)])
            })
            .collect();
        let sql = "INSERT INTO seen SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, 1 \
                   FROM json_each(?) WHERE true ON CONFLICT (event_id) DO UPDATE SET copies = copies + 1";
        self.write(sql, rows).await
    }

    async fn write(&mut self, sql: &'static str, rows: Vec<serde_json::Value>) -> Result<(), sqlx::Error> {
        let mut transaction = self.connection.begin().await?;
        sqlx::query(sql).bind(serde_json::Value::from(rows).to_string()).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Confirmed legs of which no message is there, in the order of their commits.
    pub fn without_message(&mut self) -> Rows<'_, OwedLeg> {
        let sql = "SELECT legs.* FROM legs LEFT JOIN seen USING (event_id) \
                   WHERE legs.state = 1 AND seen.event_id IS NULL ORDER BY legs.committed";
        sqlx::query(sql).fetch(&mut self.connection).map(|row| leg(&row?)).boxed()
    }

    /// Legs that are not settled, with the first message if there is one.
    pub fn pending(&mut self) -> Rows<'_, (OwedLeg, Option<Position>)> {
        let sql = "SELECT legs.*, seen.log AS seen_log, seen.partition AS seen_partition, \
                   seen.\"offset\" AS seen_offset FROM legs LEFT JOIN seen USING (event_id) WHERE legs.state = 0";
        let rows = sqlx::query(sql).fetch(&mut self.connection);
        rows.map(|row| {
            let row = row?;
            let found: Option<String> = row.try_get("seen_log")?;
            Ok((leg(&row)?, found.map(|_| position(&row)).transpose()?))
        })
        .boxed()
    }

    /// Events with more than one message.
    pub fn repeated(&mut self) -> Rows<'_, (OwedLeg, Seen)> {
        let sql = "SELECT legs.*, seen.log AS seen_log, seen.partition AS seen_partition, \
                   seen.\"offset\" AS seen_offset, seen.copies FROM legs JOIN seen USING (event_id) \
                   WHERE seen.copies > 1";
        let rows = sqlx::query(sql).fetch(&mut self.connection);
        rows.map(|row| {
            let row = row?;
            Ok((leg(&row)?, seen(&row)?))
        })
        .boxed()
    }

    /// Events whose order matters, with their first message: by partition and aggregate, in
    /// sequence. Those of `forgetful` logs stand where they were confirmed, if they are gone.
    pub fn in_sequence(&mut self, forgetful: &[&str]) -> Rows<'_, (OwedLeg, Seen)> {
        let sql = "SELECT legs.*, coalesce(seen.log, legs.log) AS seen_log, \
                   coalesce(seen.partition, legs.partition, 0) AS seen_partition, \
                   coalesce(seen.\"offset\", legs.\"offset\") AS seen_offset, coalesce(seen.copies, 0) AS copies \
                   FROM legs LEFT JOIN seen USING (event_id) \
                   WHERE legs.ordered AND (seen.event_id IS NOT NULL OR (legs.state = 1 \
                     AND legs.\"offset\" IS NOT NULL AND legs.log IN (SELECT value FROM json_each(?)))) \
                   ORDER BY seen_log, seen_partition, legs.aggregate, legs.id, legs.sequence";
        let rows = sqlx::query(sql).bind(json!(forgetful).to_string()).fetch(&mut self.connection);
        rows.map(|row| {
            let row = row?;
            Ok((leg(&row)?, seen(&row)?))
        })
        .boxed()
    }

    /// Messages whose event owes this broker nothing, as far as the ledger was read.
    pub fn without_leg(&mut self) -> Rows<'_, Seen> {
        let sql = "SELECT seen.event_id, seen.log AS seen_log, seen.partition AS seen_partition, \
                   seen.\"offset\" AS seen_offset, seen.copies FROM seen LEFT JOIN legs USING (event_id) \
                   WHERE legs.event_id IS NULL";
        sqlx::query(sql).fetch(&mut self.connection).map(|row| seen(&row?)).boxed()
    }

    /// What a reader has of events: when it handled them, if it has.
    pub async fn add_handled(&mut self, rows: &[(usize, Id, Option<Timestamp>)]) -> Result<(), sqlx::Error> {
        let rows = rows.iter().map(|(reader, id, at)| json!([reader, hex::encode(id.as_bytes()), at.map(|at| at.0)]));
        let sql = "INSERT INTO handled SELECT value ->> 0, unhex(value ->> 1), value ->> 2 FROM json_each(?) \
                   WHERE true ON CONFLICT DO UPDATE SET at = coalesce(at, excluded.at)";
        self.write(sql, rows.collect()).await
    }

    /// Events that were emitted for others: the cause, the type, where it was committed.
    pub async fn add_emitted(&mut self, rows: &[(Id, Arc<str>, i64)]) -> Result<(), sqlx::Error> {
        let rows = rows.iter().map(|(cause, name, at)| json!([hex::encode(cause.as_bytes()), name, at]));
        let sql = "INSERT INTO emitted SELECT unhex(value ->> 0), value ->> 1, value ->> 2 FROM json_each(?) \
                   WHERE true ON CONFLICT DO UPDATE SET position = min(position, excluded.position)";
        self.write(sql, rows.collect()).await
    }

    /// Notes which confirmed events of these types a reader has nothing of.
    pub async fn note_owed(&mut self, reader: usize, types: &[&str]) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO owed SELECT ?1, legs.committed, legs.event_id FROM legs LEFT JOIN handled \
                   ON handled.reader = ?1 AND handled.event_id = legs.event_id WHERE legs.state = 1 \
                   AND handled.event_id IS NULL AND legs.event_type IN (SELECT value FROM json_each(?2))";
        let query = sqlx::query(sql).bind(reader as i64).bind(json!(types).to_string());
        query.execute(&mut self.connection).await.map(drop)
    }

    /// A page of what was noted, behind this commit position.
    pub async fn owed(&mut self, reader: usize, after: i64, limit: u32) -> Result<Vec<OwedLeg>, sqlx::Error> {
        let sql = "SELECT legs.* FROM owed CROSS JOIN legs USING (event_id) \
                   WHERE owed.reader = ? AND owed.committed > ? ORDER BY owed.committed LIMIT ?";
        let query = sqlx::query(sql).bind(reader as i64).bind(after).bind(limit);
        query.fetch_all(&mut self.connection).await?.iter().map(leg).collect()
    }

    /// It is not owed any more.
    pub async fn settle(&mut self, reader: usize, committed: &[i64]) -> Result<(), sqlx::Error> {
        let sql = "DELETE FROM owed WHERE reader = ? AND committed IN (SELECT value FROM json_each(?))";
        let query = sqlx::query(sql).bind(reader as i64).bind(json!(committed).to_string());
        query.execute(&mut self.connection).await.map(drop)
    }

    /// Notes what is to be published again.
    pub async fn add_lost(&mut self, committed: &[i64]) -> Result<(), sqlx::Error> {
        let rows = committed.iter().map(|position| json!(position)).collect();
        self.write("INSERT INTO lost SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING", rows).await
    }

    /// Commit positions of what was lost, in order.
    pub fn lost(&mut self) -> Rows<'_, i64> {
        sqlx::query_scalar("SELECT committed FROM lost ORDER BY committed").fetch(&mut self.connection)
    }

    /// What a reader has handled of ordered types: by aggregate, in sequence. `emits`: what it
    /// commits with that.
    pub fn handled(&mut self, reader: usize, emits: &[&str]) -> Rows<'_, Handled> {
        let sql = "SELECT legs.*, handled.at AS handled_at, (SELECT min(position) FROM emitted \
                     WHERE cause = handled.event_id AND event_type IN (SELECT value FROM json_each(?))) AS emitted \
                   FROM handled JOIN legs USING (event_id) \
                   WHERE handled.reader = ? AND handled.at IS NOT NULL AND legs.ordered \
                   ORDER BY legs.aggregate, legs.id, legs.sequence";
        let query = sqlx::query(sql).bind(json!(emits).to_string()).bind(reader as i64);
        let rows = query.fetch(&mut self.connection);
        rows.map(|row| {
            let row = row?;
            let at = Timestamp(row.try_get("handled_at")?);
            Ok(Handled { leg: leg(&row)?, at, emitted: row.try_get("emitted")? })
        })
        .boxed()
    }
}

fn id(row: &SqliteRow) -> Result<Id, sqlx::Error> {
    let bytes: Vec<u8> = row.try_get("event_id")?;
    uuid::Uuid::from_slice(&bytes).map(Id).map_err(|why| sqlx::Error::Decode(why.into()))
}

fn leg(row: &SqliteRow) -> Result<OwedLeg, sqlx::Error> {
    let text = |column| row.try_get::<String, _>(column).map(Arc::<str>::from);
    let state: i64 = row.try_get("state")?;
    let command: Option<String> = row.try_get("command")?;
    Ok(OwedLeg {
        event_id: id(row)?,
        committed: row.try_get("committed")?,
        event_type: text("event_type")?,
        aggregate: text("aggregate")?,
        aggregate_id: text("id")?,
        sequence: row.try_get("sequence")?,
        ordered: row.try_get("ordered")?,
        state: LegState::from_code(state).ok_or_else(|| sqlx::Error::Decode(format!("state {state}").into()))?,
        log: row.try_get::<Option<String>, _>("log")?.map(Arc::from),
        target: text("target")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        occurred_at: Timestamp(row.try_get("occurred_at")?),
        command: command
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|why| sqlx::Error::Decode(why.into()))?,
    })
}

fn position(row: &SqliteRow) -> Result<Position, sqlx::Error> {
    Ok(Position {
        log: row.try_get::<String, _>("seen_log")?.into(),
        partition: row.try_get("seen_partition")?,
        offset: row.try_get("seen_offset")?,
    })
}

fn seen(row: &SqliteRow) -> Result<Seen, sqlx::Error> {
    let copies: i64 = row.try_get("copies")?;
    Ok(Seen { event_id: id(row)?, position: position(row)?, copies: copies.unsigned_abs() })
}
