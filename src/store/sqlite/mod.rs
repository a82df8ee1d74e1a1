//! The embedded store: one SQLite file, WAL, synchronous=FULL.
//!
//! One writer connection (whoever commits holds it), one that checkpoints, a few that read. A
//! second process is kept out by a lock file in the data directory (see `app`).

mod arrivals;
mod audit;
mod backlog;
mod checkpoint;
mod history;
mod inbox;
mod jobs;
mod outbox;
mod prune;
mod rows;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plan::{Found, Needs, Plan, plan};
use super::{
    Arrival, ArrivalQuery, BacklogRow, BrokerEnd, ChannelState, Deliveries, Duty, Enrolment, EventFilter, Handled,
    JobFilter, JobSummary, LegRow, LegState, Migrations, Outcome, Page, PruneStep, Pruned, Renewal, ReplayLimit,
    SamplePoint, Store, StoreError, StoreFigures, Unit, Workload, schema,
};
use crate::domain::factory::EventFactory;
use crate::domain::job::{Job, RunnerKind};
use crate::domain::{Broker, Channel, Event, Id, Timestamp};
use checkpoint::Checkpointer;
use history::EventReader;

/// How the store is opened and read.
#[derive(Clone, Copy, Debug)]
pub struct SqliteOptions {
    /// How many reads run at once.
    pub readers: u32,
    /// A read that takes longer is given up, so that checkpoints can go on.
    pub read_timeout: Duration,
    pub migrations: Migrations,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { readers: 4, read_timeout: Duration::from_secs(1), migrations: Migrations::default() }
    }
}

/// The embedded store.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Arc<Mutex<Option<Writer>>>,
    readers: SqlitePool,
    events: EventReader,
    factory: Arc<EventFactory>,
    read_timeout: Duration,
    /// Wakes the checkpointer.
    committed: Arc<Notify>,
    checkpointer: parking_lot::Mutex<Option<(DropGuard, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Writer {
    connection: SqliteConnection,
    /// Position of the last committed event.
    last_position: i64,
}

impl SqliteStore {
    /// [`SqliteStore::open_with`] the defaults.
    pub async fn open(path: &Path, factory: Arc<EventFactory>) -> Result<Self, StoreError> {
        Self::open_with(path, factory, SqliteOptions::default()).await
    }

    /// Opens or creates the file and brings its schema up to date, if it may.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or this program cannot work on its schema.
    pub async fn open_with(
        path: &Path,
        factory: Arc<EventFactory>,
        settings: SqliteOptions,
    ) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(settings.migrations == Migrations::Apply)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(512)
            .pragma("cache_size", "-65536")
            .pragma("temp_store", "memory")
            // Only should the checkpointer fail.
            .pragma("wal_autocheckpoint", "32000")
            .pragma("journal_size_limit", "67108864")
            .disable_statement_logging();
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let ours = schema::lenient(sqlx::migrate!("migrations/sqlite"));
        if settings.migrations == Migrations::Apply {
            let done = ours.run(&mut connection).await;
            done.map_err(|error| StoreError::Corrupt(format!("schema of {}: {error}", path.display())))?;
        }
        schema::check(&ours, &applied(&mut connection).await?, &path.display().to_string())?;
        let last_position: i64 = sqlx::query("SELECT coalesce(max(position), 0) AS last FROM events")
            .fetch_one(&mut connection)
            .await?
            .try_get("last")?;
        let readers = SqlitePoolOptions::new()
            .max_connections(settings.readers)
            .acquire_timeout(Duration::from_secs(5))
            // Every commit empties a reader's cache: the pages are in the system's.
            .connect_lazy_with(
                options.clone().create_if_missing(false).pragma("query_only", "1").pragma("cache_size", "-4096"),
            );
        let writer = Arc::new(Mutex::new(Some(Writer { connection, last_position })));
        let committed = Arc::new(Notify::new());
        let checkpointer = Checkpointer {
            connection: SqliteConnection::connect_with(&options).await?,
            writer: writer.clone(),
            committed: committed.clone(),
            worth: checkpoint::WORTH,
            long: checkpoint::LONG,
        };
        let stop = CancellationToken::new();
        // Owner: this store, which stops and joins it in `close`.
        let task = crate::task::spawn("checkpoints", checkpointer.run(stop.clone()));
        Ok(Self {
            writer,
            committed,
            checkpointer: parking_lot::Mutex::new(Some((stop.drop_guard(), task))),
            readers,
            events: EventReader { catalogue: factory.catalogue().clone() },
            factory,
            read_timeout: settings.read_timeout,
        })
    }

    /// Runs a read on a pooled connection within the read timeout.
    async fn read<T, F>(&self, body: F) -> Result<T, StoreError>
    where
        F: AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    {
        let mut connection = self.readers.acquire().await?;
        match tokio::time::timeout(self.read_timeout, body(&mut connection)).await {
            Ok(result) => result,
            Err(_) => {
                // The statement still runs on its thread: do not give the connection back.
                drop(connection.detach());
                Err(StoreError::Unavailable(format!(
                    "the read took longer than {} ms; narrow the filter",
                    self.read_timeout.as_millis()
                )))
            }
        }
    }

    /// Runs a small write of its own (maintenance) under the writer's lock.
    async fn write<T, F>(&self, body: F) -> Result<T, StoreError>
    where
        F: AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    {
        let mut guard = self.writer.lock().await;
        let writer = guard.as_mut().ok_or_else(closed)?;
        let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
        let result = body(&mut transaction).await?;
        transaction.commit().await?;
        Ok(result)
    }
}

impl Writer {
    async fn commit(&mut self, units: &[Unit], factory: &EventFactory) -> Result<Vec<Outcome>, StoreError> {
        let now = Timestamp::now();
        // Dropped without COMMIT it rolls back.
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let found = load(&mut transaction, units, self.last_position).await?;
        let plan = plan(units, found, factory, now);
        if plan.is_empty() {
            transaction.rollback().await?;
        } else {
            write(&mut transaction, &plan, now).await?;
            transaction.commit().await?;
            if let Some(last) = plan.events.last() {
                self.last_position = last.position;
            }
        }
        Ok(plan.outcomes)
    }
}

async fn applied(c: &mut SqliteConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let there =
        sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'").fetch_optional(&mut *c).await?;
    if there.is_none() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as(schema::APPLIED).fetch_all(c).await?)
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

async fn load(connection: &mut SqliteConnection, units: &[Unit], last_position: i64) -> Result<Found, StoreError> {
    let needs = Needs::of(units);
    let mut found = Found {
        idempotency: inbox::load_keys(connection, &needs.idempotency).await?,
        inbox: inbox::load_inbox(connection, &needs.inbox).await?,
        blocked: backlog::load_blocked(connection, &needs.backlog_keys).await?,
        models: audit::load_models(connection, &needs.models).await?,
        last_position,
        ..Found::default()
    };
    if !needs.jobs.is_empty() {
        found.jobs = jobs::load(connection, &needs.jobs).await?.into_iter().map(|job| (job.id, job)).collect();
    }
    let heads = Needs::heads(units, &found.jobs);
    if !heads.is_empty() {
        found.heads = outbox::load_heads(connection, &heads).await?;
    }
    Ok(found)
}

async fn write(connection: &mut SqliteConnection, plan: &Plan, now: Timestamp) -> Result<(), sqlx::Error> {
    inbox::write_keys(connection, &plan.idempotency).await?;
    inbox::write_inbox(connection, &plan.inbox).await?;
    jobs::insert(connection, &plan.new_jobs).await?;
    if !plan.changed_jobs.is_empty() {
        let changed: Vec<Job> = plan.changed_jobs.values().cloned().collect();
        jobs::update(connection, &changed).await?;
    }
    outbox::write_heads(connection, &plan.heads).await?;
    outbox::write_events(connection, &plan.events).await?;
    outbox::write_legs(connection, &plan.legs).await?;
    outbox::mark_legs(connection, &plan.marks).await?;
    outbox::write_ends(connection, &plan.ends).await?;
    audit::write_models(connection, &plan.models, now).await?;
    audit::write_audit(connection, &plan.audit).await?;
    backlog::put(connection, &plan.backlog).await?;
    backlog::block(connection, &plan.blocked).await?;
    backlog::release(connection, &plan.released, now).await
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, units: Arc<Vec<Unit>>) -> Result<Vec<Outcome>, StoreError> {
        let mut guard = self.writer.clone().lock_owned().await;
        let factory = self.factory.clone();
        // A COMMIT waits for the connection's thread some twenty times. On a busy runtime each
        // of these wake-ups queues behind the requests, on a thread of its own behind nothing.
        let runtime = Handle::current();
        let committing = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                let writer = guard.as_mut().ok_or_else(closed)?;
                writer.commit(&units, &factory).await
            })
        });
        let committed = committing.await;
        self.committed.notify_one();
        match committed {
            Ok(outcomes) => outcomes,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(closed()),
            },
        }
    }

    /// One process at a time, kept so by a lock file: its lease never ends.
    async fn enroll(&self, instance: &str, _lease: Duration) -> Result<Enrolment, StoreError> {
        self.write(async |c| {
            let row = sqlx::query(
                "INSERT INTO instance (id, epoch) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1 \
                 RETURNING epoch",
            )
            .bind(instance.to_owned())
            .fetch_one(c)
            .await?;
            Ok(Enrolment { epoch: row.try_get("epoch")?, owner: 0 })
        })
        .await
    }

    async fn renew(&self, _lease: Duration) -> Result<Renewal, StoreError> {
        Ok(Renewal::Held { adopted: 0 })
    }

    async fn take_duty(&self, _duty: Duty) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(async |c| {
            sqlx::query("SELECT 1").execute(c).await?;
            Ok(())
        })
        .await
    }

    async fn job(&self, id: Id) -> Result<Option<Job>, StoreError> {
        self.read(async |c| Ok(jobs::load(c, [&id]).await?.pop())).await
    }

    async fn jobs(&self, filter: &JobFilter, page: Page<Id>) -> Result<Vec<Job>, StoreError> {
        self.read(async |c| jobs::list(c, filter, page).await).await
    }

    async fn job_summary(&self, filter: &JobFilter) -> Result<JobSummary, StoreError> {
        self.read(async |c| jobs::summary(c, filter).await).await
    }

    async fn claimable(&self, runner: RunnerKind, agents: &[Arc<str>], limit: u32) -> Result<Vec<Id>, StoreError> {
        self.read(async |c| jobs::claimable(c, runner, agents, Timestamp::now(), limit).await).await
    }

    async fn lapsed_leases(&self, now: Timestamp, limit: u32) -> Result<Vec<(Id, u32)>, StoreError> {
        self.read(async |c| jobs::lapsed(c, now, limit).await).await
    }

    async fn due_retries(&self, now: Timestamp, limit: u32) -> Result<(Vec<(Id, u32)>, Option<Timestamp>), StoreError> {
        self.read(async |c| jobs::due_retries(c, now, limit).await).await
    }

    async fn events_by_id(&self, ids: &[Id]) -> Result<Vec<Arc<Event>>, StoreError> {
        self.read(async |c| self.events.by_id(c, ids).await).await
    }

    async fn aggregate_events(
        &self,
        aggregate: &str,
        id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        self.read(async |c| self.events.by_aggregate(c, aggregate, id, after, limit).await).await
    }

    async fn events(&self, filter: &EventFilter, page: Page<i64>) -> Result<Vec<Arc<Event>>, StoreError> {
        self.read(async |c| self.events.list(c, filter, page).await).await
    }

    async fn job_deliveries(&self, job: Id, after: Option<i64>, limit: u32) -> Result<Vec<Deliveries>, StoreError> {
        self.read(async |c| {
            let events = self.events.of_job(c, job, after, limit).await?;
            self.events.deliveries(c, events).await
        })
        .await
    }

    async fn event_deliveries(&self, id: Id) -> Result<Option<Deliveries>, StoreError> {
        self.read(async |c| {
            let events = self.events.by_id(c, &[id]).await?;
            Ok(self.events.deliveries(c, events).await?.pop())
        })
        .await
    }

    async fn deliveries(&self, page: Page<i64>) -> Result<Vec<Deliveries>, StoreError> {
        self.read(async |c| {
            let events = self.events.list(c, &EventFilter::default(), page).await?;
            self.events.deliveries(c, events).await
        })
        .await
    }

    async fn samples(&self, job: Id, limit: u32) -> Result<Vec<SamplePoint>, StoreError> {
        let samples = self.samples_of(&[job], limit).await?;
        Ok(samples.into_iter().map(|(_, point)| point).collect())
    }

    async fn jobs_by_id(&self, ids: &[Id]) -> Result<Vec<Job>, StoreError> {
        self.read(async |c| jobs::load(c, ids).await).await
    }

    async fn samples_of(&self, jobs: &[Id], limit: u32) -> Result<Vec<(Id, SamplePoint)>, StoreError> {
        self.read(async |c| self.events.samples_of(c, jobs, limit).await).await
    }

    async fn channels(
        &self,
        wanted: &[(Channel, Option<i64>)],
        limit: ReplayLimit,
    ) -> Result<Vec<ChannelState>, StoreError> {
        self.read(async |c| {
            let mut snapshot = c.begin().await?;
            let states = self.events.channels(&mut snapshot, wanted, limit).await?;
            snapshot.rollback().await?;
            Ok(states)
        })
        .await
    }

    async fn channel_heads(&self, channels: &[Channel]) -> Result<Vec<i64>, StoreError> {
        self.read(async |c| history::heads(c, channels).await).await
    }

    async fn channel_ranges(&self, ranges: &[(Channel, i64, i64)]) -> Result<Vec<(Channel, Arc<Event>)>, StoreError> {
        self.read(async |c| self.events.ranges(c, ranges).await).await
    }

    async fn open_legs(
        &self,
        broker: Broker,
        lane: Option<(u8, u8)>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(Arc<Event>, LegRow)>, StoreError> {
        self.read(async |c| outbox::open_legs(c, &self.events, broker, lane, after, limit).await).await
    }

    /// All legs are in the lanes of this process, which know what is before.
    async fn open_before(&self, _broker: Broker, events: &[Arc<Event>]) -> Result<Vec<Option<LegState>>, StoreError> {
        Ok(vec![None; events.len()])
    }

    async fn broker_ends(&self) -> Result<Vec<BrokerEnd>, StoreError> {
        self.read(async |c| outbox::ends(c).await).await
    }

    async fn reopen_legs(&self, lost: &[BrokerEnd]) -> Result<u64, StoreError> {
        self.write(async |c| outbox::reopen(c, lost, &self.events).await).await
    }

    async fn publish_again(&self, broker: Broker, positions: &[i64]) -> Result<u64, StoreError> {
        self.write(async |c| outbox::publish_again(c, broker, positions, Timestamp::now()).await).await
    }

    async fn backlog_due(
        &self,
        consumer: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<BacklogRow>, Option<Timestamp>), StoreError> {
        self.read(async |c| backlog::due(c, consumer, now, limit).await).await
    }

    async fn wake_headless(&self, consumer: &str, now: Timestamp) -> Result<u64, StoreError> {
        self.write(async |c| backlog::wake_headless(c, consumer, now).await).await
    }

    async fn arrivals(&self, query: ArrivalQuery<'_>) -> Result<Vec<Arrival>, StoreError> {
        self.read(async |c| arrivals::find(c, query).await).await
    }

    async fn last_handled(&self, consumer: &str, broker: Broker, before: Id) -> Result<Vec<Handled>, StoreError> {
        self.read(async |c| arrivals::last_handled(c, consumer, broker, before).await).await
    }

    async fn read_model(&self, model: &str, key: &str) -> Result<Option<serde_json::Value>, StoreError> {
        self.read(async |c| audit::read_model(c, model, key).await).await
    }

    async fn read_model_sum(&self, model: &str, field: &str, from: &str) -> Result<f64, StoreError> {
        self.read(async |c| audit::read_model_sum(c, model, field, from).await).await
    }

    async fn workload(&self) -> Result<Workload, StoreError> {
        self.read(async |c| jobs::workload(c).await).await
    }

    async fn figures(&self) -> Result<StoreFigures, StoreError> {
        self.read(async |c| {
            Ok(StoreFigures { open_legs: outbox::open_figures(c).await?, backlog: backlog::figures(c).await? })
        })
        .await
    }

    async fn prune(&self, step: &PruneStep) -> Result<Pruned, StoreError> {
        if step.dry_run {
            return self.read(async |c| prune::step(c, step).await).await;
        }
        self.write(async |c| prune::step(c, step).await).await
    }

    async fn close(&self) {
        let checkpointer = self.checkpointer.lock().take();
        if let Some((stop, task)) = checkpointer {
            drop(stop);
            if let Err(error) = task.await {
                tracing::error!(%error, "the store's checkpointer did not end well");
            }
        }
        self.readers.close().await;
        if let Some(mut writer) = self.writer.lock().await.take() {
            // Leaves a small WAL behind for a quick next start.
            if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut writer.connection).await {
                tracing::warn!(%error, "checkpoint at close failed; the WAL is read at the next start");
            }
            if let Err(error) = writer.connection.close().await {
                tracing::warn!(%error, "the store did not close cleanly");
            }
        }
    }
}

fn read_id(row: &SqliteRow, column: &str) -> Result<Id, StoreError> {
    id_from(&row.try_get::<Vec<u8>, _>(column)?)
}

fn id_from(bytes: &[u8]) -> Result<Id, StoreError> {
    uuid::Uuid::from_slice(bytes).map(Id).map_err(|_| StoreError::Corrupt("an id is not 16 bytes".into()))
}
