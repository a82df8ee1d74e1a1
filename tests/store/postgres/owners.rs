//! Several instances: owners, leases, takeover.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::domain::job::{Job, JobCommand};
use event_gateway::domain::payload::CancelledBy;
use event_gateway::domain::{Broker, Event, Timestamp};
use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use event_gateway::store::{Duty, LegMark, LegState, Outcome, Renewal, Store, StoreError, Unit};
use sqlx::{Connection, Executor};

use super::{LEASE, Schema, enrolled};
use crate::fixture::{command, factory, job, submit};

const TAKEN_OVER: Renewal = Renewal::Held { adopted: 1 };
const ALONE: Renewal = Renewal::Held { adopted: 0 };

async fn instance(schema: &Schema, name: &str) -> PostgresStore {
    enrolled(schema.options(), name, LEASE).await
}

/// Nobody has heard of these instances for too long.
async fn lapse(schema: &Schema, instances: &[&str]) {
    let sql = "UPDATE owners SET lease_until = clock_timestamp() - interval '1 s' \
               WHERE instance = ANY($1) AND adopted_by IS NULL AND lease_until > '-infinity'";
    let lapsed = sqlx::query(sql).bind(instances).execute(&mut schema.session().await).await.unwrap();
    assert_eq!(lapsed.rows_affected(), instances.len() as u64);
}

async fn commit(store: &PostgresStore, unit: Unit) -> Result<Vec<Arc<Event>>, StoreError> {
    match store.commit(Arc::new(vec![unit])).await?.pop() {
        Some(Outcome::Committed { events, .. }) => Ok(events),
        other => panic!("not committed: {other:?}"),
    }
}

async fn submitted(store: &PostgresStore) -> Job {
    let job = job("ada");
    commit(store, submit(&job)).await.expect("it commits");
    job
}

fn cancel(job: &Job) -> Unit {
    command(job.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() })
}

/// Positions of what the store's lanes would publish to RabbitMQ.
async fn owed(store: &PostgresStore) -> Vec<i64> {
    let open = store.open_legs(Broker::Rabbitmq, None, 0, 100).await.expect("it answers");
    assert!(open.is_sorted_by_key(|(event, _)| event.position));
    open.iter().map(|(event, _)| event.position).collect()
}

fn mark(event: &Event, state: LegState) -> Unit {
    let mark = LegMark {
        position: event.position,
        broker: Broker::Rabbitmq,
        state,
        attempts: 1,
        partition: None,
        offset: None,
        at: Timestamp::now(),
        next_at: None,
        error: None,
        skip: None,
    };
    Unit { marks: vec![mark], ..Unit::default() }
}

#[tokio::test]
async fn each_owes_what_it_has_committed() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two) = (instance(&schema, "one").await, instance(&schema, "two").await);
    submitted(&one).await;
    assert_eq!((owed(&one).await.len(), owed(&two).await.len()), (1, 0));
    assert_eq!(two.renew(LEASE).await.unwrap(), ALONE);
    assert_eq!(owed(&two).await.len(), 0, "nobody is dead");
    submitted(&two).await;
    let looking_on = PostgresStore::open(schema.options(), factory(), PostgresOptions::default()).await.unwrap();
    assert_eq!(owed(&looking_on).await.len(), 2, "who only looks sees everybody's");
}

#[tokio::test]
async fn the_dead_are_taken_over_and_commit_nothing_any_more() {
    let Some(schema) = Schema::create().await else { return };
    let dead = instance(&schema, "dead").await;
    let job = submitted(&dead).await;
    lapse(&schema, &["dead"]).await;

    let alive = instance(&schema, "alive").await;
    submitted(&alive).await;
    assert_eq!(owed(&alive).await.len(), 1, "not at once: the dead may only be slow");
    assert_eq!(alive.renew(LEASE).await.unwrap(), TAKEN_OVER);
    assert_eq!(owed(&alive).await.len(), 2);

    // It was only frozen, and wakes.
    assert!(matches!(commit(&dead, cancel(&job)).await, Err(StoreError::LeaseLost(_))));
    assert_eq!(dead.renew(LEASE).await.unwrap(), Renewal::Lost);
    dead.enroll("dead", LEASE).await.unwrap();
    commit(&dead, cancel(&job)).await.expect("as another owner");
    assert_eq!(owed(&alive).await.len(), 2);
    assert!(!owed(&dead).await.is_empty());
}

#[tokio::test]
async fn a_transaction_in_flight_keeps_its_owner() {
    let Some(schema) = Schema::create().await else { return };
    let (slow, other) = (instance(&schema, "slow").await, instance(&schema, "other").await);
    submitted(&slow).await;
    lapse(&schema, &["slow"]).await;
    let mut session = schema.session().await;
    let mut transaction = session.begin().await.unwrap();
    transaction.execute("SELECT hold_ownership(owner) FROM owners WHERE instance = 'slow'").await.unwrap();
    assert_eq!(other.renew(LEASE).await.unwrap(), ALONE);
    transaction.commit().await.unwrap();
    assert_eq!(other.renew(LEASE).await.unwrap(), TAKEN_OVER);
}

#[tokio::test]
async fn a_new_start_takes_over_from_the_last_at_once() {
    let Some(schema) = Schema::create().await else { return };
    let first = instance(&schema, "one").await;
    let job = submitted(&first).await;
    let second = instance(&schema, "one").await;
    assert_eq!(owed(&second).await.len(), 1);
    assert!(matches!(commit(&first, cancel(&job)).await, Err(StoreError::LeaseLost(_))));
    assert_eq!(first.renew(LEASE).await.unwrap(), Renewal::Replaced);
}

#[tokio::test]
async fn who_ends_in_order_is_taken_over_at_once() {
    let Some(schema) = Schema::create().await else { return };
    let (leaving, staying) = (instance(&schema, "leaving").await, instance(&schema, "staying").await);
    submitted(&leaving).await;
    leaving.close().await;
    assert_eq!(staying.renew(LEASE).await.unwrap(), TAKEN_OVER);
    assert_eq!(owed(&staying).await.len(), 1);
}

#[tokio::test]
async fn what_was_taken_over_is_taken_over_again() {
    let Some(schema) = Schema::create().await else { return };
    let (first, second) = (instance(&schema, "first").await, instance(&schema, "second").await);
    submitted(&first).await;
    first.close().await;
    assert_eq!(second.renew(LEASE).await.unwrap(), TAKEN_OVER);
    submitted(&second).await;
    second.close().await;
    let third = instance(&schema, "third").await;
    assert_eq!(owed(&third).await.len(), 2, "who starts takes over from those that ended in order");
}

#[tokio::test]
async fn after_an_outage_nobody_takes_over_before_all_could_renew() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two) = (instance(&schema, "one").await, instance(&schema, "two").await);
    lapse(&schema, &["one", "two"]).await;
    assert_eq!(one.renew(LEASE).await.unwrap(), ALONE);
    assert_eq!(two.renew(LEASE).await.unwrap(), ALONE);
    assert_eq!(one.renew(LEASE).await.unwrap(), ALONE);
}

#[tokio::test]
async fn an_event_waits_for_the_one_before_it() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two) = (instance(&schema, "one").await, instance(&schema, "two").await);
    let job = job("ada");
    let first = commit(&one, submit(&job)).await.unwrap();
    assert!(!first[0].origin.follows_other, "there is none before it");
    let next = commit(&two, cancel(&job)).await.unwrap();
    let of_job: Vec<_> = next.iter().filter(|event| &*event.event_type.aggregate == "job").cloned().collect();
    assert!(of_job[0].origin.follows_other);
    assert!(!of_job[1].origin.follows_other, "it follows its own");

    let before = async || two.open_before(Broker::Rabbitmq, &of_job[..1]).await.unwrap();
    assert_eq!(before().await, [Some(LegState::Pending)]);
    commit(&one, mark(&first[0], LegState::Dead)).await.unwrap();
    assert_eq!(before().await, [Some(LegState::Dead)]);
    commit(&one, mark(&first[0], LegState::Done)).await.unwrap();
    assert_eq!(before().await, [None]);
    // And the other way round again.
    let same = two.open_before(Broker::Rabbitmq, &of_job[1..2]).await.unwrap();
    assert_eq!(same, [Some(LegState::Pending)], "its own one before is not out");
}

#[tokio::test]
async fn what_is_published_again_is_the_next_ones_and_goes_first() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two) = (instance(&schema, "one").await, instance(&schema, "two").await);
    let job = job("ada");
    let first = commit(&one, submit(&job)).await.unwrap();
    commit(&one, mark(&first[0], LegState::Done)).await.unwrap();
    // By a command, which is no instance.
    let command = PostgresStore::open(schema.options(), factory(), PostgresOptions::default()).await.unwrap();
    assert_eq!(command.publish_again(Broker::Rabbitmq, &[first[0].position]).await.unwrap(), 1);
    assert_eq!((owed(&one).await.len(), owed(&two).await.len()), (0, 0), "nobody's yet");

    let mut next = commit(&one, cancel(&job)).await.unwrap();
    next.retain(|event| &*event.event_type.aggregate == "job");
    assert!(next[0].origin.follows_other, "although it follows its own");
    assert_eq!(one.open_before(Broker::Rabbitmq, &next[..1]).await.unwrap(), [Some(LegState::Pending)]);
    assert_eq!(two.renew(LEASE).await.unwrap(), TAKEN_OVER);
    assert_eq!(owed(&two).await, [first[0].position]);
}

#[tokio::test]
async fn a_duty_is_one_instances_at_a_time() {
    let Some(schema) = Schema::create().await else { return };
    let (one, two) = (instance(&schema, "one").await, instance(&schema, "two").await);
    let duty = Duty { name: "sweeping", lease: LEASE };
    assert!(one.take_duty(duty).await.unwrap());
    assert!(one.take_duty(duty).await.unwrap(), "again");
    assert!(!two.take_duty(duty).await.unwrap());
    assert!(two.take_duty(Duty { name: "other", lease: LEASE }).await.unwrap());
    // It is dead: nobody waits for the duty's own lease.
    lapse(&schema, &["one"]).await;
    assert_eq!(two.renew(LEASE).await.unwrap(), TAKEN_OVER);
    assert!(two.take_duty(duty).await.unwrap());
    assert!(two.take_duty(Duty { lease: Duration::ZERO, ..duty }).await.unwrap());
    tokio::time::sleep(Duration::from_millis(2)).await;
    let three = instance(&schema, "three").await;
    assert!(three.take_duty(duty).await.unwrap(), "not asked for again in time");
}
