//! The baseline: a loop that writes to the same disk what the gateway writes for a
//! submission (job, two events, four legs, three heads), in the same statements and batch
//! sizes, and does nothing else.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use event_gateway::domain::job::Job;
use event_gateway::domain::{Event, EventDraft, Origin};
use event_gateway::store::Store;
use event_gateway::store::plan::bucket;
use event_gateway::store::sqlite::SqliteStore;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use crate::process::{data_dir, store_file};
use crate::rows;

/// Made before the clock starts.
const JOBS: usize = 60_000;
const LIMIT: Duration = Duration::from_secs(20);

pub struct Figures {
    /// Jobs a second.
    pub rate: f64,
    /// Microseconds of CPU a job.
    pub cpu: f64,
}

/// Writes jobs of `users` users, `batch` of them a COMMIT.
pub async fn run(batch: usize, users: usize) -> Figures {
    let dir = data_dir();
    let path = store_file(dir.path());
    let factory = rows::factory();
    // For its schema.
    SqliteStore::open(&path, factory.clone()).await.expect("a store").close().await;
    let mut connection = SqliteConnectOptions::new()
        .filename(&path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "4000")
        .disable_statement_logging()
        .connect()
        .await
        .expect("the same file");
    let jobs: Vec<(Job, Vec<Event>)> =
        (0..JOBS).map(|n| numbered(rows::submission(&factory, n, users), n, users)).collect();
    let (cpu, start) = (crate::beside::own_cpu_seconds(), Instant::now());
    let mut written = 0;
    for batch in jobs.chunks(batch.max(1)) {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.expect("nobody else writes");
        write(&mut transaction, batch).await.expect("new rows");
        transaction.commit().await.expect("room on the disk");
        written += batch.len();
        if start.elapsed() > LIMIT {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Figures { rate: written as f64 / seconds, cpu: (crate::beside::own_cpu_seconds() - cpu) / written as f64 * 1e6 }
}

/// Positions, sequences and offsets as the store would give them.
fn numbered((job, drafts): (Job, Vec<EventDraft>), n: usize, users: usize) -> (Job, Vec<Event>) {
    let events = drafts.into_iter().enumerate().map(|(index, draft)| Event {
        position: (2 * n + index + 1) as i64,
        sequence: 1,
        user_offset: draft.event_type.audience.user.then_some((n / users + 1) as i64),
        origin: Origin::default(),
        draft,
    });
    (job, events.collect())
}

async fn write(connection: &mut SqliteConnection, batch: &[(Job, Vec<Event>)]) -> Result<(), sqlx::Error> {
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
    // A head of each aggregate, and one of each user.
    let mut heads: std::collections::BTreeMap<(&str, &str), i64> = std::collections::BTreeMap::new();
    for event in &events {
        heads.insert((&event.event_type.aggregate, &event.aggregate_id), event.sequence);
        if let Some(offset) = event.user_offset {
            heads.insert(("user", &event.user_id), offset);
        }
    }
    let heads: Vec<_> = heads.into_iter().collect();
    let upsert = "ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last";
    insert(connection, "heads (kind, id, last)", 3, upsert, &heads, |args, ((kind, id), last)| {
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
    let legs: Vec<(i64, i64, i64, i64, i64)> = events
        .iter()
        .flat_map(|event| {
            event.event_type.brokers().iter().map(|broker| {
                let skipped = event.skip.iter().any(|(skipped, _)| skipped == broker);
                let bucket = i64::from(bucket(&event.aggregate_id));
                (event.position, *broker as i64, i64::from(skipped) * 2, bucket, event.occurred_at.0)
            })
        })
        .collect();
    insert(connection, "legs (position, broker, state, bucket, at, attempts)", 6, "", &legs, |args, leg| {
        args.add(leg.0)?;
        args.add(leg.1)?;
        args.add(leg.2)?;
        args.add(leg.3)?;
        args.add(leg.4)?;
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
