//! Stores of earlier and later versions.

use std::path::Path;
use std::sync::Arc;

use event_gateway::domain::job::{Job, JobCommand};
use event_gateway::domain::payload::CancelledBy;
use event_gateway::domain::{Broker, Event};
use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use event_gateway::store::sqlite::{SqliteOptions, SqliteStore};
use event_gateway::store::{EventFilter, Migrations, Outcome, Page, Store, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row, SqliteConnection};

use crate::fixture::{command, factory, job, submit};
use crate::postgres::{LEASE, Schema};

const NEWEST: &str = "SELECT max(version) FROM _sqlx_migrations";
/// As the migration of a version to come leaves its mark.
const LATER: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9001, '{name}', true, '', 1)";

fn later(name: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(LATER.replace("{name}", name))
}

async fn on_postgres(schema: &Schema, migrations: Migrations) -> Result<PostgresStore, StoreError> {
    let options = PostgresOptions { migrations, ..PostgresOptions::default() };
    PostgresStore::open(schema.options(), factory(), options).await
}

async fn on_sqlite(file: &Path, migrations: Migrations) -> Result<SqliteStore, StoreError> {
    SqliteStore::open_with(file, factory(), SqliteOptions { migrations, ..SqliteOptions::default() }).await
}

async fn session(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).create_if_missing(true).connect().await.expect("a database")
}

fn refusal<S>(opened: Result<S, StoreError>) -> String {
    match opened {
        Err(StoreError::Unavailable(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it opens"),
    }
}

fn is_too_old(why: &str) {
    assert!(why.contains("is at version 1, this program needs 2") && why.contains("start a gateway"), "{why}");
}

fn is_too_new(why: &str) {
    assert!(why.contains("at version 9001 (needs 9001 another table)") && why.contains("newer version"), "{why}");
}

#[tokio::test]
async fn who_only_looks_leaves_an_older_postgres_schema_as_it_is() {
    let Some(schema) = Schema::create().await else { return };
    let why = refusal(on_postgres(&schema, Migrations::Leave).await);
    assert!(why.contains("no schema yet"), "{why}");

    let mut session = schema.session().await;
    sqlx::migrate!("migrations/postgres").run_to(1, &mut session).await.unwrap();
    is_too_old(&refusal(on_postgres(&schema, Migrations::Leave).await));
    assert_eq!(session.fetch_one(NEWEST).await.unwrap().get::<i64, _>(0), 1);
}

#[tokio::test]
async fn who_only_looks_leaves_an_older_file_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.db");
    assert!(on_sqlite(&file, Migrations::Leave).await.is_err() && !file.exists());

    let mut session = session(&file).await;
    sqlx::migrate!("migrations/sqlite").run_to(1, &mut session).await.unwrap();
    is_too_old(&refusal(on_sqlite(&file, Migrations::Leave).await));
    assert_eq!(session.fetch_one(NEWEST).await.unwrap().get::<i64, _>(0), 1);
}

#[tokio::test]
async fn a_postgres_schema_of_a_later_version_is_used_unless_that_forbids_it() {
    let Some(schema) = Schema::create().await else { return };
    on_postgres(&schema, Migrations::Apply).await.unwrap().close().await;
    schema.session().await.execute(later("one more table")).await.unwrap();
    for migrations in [Migrations::Apply, Migrations::Leave] {
        let store = on_postgres(&schema, migrations).await.expect("it only adds");
        store.enroll("one", LEASE).await.unwrap();
        works(&store).await;
        store.close().await;
    }

    schema
        .session()
        .await
        .execute("UPDATE _sqlx_migrations SET description = 'needs 9001 another table' WHERE version = 9001")
        .await
        .unwrap();
    for migrations in [Migrations::Apply, Migrations::Leave] {
        is_too_new(&refusal(on_postgres(&schema, migrations).await));
    }
}

#[tokio::test]
async fn a_file_of_a_later_version_is_used_unless_that_forbids_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.db");
    on_sqlite(&file, Migrations::Apply).await.unwrap().close().await;
    session(&file).await.execute(later("one more table")).await.unwrap();
    for migrations in [Migrations::Apply, Migrations::Leave] {
        let store = on_sqlite(&file, migrations).await.expect("it only adds");
        works(&store).await;
        store.close().await;
    }

    session(&file)
        .await
        .execute("UPDATE _sqlx_migrations SET description = 'needs 9001 another table' WHERE version = 9001")
        .await
        .unwrap();
    for migrations in [Migrations::Apply, Migrations::Leave] {
        is_too_new(&refusal(on_sqlite(&file, migrations).await));
    }
}

async fn works(store: &dyn Store) {
    let outcomes = store.commit(Arc::new(vec![submit(&job("ada"))])).await.unwrap();
    assert!(matches!(&outcomes[..], [Outcome::Committed { .. }]), "{outcomes:?}");
}

/// What a store has of a job and its events.
#[derive(Debug, PartialEq)]
struct History {
    job: String,
    /// (type, sequence, position, payload)
    events: Vec<(String, i64, i64, bytes::Bytes)>,
    /// Positions owed to Kafka.
    owed: Vec<i64>,
}

async fn history(store: &dyn Store, job: &Job) -> History {
    let listed = store.events(&EventFilter::default(), Page { before: None, limit: 100 }).await.unwrap();
    let read = |event: &Arc<Event>| {
        (event.event_type.name.to_string(), event.sequence, event.position, event.payload.json.clone())
    };
    let owed = store.open_legs(Broker::Kafka, None, 0, 100).await.unwrap();
    History {
        job: format!("{:?}", store.job(job.id).await.unwrap().expect("it is there")),
        events: listed.iter().map(read).collect(),
        owed: owed.iter().map(|(event, _)| event.position).collect(),
    }
}

/// A job with some history, and what is seen of it.
async fn played(store: &dyn Store) -> (Job, History) {
    let job = job("ada");
    store.commit(Arc::new(vec![submit(&job)])).await.unwrap();
    (job.clone(), history(store, &job).await)
}

/// It goes on where it was.
async fn goes_on(store: &dyn Store, job: &Job, before: &History) {
    let cancel = JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() };
    let outcomes = store.commit(Arc::new(vec![command(job.id, cancel)])).await.unwrap();
    let [Outcome::Committed { events, .. }] = &outcomes[..] else { panic!("{outcomes:?}") };
    let last = before.events.iter().filter(|(name, ..)| name.starts_with("job.")).map(|(_, sequence, ..)| *sequence);
    let next = events.iter().find(|event| &*event.event_type.aggregate == "job").expect("an event of the job");
    assert_eq!(next.sequence, last.max().expect("it has a history") + 1);
    assert!(before.events.iter().all(|(_, _, position, _)| *position < next.position));
}

/// Copies all rows, table by table, into a schema that has fewer columns.
async fn copy_tables(c: &mut PgConnection, from: &str, to: &str) {
    let sql = "SELECT table_name::text, string_agg(quote_ident(column_name), ', ') FROM information_schema.columns \
               JOIN information_schema.tables USING (table_schema, table_name) \
               WHERE table_schema = $1 AND table_type = 'BASE TABLE' AND table_name <> '_sqlx_migrations' GROUP BY 1";
    let tables: Vec<(String, String)> = sqlx::query_as(sql).bind(to).fetch_all(&mut *c).await.unwrap();
    assert!(tables.len() >= 12, "{tables:?}");
    for (table, columns) in tables {
        let copy = format!("INSERT INTO {to}.{table} ({columns}) SELECT {columns} FROM {from}.{table}");
        c.execute(AssertSqlSafe(copy)).await.unwrap();
    }
    let drawn = format!("SELECT setval('{to}.event_block', (SELECT last_value FROM {from}.event_block))");
    c.execute(AssertSqlSafe(drawn)).await.unwrap();
}

#[tokio::test]
async fn a_postgres_store_of_the_first_version_goes_on() {
    let (Some(present), Some(first)) = (Schema::create().await, Schema::create().await) else { return };
    let store = present.store().await;
    let (job, before) = played(&store).await;
    let mut session = first.session().await;
    sqlx::migrate!("migrations/postgres").run_to(1, &mut session).await.unwrap();
    copy_tables(&mut session, &present.name, &first.name).await;

    let migrated = first.store().await;
    assert_eq!(history(&migrated, &job).await, before, "what was owed is taken over with the rest");
    goes_on(&migrated, &job, &before).await;
}

#[tokio::test]
async fn a_file_of_the_first_version_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (present, first) = (dir.path().join("present.db"), dir.path().join("first.db"));
    let store = on_sqlite(&present, Migrations::Apply).await.unwrap();
    let (job, before) = played(&store).await;
    store.close().await;
    let mut session = session(&first).await;
    sqlx::migrate!("migrations/sqlite").run_to(1, &mut session).await.unwrap();
    session.execute(AssertSqlSafe(format!("ATTACH '{}' AS present", present.display()))).await.unwrap();
    let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\' \
               AND name NOT LIKE 'sqlite%'";
    let tables: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut session).await.unwrap();
    assert!(tables.len() >= 12, "{tables:?}");
    for (table,) in tables {
        let copy = format!("INSERT INTO main.{table} SELECT * FROM present.{table}");
        session.execute(AssertSqlSafe(copy)).await.unwrap();
    }

    let migrated = on_sqlite(&first, Migrations::Apply).await.unwrap();
    assert_eq!(history(&migrated, &job).await, before);
    goes_on(&migrated, &job, &before).await;
}
