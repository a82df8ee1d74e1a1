//! A server that refuses: read-only, full, or in favour of another transaction.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::store::postgres::PostgresStore;
use event_gateway::store::{JobFilter, Outcome, Page, Store, StoreError};
use sqlx::{AssertSqlSafe, Executor};

use super::{Database, LEASE, Schema, enrolled};
use crate::fixture::{job, submit};

async fn submit_one(store: &PostgresStore) -> Result<Vec<Outcome>, StoreError> {
    store.commit(Arc::new(vec![submit(&job("ada"))])).await
}

async fn stored(store: &PostgresStore) -> usize {
    store.jobs(&JobFilter::default(), Page { before: None, limit: 100 }).await.unwrap().len()
}

/// Until the store takes work again: its pool finds out that the old sessions are gone.
async fn submit_again(store: &PostgresStore) {
    let wait = async {
        while submit_one(store).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the store recovers");
}

#[tokio::test]
async fn a_read_only_server_is_unavailable_and_loses_nothing() {
    let Some(database) = Database::create().await else { return };
    let store = enrolled(database.options(), "one", LEASE).await;
    submit_one(&store).await.unwrap();

    database.set_read_only(true).await;
    // First the sessions that ended show; then those of the read-only server.
    let refused = async {
        loop {
            match submit_one(&store).await {
                Err(StoreError::Unavailable(why)) if why.contains("read-only") => return,
                Err(StoreError::Unavailable(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("it says that it is read-only");
    assert_eq!(stored(&store).await, 1, "what is there can be read");

    database.set_read_only(false).await;
    submit_again(&store).await;
    assert_eq!(stored(&store).await, 2);
    store.close().await;
}

/// Has every INSERT into `table` raise `code`, at once or at COMMIT, as often as `times` says.
async fn raise(schema: &Schema, table: &str, code: &str, at_commit: bool, times: u32) {
    let when = if at_commit {
        format!("CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
    } else {
        format!("CREATE TRIGGER fault BEFORE INSERT ON {table} FOR EACH STATEMENT")
    };
    // A sequence keeps its value when the transaction rolls back.
    let sql = format!(
        "CREATE SEQUENCE faults; \
         CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF nextval('faults') <= {times} THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END IF; \
           RETURN NEW; END $$; {when} EXECUTE FUNCTION fault()"
    );
    schema.session().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_leaves_nothing_behind() {
    for at_commit in [false, true] {
        let Some(schema) = Schema::create().await else { return };
        let store = schema.store().await;
        raise(&schema, "legs", "53100", at_commit, 1).await;
        match submit_one(&store).await {
            Err(StoreError::Unavailable(why)) => assert!(why.contains("on purpose"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(stored(&store).await, 0, "rolled back");
        submit_one(&store).await.expect("there is room again");
        assert_eq!(stored(&store).await, 1);
    }
}

#[tokio::test]
async fn serialization_failures_and_deadlocks_are_tried_again() {
    for (code, at_commit) in [("40001", false), ("40P01", false), ("40001", true)] {
        let Some(schema) = Schema::create().await else { return };
        let store = schema.store().await;
        raise(&schema, "events", code, at_commit, 3).await;
        let outcomes = submit_one(&store).await.expect("the fourth try goes through");
        assert!(matches!(&outcomes[..], [Outcome::Committed { events, .. }] if events.len() == 2));
        assert_eq!(stored(&store).await, 1, "once");
    }
}

#[tokio::test]
async fn conflicts_without_end_are_given_up() {
    let Some(schema) = Schema::create().await else { return };
    let store = schema.store().await;
    raise(&schema, "events", "40001", false, 1_000).await;
    assert!(matches!(submit_one(&store).await, Err(StoreError::Conflict(_))));
    assert_eq!(stored(&store).await, 0);
}

#[tokio::test]
async fn stores_that_start_together_migrate_once() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two, three) = tokio::join!(schema.store(), schema.store(), schema.store());
    for store in [one, two, three] {
        submit_one(&store).await.unwrap();
    }
}
