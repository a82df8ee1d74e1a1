//! One transaction for many units: lock, load, plan, write, COMMIT, and what to make of it
//! when something of that fails.

use std::time::Duration;

use rand::Rng;
use sqlx::postgres::PgDatabaseError;
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::time::{Instant, timeout};

use super::batch::Batch;
use super::outbox::{Begun, Transaction};
use super::{audit, backlog, inbox, jobs, outbox};
use crate::domain::Timestamp;
use crate::domain::factory::EventFactory;
use crate::store::plan::{Found, Needs, Plan, plan};
use crate::store::{Outcome, StoreError, Unit};

/// Deadlocks and serialization failures are tried again this often.
const TRIES: u32 = 8;
/// All statements of a transaction; the server's own limits are shorter.
const STATEMENTS: Duration = Duration::from_secs(20);
const COMMIT: Duration = Duration::from_secs(10);
/// How long the outcome of a COMMIT is asked for.
const RESOLVE: Duration = Duration::from_secs(5);
const RESOLVE_EVERY: Duration = Duration::from_millis(50);

/// Why an attempt came to nothing.
enum Failed {
    /// The server has said so, and rolled back.
    Refused(StoreError),
    /// There was no answer to a statement: rolled back when the server notices.
    Silent,
    /// COMMIT was sent, its answer did not come.
    Unanswered(Unanswered),
}

struct Unanswered {
    transaction: Transaction,
    outcomes: Vec<Outcome>,
    why: String,
}

impl<E: Into<StoreError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// Commits the units. Conflicts are tried again, an unknown outcome is asked for.
pub(super) async fn commit(
    writers: &PgPool,
    factory: &EventFactory,
    owner: i32,
    units: &[Unit],
) -> Result<Vec<Outcome>, StoreError> {
    let mut tries = 0;
    loop {
        match attempt(writers, factory, owner, units).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(Failed::Refused(StoreError::Conflict(why))) if tries < TRIES => {
                tries += 1;
                tracing::debug!(why, tries, "commit conflicts with another; trying again");
                let pause = rand::rng().random_range(1..=10 << tries.min(5));
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Err(Failed::Refused(error)) => return Err(error),
            Err(Failed::Silent) => return Err(StoreError::Unavailable("the database does not answer".into())),
            Err(Failed::Unanswered(commit)) => return resolve(writers, commit).await,
        }
    }
}

async fn attempt(writers: &PgPool, factory: &EventFactory, owner: i32, units: &[Unit]) -> Result<Vec<Outcome>, Failed> {
    let mut connection = writers.acquire().await?;
    let result = transact(&mut connection, factory, owner, units).await;
    if matches!(result, Err(Failed::Silent | Failed::Unanswered(_))) {
        // In an unknown state: closed instead of used again.
        drop(connection.detach());
    }
    result
}

async fn transact(
    c: &mut PgConnection,
    factory: &EventFactory,
    owner: i32,
    units: &[Unit],
) -> Result<Vec<Outcome>, Failed> {
    // Dropped without COMMIT it rolls back.
    let mut transaction = timeout(COMMIT, c.begin()).await.map_err(|_| Failed::Silent)??;
    let written = timeout(STATEMENTS, write(&mut transaction, factory, owner, units)).await;
    let (plan, id) = written.map_err(|_| Failed::Silent)??;
    if plan.is_empty() {
        timeout(COMMIT, transaction.rollback()).await.map_err(|_| Failed::Silent)??;
        return Ok(plan.outcomes);
    }
    let why = match timeout(COMMIT, transaction.commit()).await {
        Ok(Ok(())) => return Ok(plan.outcomes),
        Ok(Err(error)) if is_answer(&error) => return Err(error.into()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", COMMIT.as_secs()),
    };
    Err(Failed::Unanswered(Unanswered { transaction: id, outcomes: plan.outcomes, why }))
}

/// Did the server itself say that it did not commit? Errors of the connection (class 08)
/// and a server that goes down (57P) say nothing about it.
fn is_answer(error: &sqlx::Error) -> bool {
    let database = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    database.is_some_and(|error| !error.code().starts_with("08") && !error.code().starts_with("57P"))
}

/// Everything but COMMIT.
async fn write(
    c: &mut PgConnection,
    factory: &EventFactory,
    owner: i32,
    units: &[Unit],
) -> Result<(Plan, Transaction), StoreError> {
    let now = Timestamp::now();
    let needs = Needs::of(units);
    // Locks, always in this order and each sorted: keys, inbox, backlog, heads, models.
    let (keys, answers) = inbox::claim_keys(c, units).await?;
    let (claimed, known) = inbox::claim_inbox(c, units).await?;
    let mut found = Found {
        idempotency: answers,
        inbox: known,
        blocked: backlog::lock_blocked(c, &needs.backlog_keys).await?,
        owner,
        ..Found::default()
    };
    let transaction = lock_jobs(c, units, &needs, &mut found).await?;
    let models = audit::lock_models(c, &needs.models, now).await?;
    found.models = models.found;

    let plan = plan(units, found, factory, now);
    if plan.events.len() as i64 >= outbox::BLOCK {
        return Err(StoreError::Data(format!("{} events in one commit; at most {}", plan.events.len(), outbox::BLOCK)));
    }
    if !plan.is_empty() {
        inbox::settle_keys(c, keys, &plan.idempotency).await?;
        let mut batch = Batch::default();
        inbox::settle_inbox(&mut batch, claimed, &plan.inbox);
        jobs::insert(&mut batch, &plan.new_jobs);
        jobs::update(&mut batch, plan.changed_jobs.values());
        outbox::write_heads(&mut batch, &plan.heads, owner);
        outbox::write_events(&mut batch, &plan.events);
        outbox::write_legs(&mut batch, &plan.legs, owner);
        outbox::mark_legs(&mut batch, &plan.marks);
        outbox::write_ends(&mut batch, &plan.ends);
        audit::write_models(&mut batch, &plan.models, &models.created, now);
        audit::write_audit(&mut batch, &plan.audit);
        backlog::block(&mut batch, &plan.blocked);
        batch.execute(c).await?;
        backlog::put(c, &plan.backlog).await?;
        backlog::release(c, &plan.released, now).await?;
    }
    Ok((plan, transaction))
}

/// Locks the heads, reads the jobs under that lock, and draws positions. A job's owner never
/// changes, so the first, unlocked read tells which heads there are.
async fn lock_jobs(
    c: &mut PgConnection,
    units: &[Unit],
    needs: &Needs<'_>,
    found: &mut Found,
) -> Result<Transaction, StoreError> {
    if !needs.jobs.is_empty() {
        found.jobs = jobs::load(c, &needs.jobs).await?.into_iter().map(|job| (job.id, job)).collect();
    }
    let emits = units.iter().any(|unit| !unit.events.is_empty() || !unit.jobs.is_empty());
    let Begun { transaction, heads, block } =
        outbox::begin(c, found.owner, &Needs::heads(units, &found.jobs), emits).await?;
    found.last_position = block.unwrap_or_default() * outbox::BLOCK;
    for (key, head) in heads {
        if head.last > 0 && head.owner != found.owner {
            found.of_others.insert(key.clone());
        }
        found.heads.insert(key, head.last);
    }
    if !found.jobs.is_empty() {
        let known: Vec<_> = found.jobs.keys().copied().collect();
        found.jobs = jobs::load(c, &known).await?.into_iter().map(|job| (job.id, job)).collect();
    }
    Ok(transaction)
}

/// Asks the server what became of a transaction, on another connection.
async fn resolve(writers: &PgPool, commit: Unanswered) -> Result<Vec<Outcome>, StoreError> {
    let Unanswered { transaction, outcomes, why } = commit;
    tracing::warn!(why, xid = transaction.xid, "the answer to a COMMIT was lost; asking what became of it");
    let deadline = Instant::now() + RESOLVE;
    while Instant::now() < deadline {
        match timeout(Duration::from_secs(1), status(writers, &transaction)).await {
            Ok(Ok(Some(status))) => match status.as_str() {
                "committed" => return Ok(outcomes),
                "aborted" => return Err(StoreError::Unavailable(format!("the commit was rolled back: {why}"))),
                // In progress: the server had not noticed, and has been told now.
                _ => {}
            },
            // Too long ago to be known.
            Ok(Ok(None)) => break,
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(RESOLVE_EVERY).await;
    }
    Err(StoreError::OutcomeUnknown(why))
}

/// `in progress` ends the session, so that nothing is committed after the answer is given.
async fn status(writers: &PgPool, transaction: &Transaction) -> Result<Option<String>, sqlx::Error> {
    let mut connection = writers.acquire().await?;
    let row = sqlx::query("SELECT pg_xact_status($1::text::xid8) AS status")
        .bind(&transaction.xid)
        .fetch_one(&mut *connection)
        .await?;
    let status: Option<String> = row.try_get("status")?;
    if status.as_deref() == Some("in progress") {
        // Of that transaction alone: the process may have another by now.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid = $1 AND backend_xid::text = ($2::text::numeric % 4294967296)::text",
        )
        .bind(transaction.pid)
        .bind(&transaction.xid)
        .execute(&mut *connection)
        .await?;
    }
    Ok(status)
}
