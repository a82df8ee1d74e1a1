//! What is still there after a kill, a lost tail, a changed topology.

use std::time::Duration;

use event_gateway::broker::embedded::{Embedded, EmbeddedError, EmbeddedTopology};
use event_gateway::domain::Broker;
use sqlx::{Connection, SqliteConnection};

use super::{Fresh, Kafka, Nats, Rabbitmq, topology};
use crate::fixture::*;

fn end(embedded: &Embedded, log: &str) -> i64 {
    let ends = embedded.ends();
    ends.iter().filter(|end| &*end.log == log).map(|end| end.end).sum()
}

/// Waits until the file says that `consumer` stands at `next`.
async fn written(file: &mut SqliteConnection, consumer: &str, next: i64) {
    let there = async {
        loop {
            let stands: i64 = sqlx::query_scalar("SELECT sum(next_offset) FROM positions WHERE consumer = ?")
                .bind(consumer.to_owned())
                .fetch_one(&mut *file)
                .await
                .unwrap();
            if stands == next {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(there).await;
}

#[tokio::test]
async fn what_was_confirmed_survives_a_kill() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let killed = fixture.killed().await;
    assert_eq!(end(&killed.embedded, "job.events"), 10);
    let mut inbound = subscribe(&killed, &killed.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 10).await), (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn acknowledgements_reach_the_file_without_further_writes() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 7).await;
    written(&mut fixture.intruder().await, "reader", 7).await;

    let killed = fixture.killed().await;
    let mut inbound = subscribe(&killed, &killed.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [8, 9, 10]);
}

#[tokio::test]
async fn passing_over_foreign_messages_is_kept_too() {
    let fixture = Fresh::<Nats>::start(&["reader", "other"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("other")).await;
    expect_quiet(&mut *inbound).await;
    written(&mut fixture.intruder().await, "other", 10).await;
    assert_eq!(inbound.lag().await, Some(0));
}

/// A power loss takes the newest transactions. The store's owner sees the ends and
/// publishes again; consumers read what is published again.
#[tokio::test]
async fn a_lost_tail_shows_and_positions_beyond_it_are_clamped() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 10).await;
    drop(inbound);
    fixture.embedded.shutdown().await;

    let mut file = fixture.intruder().await;
    sqlx::query("DELETE FROM records WHERE \"offset\" >= 6").execute(&mut file).await.unwrap();
    file.close().await.unwrap();

    let fixture = Fresh::<Rabbitmq>::open(fixture.directory, fixture.topology).await;
    assert_eq!(end(&fixture.embedded, "job.events"), 6);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    expect_quiet(&mut *inbound).await;
    let again = publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 7)]).await;
    assert_eq!(again[0].offset, Some(6));
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [7]);
}

#[tokio::test]
async fn a_work_queue_forgets_what_was_owed_beyond_a_lost_tail() {
    let fixture = Fresh::<Nats>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 10).await;
    within(inbound.ack(&[got[0].token, got[3].token])).await.unwrap();
    drop(inbound);
    fixture.embedded.shutdown().await;

    let mut file = fixture.intruder().await;
    sqlx::query("DELETE FROM records WHERE \"offset\" >= 5").execute(&mut file).await.unwrap();
    file.close().await.unwrap();

    let fixture = Fresh::<Nats>::open(fixture.directory, fixture.topology).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [2, 3, 5]);
    expect_quiet(&mut *inbound).await;
}

#[tokio::test]
async fn a_new_queue_starts_now_and_a_new_group_at_the_oldest_record() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=3).await;
    let fixture = Fresh::<Rabbitmq> { topology: topology::<Rabbitmq>(&["reader", "late"]), ..fixture }.restart().await;
    publish_series(&fixture, "alpha", 4..=4).await;
    // Declared but unread until the next start: still from its declaration on.
    let fixture = fixture.restart().await;
    let mut late = subscribe(&fixture, &fixture.durable("late")).await;
    assert_eq!(sequences(&consume(&mut *late, 1).await), [4]);

    let fixture = Fresh::<Kafka>::start(&[]).await;
    publish_series(&fixture, "alpha", 1..=3).await;
    let mut late = subscribe(&fixture, &fixture.durable("undeclared")).await;
    assert_eq!(sequences(&consume(&mut *late, 3).await), [1, 2, 3]);
}

#[tokio::test]
async fn partitions_can_be_added_but_not_taken_away() {
    let fixture = Fresh::<Kafka>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=3).await;
    fixture.embedded.shutdown().await;

    let path = fixture.directory.path().join("brokers.db");
    let with = |partitions| {
        let mut topology = fixture.topology.clone();
        topology.topics[0].partitions = partitions;
        topology
    };
    let Err(EmbeddedError::Topology(wrong)) = Embedded::open(&path, with(2)).await else { panic!("refused") };
    assert!(wrong[0].contains("job-lifecycle has 4 partitions on disk and 2 in the topology"), "{wrong:?}");

    let grown = Embedded::open(&path, with(6)).await.unwrap();
    assert_eq!(grown.ends().iter().filter(|end| end.broker == Broker::Kafka).count(), 6);
    assert_eq!(end(&grown, "job-lifecycle"), 3);
    grown.shutdown().await;
}

#[tokio::test]
async fn a_contradictory_topology_is_refused_before_the_file_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("brokers.db");
    let topology = EmbeddedTopology { exchanges: vec![], ..topology::<Rabbitmq>(&["reader"]) };
    let Err(EmbeddedError::Topology(wrong)) = Embedded::open(&path, topology).await else { panic!("refused") };
    assert!(wrong[0].contains("consumer reader reads job.events"), "{wrong:?}");
    assert!(!path.exists());
}

#[tokio::test]
async fn records_can_be_read_by_operators() {
    let fixture = Fresh::<Kafka>::start(&[]).await;
    let positions = {
        let window: Vec<_> = (1..=5).map(|sequence| outgoing(&fixture, "alpha", sequence)).collect();
        publish(&*fixture.publisher(), &window).await
    };
    let partition = positions[0].partition;
    let read =
        async |from, limit| fixture.embedded.records(Broker::Kafka, "job-lifecycle", partition, from, limit).await;
    let records = read(1, 3).await.unwrap();
    assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(records[0].headers.as_ref().unwrap().sequence, 2);
    assert_eq!(&*records[0].key, "alpha");
    assert!(read(5, 10).await.unwrap().is_empty());

    let unknown = fixture.embedded.records(Broker::Kafka, "job-lifecycle", 4, 0, 1).await.unwrap_err();
    assert_eq!(unknown.to_string(), "kafka has no partition 4 of job-lifecycle");
}

#[tokio::test]
async fn offsets_are_gap_free_in_each_partition() {
    let fixture = Fresh::<Kafka>::start(&[]).await;
    for sequence in 1..=20 {
        let window: Vec<_> = (0..10).map(|n| outgoing(&fixture, &format!("key-{n}"), sequence)).collect();
        publish(&*fixture.publisher(), &window).await;
    }
    let mut total = 0;
    for end in fixture.embedded.ends().iter().filter(|end| end.broker == Broker::Kafka) {
        let records = fixture.embedded.records(Broker::Kafka, &end.log, end.partition, 0, 1000).await.unwrap();
        assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), (0..end.end).collect::<Vec<_>>());
        total += records.len();
    }
    assert_eq!(total, 200);
}
