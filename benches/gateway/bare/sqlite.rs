//! To SQLite, as the embedded store is set.

use std::fmt::Write as _;
use std::sync::Arc;

use event_gateway::domain::Event;
use event_gateway::domain::factory::EventFactory;
use event_gateway::domain::job::Job;
use event_gateway::store::Store;
use event_gateway::store::sqlite::SqliteStore;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use super::{Sink, Written, heads, legs};
use crate::process::{data_dir, store_file};

pub struct File {
    connection: SqliteConnection,
    _dir: TempDir,
}

impl File {
    pub async fn open(factory: Arc<EventFactory>) -> Self {
        let dir = data_dir();
        let path = store_file(dir.path());
        // For its schema.
        SqliteStore::open(&path, factory).await.expect("a store").close().await;
        let connection = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-65536")
            .pragma("wal_autocheckpoint", "4000")
            .disable_statement_logging()
            .connect()
            .await
            .expect("the same file");
        Self { connection, _dir: dir }
    }
}

impl Sink for File {
    async fn commit(&mut self, batch: &[Written]) {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await.expect("nobody else writes");
        write(&mut transaction, batch).await.expect("new rows");
        transaction.commit().await.expect("room on the disk");
    }

    /// The directory goes with it.
    async fn end(self) {}
}

async fn write(connection: &mut SqliteConnection, batch: &[Written]) -> Result<(), sqlx::Error> {
    let events: Vec<&Event> = batch.iter().flat_map(|(_, events)| events).collect();
    let jobs: Vec<&Job> = batch.iter().map(|(job, _)| job).collect();
    insert(
        connection,
        "jobs (id, user_id, name, agent, runner, dataset_id, tacc_system, status, priority, params, \
        resource_request, attempt, retry_count, max_retries, cancel_requested, estimated_cost_usd, created_at, \
        updated_at)",
        18,
        "",
        &jobs,
        |args, job| {
            let id = job.id.as_bytes().to_vec();
            let resources = serde_json::to_string(&job.resource_request).expect("plain data");
            args.add(id)?;
            args.add(job.user_id.clone())?;
            args.add(job.name.clone())?;
            args.add(job.agent.clone())?;
            args.add(job.runner.as_str())?;
            args.add(job.dataset_id.clone())?;
            args.add(job.tacc_system.as_str())?;
            args.add(job.status.as_str())?;
            args.add(job.priority as i64)?;
            args.add(job.params.get().to_owned())?;
            args.add(resources)?;
            args.add(1_i64)?;
            args.add(0_i64)?;
            args.add(3_i64)?;
            args.add(false)?;
            args.add(job.estimated_cost_usd)?;
            args.add(job.created_at.0)?;
            args.add(job.updated_at.0)
        },
    )
    .await?;
    let upsert = "ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last";
    insert(connection, "heads (kind, id, last)", 3, upsert, &heads(&events), |args, ((kind, id), last)| {
        args.add((*kind).to_owned())?;
        args.add((*id).to_owned())?;
        args.add(*last)
    })
    .await?;
    insert(
        connection,
        "events (position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, \
        occurred_at, correlation_id, payload)",
        11,
        "",
        &events,
        |args, event| {
            args.add(event.position)?;
            args.add(event.event_id.as_bytes().to_vec())?;
            args.add(event.event_type.name.clone())?;
            args.add(event.event_type.aggregate.clone())?;
            args.add(event.aggregate_id.clone())?;
            args.add(event.sequence)?;
            args.add(event.user_id.clone())?;
            args.add(event.user_offset)?;
            args.add(event.occurred_at.0)?;
            args.add(event.correlation_id.as_bytes().to_vec())?;
            args.add(std::str::from_utf8(&event.payload.json).expect("JSON").to_owned())
        },
    )
    .await?;
    insert(connection, "legs (position, broker, state, bucket, at, attempts)", 6, "", &legs(&events), |args, leg| {
        args.add(leg.position)?;
        args.add(leg.broker)?;
        args.add(leg.state)?;
        args.add(leg.bucket)?;
        args.add(leg.at)?;
        args.add(0_i64)
    })
    .await
}

/// Multi-row statements of up to 256 rows, as the store makes them.
async fn insert<R>(
    connection: &mut SqliteConnection,
    into: &'static str,
    columns: usize,
    tail: &'static str,
    rows: &[R],
    bind: impl Fn(&mut SqliteArguments, &R) -> Result<(), sqlx::error::BoxDynError>,
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(256) {
        let row = format!("({})", vec!["?"; columns].join(","));
        let mut sql = format!("INSERT INTO {into} VALUES ");
        for index in 0..rows.len() {
            write!(sql, "{}{row}", if index > 0 { "," } else { "" }).expect("memory");
        }
        sql.push(' ');
        sql.push_str(tail);
        let mut args = SqliteArguments::default();
        for row in rows {
            bind(&mut args, row).map_err(sqlx::Error::Encode)?;
        }
        sqlx::query_with(AssertSqlSafe(sql), args).execute(&mut *connection).await?;
    }
    Ok(())
}
