//! The disk says no, and later yes; and the end.

use std::time::Duration;

use event_gateway::broker::PublishError;
use event_gateway::broker::embedded::{EmbeddedTopology, Limits};
use sqlx::Connection;

use super::{Fresh, Kafka, Rabbitmq, topology};
use crate::fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_is_a_broker_that_is_down_until_it_is_free() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=3).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 3).await;

    let mut intruder = fixture.intruder().await;
    let lock = intruder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    within(inbound.ack(&tokens(&got[..2]))).await.unwrap();
    let results = try_publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 4)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(why)) if why.contains("locked")), "{results:?}");
    lock.rollback().await.unwrap();

    let positions = publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 4)]).await;
    assert_eq!(positions[0].offset, Some(3), "what failed has taken no offset");
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [4]);
    within(inbound.ack(&tokens(&got[2..]))).await.unwrap();
    drop(inbound);

    // The acknowledgements that could not be written then are written now.
    let fixture = fixture.restart().await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    expect_quiet(&mut *inbound).await;
}

/// The writer must not trust its memory after a failure: here somebody else appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_the_file_is_believed() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=1).await;
    let mut intruder = fixture.intruder().await;
    let copy = "INSERT INTO records (id, key, headers, encoding, body, time) \
                SELECT id + 1, key, headers, encoding, body, time FROM records";
    sqlx::query(copy).execute(&mut intruder).await.unwrap();

    let results = try_publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 2)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(_))), "{results:?}");
    let positions = publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 2)]).await;
    assert_eq!(positions[0].offset, Some(2));
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [1, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_broker_that_is_down_until_retention_has_made_room() {
    let limits = Limits { max_file: Some(2 << 20), prune_interval: Duration::from_millis(20), ..Limits::default() };
    let mut topology = EmbeddedTopology { limits, ..topology::<Rabbitmq>(&["reader"]) };
    topology.exchanges[0].retention.max_records = 100;
    let fixture = Fresh::<Rabbitmq>::with(topology).await;
    let publisher = fixture.publisher();

    let mut confirmed = 0;
    let full = loop {
        let event = event_with("alpha", confirmed + 1, &"x".repeat(5000));
        let outgoing = event_gateway::broker::Outgoing { event, route: fixture.route("alpha") };
        match try_publish(&*publisher, &[outgoing]).await.remove(0) {
            Ok(position) => assert_eq!(position.offset, Some(confirmed)),
            Err(why) => break why,
        }
        confirmed += 1;
        assert!(confirmed < 2000, "the limit does not hold");
    };
    assert!(matches!(&full, PublishError::Down(why) if why.contains("full")), "{full:?}");

    // Everything that was confirmed is there; reading it lets retention work.
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = consume(&mut *inbound, confirmed as usize).await;
    assert_eq!(sequences(&got), (1..=confirmed).collect::<Vec<_>>());
    let room = async {
        while try_publish(&*publisher, &[outgoing(&fixture, "alpha", confirmed + 1)]).await[0].is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(room).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [confirmed + 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_readers_and_refuses_publishers() {
    let fixture = Fresh::<Kafka>::start(&["reader"]).await;
    let publisher = fixture.publisher();
    let subscriber = fixture.subscriber();
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let waiting = event_gateway::task::spawn("reader", async move {
        let ended = inbound.receive(1).await.unwrap_err();
        let unheard = inbound.ack(&[]).await.unwrap_err();
        (ended, unheard)
    });
    tokio::task::yield_now().await;
    within(fixture.embedded.shutdown()).await;
    let (ended, unheard) = within(waiting).await.unwrap();
    assert!(ended.to_string().contains("shut down") && unheard.to_string().contains("shut down"));
    assert!(within(subscriber.subscribe(&fixture.durable("reader"))).await.is_err());
    let results = try_publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(_))), "{results:?}");
    assert!(!fixture.directory.path().join("brokers.db-wal").exists(), "everything is in the one file");
}

/// What was accepted before the shutdown is either confirmed and kept, or refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_drains_what_was_accepted() {
    let fixture = Fresh::<Rabbitmq>::start(&["reader"]).await;
    let publishing: Vec<_> = (0..20)
        .map(|lane| {
            let publisher = fixture.publisher();
            let window: Vec<_> = (0..50).map(|n| outgoing(&fixture, &format!("{lane}-{n}"), 1)).collect();
            event_gateway::task::spawn("lane", async move { try_publish(&*publisher, &window).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let fixture = fixture.restart().await;
    let mut confirmed = 0;
    for lane in publishing {
        let results = within(lane).await.unwrap();
        confirmed += results.iter().filter(|result| result.is_ok()).count();
    }
    assert_eq!(fixture.embedded.ends()[0].end, confirmed as i64);
}
