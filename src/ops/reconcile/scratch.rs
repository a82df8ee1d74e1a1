//! Room to compare more legs and messages than memory holds: a private SQLite database
//! that keeps 64 MiB in memory and the rest in the system's directory for temporary files,
//! about 200 bytes a leg. It is gone when it is closed, whatever happens.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

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
        occurred_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE seen (
        event_id   BLOB    NOT NULL PRIMARY KEY,
        log        TEXT    NOT NULL,
        partition  INTEGER NOT NULL,
        \"offset\" INTEGER NOT NULL,
        copies     INTEGER NOT NULL
    ) WITHOUT ROWID;";

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
}

/// The first message of an event, and how many there are.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub event_id: Id,
    pub position: Position,
    pub copies: u64,
}

/// The legs and messages of one broker.
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
                ])
            })
            .collect();
        let sql = "INSERT INTO legs SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
                   value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, \
                   value ->> 12 \
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
        self.both("WHERE seen.copies > 1")
    }

    /// Events whose order matters, with their first message: by partition and aggregate, in
    /// sequence.
    pub fn in_sequence(&mut self) -> Rows<'_, (OwedLeg, Seen)> {
        self.both("WHERE legs.ordered ORDER BY seen.log, seen.partition, legs.aggregate, legs.id, legs.sequence")
    }

    fn both(&mut self, condition: &'static str) -> Rows<'_, (OwedLeg, Seen)> {
        let sql = format!(
            "SELECT legs.*, seen.log AS seen_log, seen.partition AS seen_partition, \
             seen.\"offset\" AS seen_offset, seen.copies FROM legs JOIN seen USING (event_id) {condition}"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch(&mut self.connection);
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
}

fn id(row: &SqliteRow) -> Result<Id, sqlx::Error> {
    let bytes: Vec<u8> = row.try_get("event_id")?;
    uuid::Uuid::from_slice(&bytes).map(Id).map_err(|why| sqlx::Error::Decode(why.into()))
}

fn leg(row: &SqliteRow) -> Result<OwedLeg, sqlx::Error> {
    let text = |column| row.try_get::<String, _>(column).map(Arc::<str>::from);
    let state: i64 = row.try_get("state")?;
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
