//! What only a shared server can do: several instances, lost answers, frozen sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_gateway::domain::job::JobCommand;
use event_gateway::domain::payload::CancelledBy;
use event_gateway::domain::{Broker, Channel, Id};
use event_gateway::store::postgres::PostgresStore;
use event_gateway::store::{Effect, Fold, JobFilter, Outcome, Page, Renewal, Store, StoreError, Unit, Verdict};
use event_gateway::task;
use sqlx::Row;

use super::proxy::{Cut, Proxy};
use super::{LEASE, Schema, enrolled};
use crate::fixture::{claim, command, delivery, job, submit};

/// Commits the same work on two instances at once, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_do_the_same_do_it_once() {
    let Some(schema) = Schema::create().await else { return };
    let stores = [Arc::new(schema.store().await), Arc::new(schema.store().await)];
    let jobs: Arc<Vec<_>> = Arc::new((0..60).map(|_| job("ada")).collect());
    let seed: Vec<Unit> = jobs.iter().map(submit).collect();
    let events: Arc<Vec<_>> = Arc::new(
        stores[0]
            .commit(Arc::new(seed))
            .await
            .unwrap()
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Committed { events, .. } => events[0].clone(),
                other => panic!("{other:?}"),
            })
            .collect(),
    );
    let mut running = Vec::new();
    for store in stores.clone() {
        let (jobs, events) = (jobs.clone(), events.clone());
        running.push(task::spawn("instance", async move {
            let mut won = 0;
            // Against each other's order: locks are sorted, so nobody waits in a circle.
            for chunk in 0..6 {
                let mut units = Vec::new();
                for index in (chunk * 10)..(chunk * 10 + 10) {
                    let cancel = JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() };
                    let mut unit = command(jobs[index].id, cancel);
                    unit.idempotency = Some(claim(&format!("key {index}"), 1));
                    units.push(unit);
                    let mut fold = Fold { model: "test", key: "row".into(), ..Fold::default() };
                    fold.add.insert("seen", 1.0);
                    let seen = delivery("metrics", &events[index], Verdict::Done);
                    units.push(Unit { effects: vec![Effect::Fold(fold)], ..seen });
                }
                for outcome in store.commit(Arc::new(units)).await.unwrap() {
                    match outcome {
                        Outcome::Committed { .. } => won += 1,
                        Outcome::Repeated(_) | Outcome::Duplicate => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            won
        }));
    }
    let mut won = 0;
    for instance in running {
        won += instance.await.unwrap();
    }
    assert_eq!(won, 120, "60 cancels and 60 messages, each once");
    let store = &stores[0];
    assert_eq!(store.read_model("test", "row").await.unwrap().unwrap()["seen"], 60);
    let found = store.channel_ranges(&[(Channel::User("ada".into()), 0, 1_000)]).await.unwrap();
    let offsets: Vec<i64> = found.iter().filter_map(|(_, event)| event.user_offset).collect();
    assert_eq!(offsets, (1..=offsets.len() as i64).collect::<Vec<_>>(), "no gap, no repeat");
    // Within a job positions grow with sequences, whoever committed.
    for job in jobs.iter() {
        let history = store.aggregate_events("job", &job.id.to_string(), 0, 100).await.unwrap();
        assert!(history.is_sorted_by(|a, b| a.position < b.position));
    }
}

#[tokio::test]
async fn new_users_and_rows_of_two_instances_do_not_collide() {
    let Some(schema) = Schema::create().await else { return };
    let stores = [Arc::new(schema.store().await), Arc::new(schema.store().await)];
    for round in 0..10 {
        let user = format!("user {round}");
        let unit = || {
            let mut fold = Fold { model: "test", key: user.clone(), ..Fold::default() };
            fold.add.insert("n", 1.0);
            Arc::new(vec![Unit { effects: vec![Effect::Fold(fold)], ..submit(&job(&user)) }])
        };
        let (one, two) = tokio::join!(stores[0].commit(unit()), stores[1].commit(unit()));
        one.unwrap();
        two.unwrap();
        assert_eq!(stores[0].read_model("test", &user).await.unwrap().unwrap()["n"], 2);
        let heads = stores[0].channel_heads(&[Channel::User(user.as_str().into())]).await.unwrap();
        let found = stores[0].channel_ranges(&[(Channel::User(user.as_str().into()), 0, 100)]).await.unwrap();
        assert_eq!(found.len() as i64, heads[0]);
    }
}

async fn through(schema: &Schema, proxy: &Proxy) -> PostgresStore {
    let server = schema.options().host(&proxy.address.ip().to_string()).port(proxy.address.port());
    enrolled(server, "proxied", LEASE).await
}

async fn stored(store: &PostgresStore) -> usize {
    store.jobs(&JobFilter::default(), Page { before: None, limit: 100 }).await.unwrap().len()
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_out() {
    let Some(schema) = Schema::create().await else { return };
    let server = schema.options();
    let proxy = Proxy::start((server.get_host().to_owned(), server.get_port())).await;
    let store = through(&schema, &proxy).await;

    proxy.cut_next_commit(Cut::After);
    let outcomes = store.commit(Arc::new(vec![submit(&job("ada"))])).await.expect("it was committed");
    assert!(matches!(&outcomes[..], [Outcome::Committed { events, .. }] if !events.is_empty()));
    assert_eq!(stored(&store).await, 1);

    proxy.cut_next_commit(Cut::Before);
    match store.commit(Arc::new(vec![submit(&job("ada"))])).await {
        Err(StoreError::Unavailable(why)) => assert!(why.contains("rolled back"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(stored(&store).await, 1);

    // The server has not noticed that its client is gone: it is told.
    proxy.cut_next_commit(Cut::Hold);
    let started = Instant::now();
    match store.commit(Arc::new(vec![submit(&job("ada"))])).await {
        Err(StoreError::Unavailable(why)) => assert!(why.contains("rolled back"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < Duration::from_secs(3), "well before any session times out");
    store.commit(Arc::new(vec![submit(&job("ada"))])).await.expect("the pool has healed");
    assert_eq!(stored(&store).await, 2);
}

/// It may be committed, and then its event is nobody's but the store's: what follows it must know.
#[tokio::test]
async fn after_a_commit_whose_outcome_stays_unknown_this_is_another_owner() {
    let Some(schema) = Schema::create().await else { return };
    let server = schema.options();
    let proxy = Proxy::start((server.get_host().to_owned(), server.get_port())).await;
    let store = through(&schema, &proxy).await;
    let job = job("ada");

    proxy.cut_next_commit(Cut::AfterAndAway);
    match store.commit(Arc::new(vec![submit(&job)])).await {
        Err(StoreError::OutcomeUnknown(_)) => {}
        other => panic!("{other:?}"),
    }
    proxy.heal();
    let cancel = Arc::new(vec![command(job.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() })]);
    match store.commit(cancel.clone()).await {
        Err(StoreError::LeaseLost(why)) => assert!(why.contains("COMMIT"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.renew(LEASE).await.unwrap(), Renewal::Lost, "its keeper enrolls it again");

    store.enroll("proxied", LEASE).await.unwrap();
    let outcomes = store.commit(cancel).await.unwrap();
    let Outcome::Committed { events, .. } = &outcomes[0] else { panic!("{outcomes:?}") };
    let next = events.iter().find(|event| &*event.event_type.aggregate == "job").unwrap();
    assert_eq!(next.sequence, 2, "it was committed");
    assert!(next.origin.follows_other, "its lane asks whether the one before it is out");
    let owed = store.open_legs(Broker::Kafka, None, 0, 100).await.unwrap();
    assert_eq!(owed.first().unwrap().0.aggregate_id, job.id.to_string().into(), "and publishes that one, too");
}

#[tokio::test]
async fn data_that_cannot_be_stored_is_a_data_error() {
    let Some(schema) = Schema::create().await else { return };
    let store = schema.store().await;
    let mut bad = job("ada");
    bad.name = "a\0b".into();
    // No index takes a text of any length.
    let long: String = (0..600).map(|_| Id::new().to_string()).collect();
    for bad in [bad, job(&long)] {
        let result = store.commit(Arc::new(vec![submit(&job("ada")), submit(&bad)])).await;
        assert!(matches!(result, Err(StoreError::Data(_))), "{result:?}");
        assert_eq!(stored(&store).await, 0, "all or nothing; the committer splits");
    }
    let filter = JobFilter { text: Some("a\0b".into()), ..JobFilter::default() };
    assert!(store.jobs(&filter, Page { before: None, limit: 1 }).await.unwrap().is_empty());
}

#[tokio::test]
async fn people_can_read_the_tables() {
    let Some(schema) = Schema::create().await else { return };
    let store = schema.store().await;
    store.commit(Arc::new(vec![submit(&job("ada"))])).await.unwrap();
    let mut session = schema.session().await;
    let row = sqlx::query("SELECT * FROM ledger WHERE event_type = 'job.submitted' AND broker = 'kafka'")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(row.get::<&str, _>("state"), "pending");
    let agent: String =
        sqlx::query("SELECT payload ->> 'agent' AS agent FROM events WHERE event_type = 'job.submitted'")
            .fetch_one(&mut session)
            .await
            .unwrap()
            .get("agent");
    assert_eq!(agent, "external");
}
