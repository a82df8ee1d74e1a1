//! The time that the server gives a session of the store, and what one that exceeds it holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_gateway::domain::job::JobCommand;
use event_gateway::domain::payload::CancelledBy;
use event_gateway::store::{JobFilter, Outcome, Page, Store, StoreError};
use event_gateway::task;
use sqlx::{Connection, Executor, Row};

use super::proxy::{Cut, Proxy};
use super::{LEASE, Schema, enrolled};
use crate::fixture::{command, job, submit};

#[tokio::test]
async fn a_frozen_instance_loses_its_locks() {
    let Some(schema) = Schema::create().await else { return };
    let server = schema.options();
    let proxy = Proxy::start((server.get_host().to_owned(), server.get_port())).await;
    let through = server.host(&proxy.address.ip().to_string()).port(proxy.address.port());
    let (frozen, other) = (Arc::new(enrolled(through, "frozen", LEASE).await), schema.store().await);
    let job = job("ada");
    frozen.commit(Arc::new(vec![submit(&job)])).await.unwrap();
    let cancel = || JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() };

    // It stops before COMMIT, with the job's lock.
    proxy.cut_next_commit(Cut::Freeze);
    let (store, unit) = (frozen.clone(), command(job.id, cancel()));
    let committing = task::spawn("frozen", async move { store.commit(Arc::new(vec![unit])).await });
    proxy.frozen().await;
    let started = Instant::now();
    let outcomes = other.commit(Arc::new(vec![command(job.id, cancel())])).await.expect("the lock is taken from it");
    assert!(matches!(&outcomes[..], [Outcome::Committed { .. }]), "{outcomes:?}");
    assert!(started.elapsed() > Duration::from_secs(1), "it was in the way");
    committing.abort();
}

#[tokio::test]
async fn a_read_that_waits_is_ended_by_the_server() {
    let Some(schema) = Schema::create().await else { return };
    let store = schema.store().await;
    let mut session = schema.session().await;
    let mut blocking = session.begin().await.unwrap();
    blocking.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    match store.jobs(&JobFilter::default(), Page { before: None, limit: 1 }).await {
        Err(StoreError::Unavailable(why)) => assert!(why.contains("statement timeout"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn writing_sessions_have_their_limits() {
    let Some(schema) = Schema::create().await else { return };
    let store = schema.store().await;
    // Of the sessions that write, as one of them sees it.
    let note = "CREATE TABLE noted (name text, value text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO noted SELECT name, setting FROM pg_settings WHERE name LIKE '%\\_timeout'; RETURN NEW; END $$; \
         CREATE TRIGGER note BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION note()";
    let mut session = schema.session().await;
    session.execute(note).await.unwrap();
    store.commit(Arc::new(vec![submit(&job("ada"))])).await.unwrap();
    let mut limit = async |name: &'static str| {
        let noted = sqlx::query("SELECT value::bigint FROM noted WHERE name = $1").bind(name);
        Duration::from_millis(noted.fetch_one(&mut session).await.unwrap().get::<i64, _>(0).cast_unsigned())
    };
    let (idle, lock) = (limit("idle_in_transaction_session_timeout").await, limit("lock_timeout").await);
    let statement = limit("statement_timeout").await;
    assert!(!idle.is_zero() && idle < lock, "who waits for a frozen one outlasts it: {idle:?} {lock:?}");
    assert!(lock < statement && statement <= Duration::from_secs(10), "{lock:?} {statement:?}");
}
