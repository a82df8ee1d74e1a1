//! The production store: PostgreSQL 14 or newer, shared by any number of instances.
//!
//! READ COMMITTED with row locks: heads are the jobs' locks, claims are inserted first
//! (see [`commit`]). Every statement is static and takes lists as arrays.

mod arrivals;
mod audit;
mod backlog;
mod batch;
mod commit;
mod history;
mod inbox;
mod jobs;
mod outbox;
mod owners;
mod prune;
mod reopen;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};
use tokio::time::timeout;

use super::{
    Arrival, ArrivalQuery, BacklogRow, BrokerEnd, ChannelState, Deliveries, Duty, Enrolment, EventFilter, Handled,
    JobFilter, JobSummary, LegRow, LegState, Migrations, Outcome, Page, PruneStep, Pruned, Renewal, ReplayLimit,
    SamplePoint, Store, StoreError, StoreFigures, Unit, Workload, schema,
};
use crate::domain::factory::EventFactory;
use crate::domain::job::{Job, RunnerKind};
use crate::domain::{Broker, Channel, Event, Id, Timestamp};
use history::EventReader;
use outbox::OpenLegs;
use owners::Enrolled;

/// How the store uses its connections.
#[derive(Clone, Copy, Debug)]
pub struct PostgresOptions {
    /// Connections that only read.
    pub readers: u32,
    /// Connections that write. Commits come two at a time; maintenance takes another.
    pub writers: u32,
    /// A read that takes longer is given up.
    pub read_timeout: Duration,
    pub migrations: Migrations,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { readers: 4, writers: 4, read_timeout: Duration::from_secs(1), migrations: Migrations::default() }
    }
}

/// The store on PostgreSQL.
#[derive(Debug)]
pub struct PostgresStore {
    readers: PgPool,
    writers: PgPool,
    events: EventReader,
    factory: Arc<EventFactory>,
    read_timeout: Duration,
    /// `None` before [`Store::enroll`].
    enrolled: RwLock<Option<Enrolled>>,
}

const CONNECT: Duration = Duration::from_secs(5);
/// The client's own limit of a read comes after the server's.
const GRACE: Duration = Duration::from_secs(1);
/// Maintenance statements.
const MAINTENANCE: Duration = Duration::from_secs(30);

/// Every session. Each statement goes by key: plans that were made while the tables were
/// empty must not read them whole when they are full.
const SESSION: [(&str, &str); 9] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_material", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("synchronous_commit", "on"),
    ("timezone", "UTC"),
];

impl PostgresStore {
    /// Connects and brings the schema up to date, if it may; instances that start together
    /// take turns.
    ///
    /// # Errors
    /// The server cannot be reached, refuses the user, or this program cannot work on its
    /// schema.
    pub async fn open(
        server: PgConnectOptions,
        factory: Arc<EventFactory>,
        options: PostgresOptions,
    ) -> Result<Self, StoreError> {
        let server = server
            .application_name("event-gateway")
            .statement_cache_capacity(512)
            .options(SESSION)
            .disable_statement_logging();
        prepare(&server, options.migrations).await?;
        let read_ms = options.read_timeout.as_millis().to_string();
        let reading = server.clone().options([
            ("default_transaction_read_only", "on"),
            ("statement_timeout", &*read_ms),
            // Optional filters in one statement: only real values give a good plan.
            ("plan_cache_mode", "force_custom_plan"),
        ]);
        let writing = server.options([
            ("statement_timeout", "10s"),
            // Longer than a frozen instance may hold a lock: who waits for it goes through.
            ("lock_timeout", "8s"),
            // The same few statements again and again: planning them took as long as running them.
            ("plan_cache_mode", "force_generic_plan"),
            // A frozen instance must not hold locks: the others wait for them.
            ("idle_in_transaction_session_timeout", "5s"),
        ]);
        let pool = |size| PgPoolOptions::new().max_connections(size).acquire_timeout(CONNECT);
        Ok(Self {
            readers: pool(options.readers).connect_lazy_with(reading),
            writers: pool(options.writers).connect_lazy_with(writing),
            events: EventReader { catalogue: factory.catalogue().clone() },
            factory,
            read_timeout: options.read_timeout,
            enrolled: RwLock::new(None),
        })
    }

    fn enrolled(&self) -> Result<Enrolled, StoreError> {
        let enrolled = self.enrolled.read().clone();
        enrolled.ok_or_else(|| StoreError::LeaseLost("this instance has not enrolled".into()))
    }

    fn owner(&self) -> Result<i32, StoreError> {
        let enrolled = self.enrolled()?;
        if enrolled.in_doubt {
            return Err(StoreError::LeaseLost("the outcome of a COMMIT is not known; enrolling again".into()));
        }
        Ok(enrolled.enrolment.owner)
    }

    /// Nothing more is committed under this owner: should that COMMIT have come about, its events are
    /// in the store and in no lane, and what follows them must be another owner's to wait for them.
    fn doubt(&self, owner: i32) {
        if let Some(enrolled) = self.enrolled.write().as_mut().filter(|now| now.enrolment.owner == owner) {
            enrolled.in_doubt = true;
        }
    }

    /// Runs a read on a pooled connection within the read timeout.
    async fn read<T, F>(&self, body: F) -> Result<T, StoreError>
    where
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    {
        let mut connection = self.readers.acquire().await?;
        match timeout(self.read_timeout + GRACE, body(&mut connection)).await {
            Ok(result) => result,
            Err(elapsed) => {
                drop(connection.detach());
                away(elapsed)
            }
        }
    }

    /// Runs a small write of its own (maintenance) in a transaction.
    async fn write<T, F>(&self, body: F) -> Result<T, StoreError>
    where
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    {
        let mut connection = self.writers.acquire().await?;
        let work = async {
            let mut transaction = connection.begin().await?;
            let result = body(&mut transaction).await?;
            transaction.commit().await?;
            Ok(result)
        };
        match timeout(MAINTENANCE, work).await {
            Ok(result) => result,
            Err(elapsed) => {
                drop(connection.detach());
                away(elapsed)
            }
        }
    }
}

/// Looks at the server and its schema, which is brought up to date if it may be.
async fn prepare(server: &PgConnectOptions, migrations: Migrations) -> Result<(), StoreError> {
    let connect = timeout(CONNECT, PgConnection::connect_with(server)).await;
    let mut connection =
        connect.map_err(|_| StoreError::Unavailable(format!("no answer from {}", place(server))))??;
    let version: i32 = sqlx::query("SELECT current_setting('server_version_num')::integer AS version")
        .fetch_one(&mut connection)
        .await?
        .try_get("version")?;
    if version < 140_000 {
        return Err(StoreError::Unavailable(format!("PostgreSQL 14 or newer is needed; {} is older", place(server))));
    }
    let ours = schema::lenient(sqlx::migrate!("migrations/postgres"));
    if migrations == Migrations::Apply {
        ours.run(&mut connection).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            other => StoreError::Corrupt(format!("schema of {}: {other}", place(server))),
        })?;
    }
    schema::check(&ours, &applied(&mut connection).await?, &place(server))?;
    connection.close().await?;
    Ok(())
}

async fn applied(c: &mut PgConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let there = sqlx::query("SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS there").fetch_one(&mut *c).await?;
    if !there.try_get::<bool, _>("there")? {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as(schema::APPLIED).fetch_all(c).await?)
}

fn away<T>(_: tokio::time::error::Elapsed) -> Result<T, StoreError> {
    Err(StoreError::Unavailable("the database does not answer".into()))
}

/// The server without credentials.
fn place(server: &PgConnectOptions) -> String {
    format!("{}:{}/{}", server.get_host(), server.get_port(), server.get_database().unwrap_or_default())
}

/// PostgreSQL keeps no NUL: nothing that is stored can match.
fn has_nul<'t>(texts: impl IntoIterator<Item = Option<&'t str>>) -> bool {
    texts.into_iter().flatten().any(|text| text.contains('\0'))
}

fn job_filter_has_nul(filter: &JobFilter) -> bool {
    has_nul([filter.user.as_deref(), filter.agent.as_deref(), filter.text.as_deref()])
}

fn event_filter_has_nul(filter: &EventFilter) -> bool {
    has_nul([
        filter.event_type.as_deref(),
        filter.aggregate_type.as_deref(),
        filter.aggregate_id.as_deref(),
        filter.user.as_deref(),
    ])
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, units: Arc<Vec<Unit>>) -> Result<Vec<Outcome>, StoreError> {
        let owner = self.owner()?;
        let result = commit::commit(&self.writers, &self.factory, owner, &units).await;
        if matches!(result, Err(StoreError::OutcomeUnknown(_))) {
            self.doubt(owner);
        }
        result
    }

    fn commits_in_parallel(&self) -> bool {
        true
    }

    async fn enroll(&self, instance: &str, lease: Duration) -> Result<Enrolment, StoreError> {
        let enrolled = self.write(async |c| owners::enroll(c, instance, lease).await).await?;
        let enrolment = enrolled.enrolment;
        *self.enrolled.write() = Some(enrolled);
        Ok(enrolment)
    }

    async fn renew(&self, lease: Duration) -> Result<Renewal, StoreError> {
        let enrolled = self.enrolled()?;
        if enrolled.in_doubt {
            return Ok(Renewal::Lost);
        }
        let (renewal, owners) = self.write(async |c| owners::renew(c, &enrolled, lease).await).await?;
        if let Some(now) = self.enrolled.write().as_mut().filter(|now| now.enrolment == enrolled.enrolment) {
            now.owners = owners;
        }
        Ok(renewal)
    }

    async fn take_duty(&self, duty: Duty) -> Result<bool, StoreError> {
        let owner = self.owner()?;
        self.write(async |c| owners::take_duty(c, owner, duty).await).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(async |c| {
            c.execute("SELECT 1").await?;
            Ok(())
        })
        .await
    }

    async fn job(&self, id: Id) -> Result<Option<Job>, StoreError> {
        self.read(async |c| Ok(jobs::load(c, [&id]).await?.pop())).await
    }

    async fn jobs(&self, filter: &JobFilter, page: Page<Id>) -> Result<Vec<Job>, StoreError> {
        if job_filter_has_nul(filter) {
            return Ok(Vec::new());
        }
        self.read(async |c| jobs::list(c, filter, page).await).await
    }

    async fn job_summary(&self, filter: &JobFilter) -> Result<JobSummary, StoreError> {
        if job_filter_has_nul(filter) {
            return Ok(JobSummary::default());
        }
        self.read(async |c| jobs::summary(c, filter).await).await
    }

    async fn claimable(&self, runner: RunnerKind, agents: &[Arc<str>], limit: u32) -> Result<Vec<Id>, StoreError> {
        if has_nul(agents.iter().map(|agent| Some(&**agent))) {
            return Ok(Vec::new());
        }
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
        if has_nul([Some(aggregate), Some(id)]) {
            return Ok(Vec::new());
        }
        self.read(async |c| self.events.by_aggregate(c, aggregate, id, after, limit).await).await
    }

    async fn events(&self, filter: &EventFilter, page: Page<i64>) -> Result<Vec<Arc<Event>>, StoreError> {
        if event_filter_has_nul(filter) {
            return Ok(Vec::new());
        }
        self.read(async |c| self.events.list(c, filter, page).await).await
    }

    async fn deliveries(&self, page: Page<i64>) -> Result<Vec<Deliveries>, StoreError> {
        self.read(async |c| {
            let events = self.events.list(c, &EventFilter::default(), page).await?;
            self.events.deliveries(c, events).await
        })
        .await
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
            let mut snapshot = c.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
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
        let mine = self.enrolled.read().as_ref().map(|enrolled| enrolled.owners.clone());
        self.read(async |c| {
            let owners = match &mine {
                Some(owners) => owners.clone(),
                None => owners::all(c).await?,
            };
            let wanted = OpenLegs { owners, broker, lane, after, limit };
            outbox::open_legs(c, &self.events, &wanted).await
        })
        .await
    }

    async fn open_before(&self, broker: Broker, events: &[Arc<Event>]) -> Result<Vec<Option<LegState>>, StoreError> {
        self.read(async |c| outbox::open_before(c, &self.events, broker, events).await).await
    }

    async fn broker_ends(&self) -> Result<Vec<BrokerEnd>, StoreError> {
        self.read(async |c| outbox::ends(c).await).await
    }

    async fn reopen_legs(&self, lost: &[BrokerEnd]) -> Result<u64, StoreError> {
        let owner = self.owner()?;
        self.write(async |c| outbox::reopen(c, owner, lost, &self.events).await).await
    }

    async fn publish_again(&self, broker: Broker, positions: &[i64]) -> Result<u64, StoreError> {
        self.write(async |c| reopen::publish_again(c, broker, positions).await).await
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
        if let Ok(owner) = self.owner()
            && let Err(error) =
                timeout(GRACE, self.write(async |c| owners::resign(c, owner).await)).await.unwrap_or_else(away)
        {
            tracing::warn!(%error, "the lease is not given up; others take over when it has ended");
        }
        self.readers.close().await;
        self.writers.close().await;
    }
}
