//! The second SQLite file: its schema and every statement on it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection, SqlitePool};

use super::group::Standing;
use super::log::Message;
use crate::broker::Encoding;
use crate::domain::event::Headers;
use crate::domain::{Broker, Timestamp};

/// Offsets take the low 40 bits of a record's id: 10^12 a partition.
const OFFSET_BITS: u32 = 40;
/// A reader gets no more body bytes than this in one page, past its first message.
const PAGE_BYTES: usize = 1 << 20;
const READERS: u32 = 3;
/// How long another process (a backup, an operator's shell) may hold the file.
const BUSY: Duration = Duration::from_secs(2);

const PAGE: u32 = 8192;

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(PAGE)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY)
        // Checkpoints are the only syncs: every 16 MiB rather than every 4.
        .pragma("wal_autocheckpoint", "2048")
        .pragma("journal_size_limit", "67108864")
        .thread_name(|id| format!("brokers-db-{id}"))
        .disable_statement_logging()
}

fn record_id(partition: i64, offset: i64) -> i64 {
    (partition << OFFSET_BITS) + offset
}

fn offset_of(id: i64) -> i64 {
    id & ((1 << OFFSET_BITS) - 1)
}

/// A row for `records`.
#[derive(Debug)]
pub(super) struct RecordRow {
    pub partition: i64,
    pub offset: i64,
    pub key: Arc<str>,
    pub headers: Arc<str>,
    pub encoding: Encoding,
    pub body: Bytes,
    pub time: Timestamp,
}

/// A row for `positions`.
#[derive(Debug)]
pub(super) struct PositionRow {
    pub broker: Broker,
    pub consumer: Arc<str>,
    pub partition: i64,
    pub standing: Standing,
}

/// Where the file is and how it is opened.
#[derive(Clone, Debug)]
pub(super) struct Database {
    options: SqliteConnectOptions,
    readers: SqlitePool,
}

impl Database {
    /// Opens the file, creating or migrating it.
    pub async fn open(path: &Path, max_file: Option<u64>) -> Result<(Self, Writer), sqlx::Error> {
        let mut options = options(path);
        if let Some(bytes) = max_file {
            options = options.pragma("max_page_count", (bytes / u64::from(PAGE)).max(16).to_string());
        }
        let mut connection = options.connect().await?;
        // Not `run`: its future is not provably Send.
        sqlx::migrate!("migrations/embedded").run_direct(None, &mut connection, false).await?;
        let writer = Writer { options: options.clone(), connection: Some(connection) };
        Ok((Self::reading(options), writer))
    }

    /// A file that exists, to be read only; another process may be writing it.
    pub fn open_read_only(path: &Path) -> Self {
        Self::reading(options(path))
    }

    fn reading(options: SqliteConnectOptions) -> Self {
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options.clone().read_only(true).create_if_missing(false));
        Self { options, readers }
    }

    pub fn path(&self) -> &Path {
        self.options.get_filename()
    }

    pub async fn close(&self) {
        self.readers.close().await;
    }

    /// Messages of `from..below` in order, up to `limit` and 1 MiB.
    pub async fn read(
        &self,
        partition: i64,
        from: i64,
        below: i64,
        limit: usize,
    ) -> Result<Vec<Arc<Message>>, sqlx::Error> {
        const SQL: &str = "SELECT id, key, headers, encoding, body, time FROM records \
                           WHERE id >= ? AND id < ? ORDER BY id LIMIT ?";
        let mut connection = self.readers.acquire().await?;
        let mut rows = sqlx::query(SQL)
            .bind(record_id(partition, from))
            .bind(record_id(partition, below.min(1 << OFFSET_BITS)))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch(&mut *connection);
        let mut page = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await? {
            let message = message(&row)?;
            bytes += message.body.len();
            page.push(Arc::new(message));
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        Ok(page)
    }

    /// `[oldest, next)` of a partition's offsets.
    pub async fn extent(&self, partition: i64) -> Result<(i64, i64), sqlx::Error> {
        extent(&mut *self.readers.acquire().await?, partition).await
    }

    /// Row id, log and number of this broker's partitions.
    pub async fn partitions(&self, broker: Broker) -> Result<Vec<(i64, String, i32)>, sqlx::Error> {
        sqlx::query_as("SELECT id, log, partition FROM partitions WHERE broker = ? ORDER BY log, partition")
            .bind(broker as i64)
            .fetch_all(&self.readers)
            .await
    }

    /// Where this consumer stands, by partition.
    pub async fn standings(&self, broker: Broker, consumer: &str) -> Result<HashMap<i64, Standing>, sqlx::Error> {
        const SQL: &str = "SELECT partition_id, next_offset, unacked FROM positions WHERE broker = ? AND consumer = ?";
        let rows: Vec<(i64, i64, String)> =
            sqlx::query_as(SQL).bind(broker as i64).bind(consumer.to_owned()).fetch_all(&self.readers).await?;
        rows.into_iter()
            .map(|(partition, next, unacked)| {
                let unacked = serde_json::from_str(&unacked).map_err(|why| sqlx::Error::Decode(Box::new(why)))?;
                Ok((partition, Standing { next, unacked }))
            })
            .collect()
    }

    /// The oldest `limit` records of a partition; `None` if it is empty.
    pub async fn oldest(&self, partition: i64, limit: u32, before: Timestamp) -> Result<Option<Oldest>, sqlx::Error> {
        const SQL: &str = "SELECT min(id), max(id), min(CASE WHEN time >= ? THEN id END) FROM \
                           (SELECT id, time FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)";
        let (first, last, young): (Option<i64>, Option<i64>, Option<i64>) = sqlx::query_as(SQL)
            .bind(before.0)
            .bind(record_id(partition, 0))
            .bind(record_id(partition + 1, 0))
            .bind(limit)
            .fetch_one(&self.readers)
            .await?;
        Ok(first.zip(last).map(|(first, last)| {
            let next = offset_of(last) + 1;
            Oldest { first: offset_of(first), next, young: young.map_or(next, offset_of) }
        }))
    }
}

/// The beginning of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub first: i64,
    /// Behind the last one looked at.
    pub next: i64,
    /// The first that is not older than asked for, or `next`.
    pub young: i64,
}

/// The one connection that writes; opened again after a failure.
#[derive(Debug)]
pub(super) struct Writer {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
}

impl Writer {
    async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            self.connection = Some(self.options.connect().await?);
        }
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Writes all of it or nothing. After an error the connection is given up: the next
    /// use opens a new one, and only `partitions` tells what was committed.
    pub async fn write(
        &mut self,
        records: &[RecordRow],
        positions: &[PositionRow],
        prunes: &[(i64, i64)],
    ) -> Result<(), sqlx::Error> {
        let written = self.try_write(records, positions, prunes).await;
        if written.is_err() {
            self.connection = None;
        }
        written
    }

    async fn try_write(
        &mut self,
        records: &[RecordRow],
        positions: &[PositionRow],
        prunes: &[(i64, i64)],
    ) -> Result<(), sqlx::Error> {
        let connection = self.connection().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for (sql, rows) in chunks(&RECORDS, records) {
            let mut query = sqlx::query(sql);
            for row in rows {
                query = query
                    .bind(record_id(row.partition, row.offset))
                    .bind(row.key.clone())
                    .bind(row.headers.clone())
                    .bind(encoding_code(row.encoding))
                    .bind(&row.body[..]);
                query = query.bind(row.time.0);
            }
            query.execute(&mut *transaction).await?;
        }
        for (sql, rows) in chunks(&POSITIONS, positions) {
            let mut query = sqlx::query(sql);
            for row in rows {
                query = query
                    .bind(row.broker as i64)
                    .bind(row.consumer.clone())
                    .bind(row.partition)
                    .bind(row.standing.next)
                    .bind(unacked_text(&row.standing.unacked));
            }
            query.execute(&mut *transaction).await?;
        }
        for (partition, below) in prunes {
            sqlx::query("DELETE FROM records WHERE id >= ? AND id < ?")
                .bind(record_id(*partition, 0))
                .bind(record_id(*partition, *below))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    /// The row ids of these partitions, creating those that are missing.
    pub async fn partitions(&mut self, wanted: &[(Broker, Arc<str>, i32)]) -> Result<Vec<i64>, sqlx::Error> {
        let mut transaction = self.connection().await?.begin_with("BEGIN IMMEDIATE").await?;
        let mut ids = Vec::with_capacity(wanted.len());
        for (broker, log, number) in wanted {
            // DO UPDATE, because DO NOTHING would not return the row that is there.
            const SQL: &str = "INSERT INTO partitions (broker, log, partition) VALUES (?, ?, ?) \
                               ON CONFLICT DO UPDATE SET log = excluded.log RETURNING id";
            let id: i64 = sqlx::query_scalar(SQL)
                .bind(*broker as i64)
                .bind(log.clone())
                .bind(number)
                .fetch_one(&mut *transaction)
                .await?;
            ids.push(id);
        }
        transaction.commit().await?;
        Ok(ids)
    }

    /// How many partitions each log has on disk.
    pub async fn partition_counts(&mut self) -> Result<Vec<(i64, String, i64)>, sqlx::Error> {
        sqlx::query_as("SELECT broker, log, count(*) FROM partitions GROUP BY broker, log")
            .fetch_all(self.connection().await?)
            .await
    }

    /// `[oldest, next)` of a partition's offsets.
    pub async fn extent(&mut self, partition: i64) -> Result<(i64, i64), sqlx::Error> {
        extent(self.connection().await?, partition).await
    }

    pub async fn close(&mut self) -> Result<(), sqlx::Error> {
        match self.connection.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }
}

async fn extent(connection: &mut SqliteConnection, partition: i64) -> Result<(i64, i64), sqlx::Error> {
    // Two subqueries: SQLite seeks for a lone min or max, but scans for both at once.
    const SQL: &str = "SELECT (SELECT min(id) FROM records WHERE id >= ?1 AND id < ?2), \
                              (SELECT max(id) FROM records WHERE id >= ?1 AND id < ?2)";
    let (first, last): (Option<i64>, Option<i64>) = sqlx::query_as(SQL)
        .bind(record_id(partition, 0))
        .bind(record_id(partition + 1, 0))
        .fetch_one(connection)
        .await?;
    Ok(first.zip(last).map_or((0, 0), |(first, last)| (offset_of(first), offset_of(last) + 1)))
}

/// As stored: never renumber.
fn encoding_code(encoding: Encoding) -> i64 {
    match encoding {
        Encoding::Json => 1,
        Encoding::Avro => 2,
    }
}

fn unacked_text(offsets: &[i64]) -> String {
    let list: Vec<String> = offsets.iter().map(i64::to_string).collect();
    format!("[{}]", list.join(","))
}

fn message(row: &sqlx::sqlite::SqliteRow) -> Result<Message, sqlx::Error> {
    let headers: &str = row.try_get("headers")?;
    let mut headers = serde_json::from_str::<Headers>(headers)
        .map(Arc::new)
        .map_err(|why| format!("the headers cannot be read: {why}"));
    let encoding: i64 = row.try_get("encoding")?;
    let encoding = match encoding {
        1 => Encoding::Json,
        2 => Encoding::Avro,
        other => {
            headers = Err(format!("encoding {other} is not known"));
            Encoding::Json
        }
    };
    Ok(Message {
        offset: offset_of(row.try_get("id")?),
        key: row.try_get::<&str, _>("key")?.into(),
        headers,
        encoding,
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
        time: Timestamp(row.try_get("time")?),
    })
}

/// Rows of a statement. Rows that are too many stay unbound, which is NULL, and are skipped: so
/// one prepared statement, which is one round trip to the connection's thread, serves a batch.
const SIZES: [usize; 16] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// The statement text for each of [`SIZES`].
type Statements = [String; SIZES.len()];

/// `tail` follows a WHERE; the first column of `row` is never NULL.
fn statements(head: &str, row: &str, tail: &str) -> Statements {
    SIZES.map(|size| {
        let rows = vec![row; size].join(",");
        format!("{head} SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL {tail}")
    })
}

static RECORDS: LazyLock<Statements> =
    LazyLock::new(|| statements("INSERT INTO records (id, key, headers, encoding, body, time)", "(?,?,?,?,?,?)", ""));

static POSITIONS: LazyLock<Statements> = LazyLock::new(|| {
    statements(
        "INSERT INTO positions (broker, consumer, partition_id, next_offset, unacked)",
        "(?,?,?,?,?)",
        "ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset, unacked = excluded.unacked",
    )
});

/// Splits rows over the fewest prepared statements.
fn chunks<'a, T>(statements: &'static Statements, rows: &'a [T]) -> impl Iterator<Item = (&'static str, &'a [T])> {
    rows.chunks(SIZES[SIZES.len() - 1]).filter_map(|rows| {
        let at = SIZES.iter().position(|size| *size >= rows.len())?;
        Some((statements[at].as_str(), rows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_over_few_statements() {
        let rows = [0; 256 + 256 + 65];
        let sizes: Vec<_> =
            chunks(&RECORDS, &rows).map(|(sql, rows)| (sql.matches("(?,?,?,?,?,?)").count(), rows.len())).collect();
        assert_eq!(sizes, [(256, 256), (256, 256), (96, 65)]);
        assert_eq!(chunks(&RECORDS, &rows[..0]).count(), 0);
    }
}
