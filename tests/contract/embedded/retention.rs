//! What is deleted, and above all what is not.

use std::time::Duration;

use event_gateway::broker::embedded::{EmbeddedTopology, Limits, Retention};
use event_gateway::domain::Broker;

use super::{Fresh, Kafka, Rabbitmq, topology};
use crate::fixture::*;

const AT_ONCE: Duration = Duration::from_millis(10);

async fn pruning(retention: Retention, consumers: &[&str]) -> Fresh<Rabbitmq> {
    let limits = Limits { prune_interval: AT_ONCE, ..Limits::default() };
    let mut topology = EmbeddedTopology { limits, ..topology::<Rabbitmq>(consumers) };
    topology.exchanges[0].retention = retention;
    Fresh::with(topology).await
}

/// The offsets that are there.
async fn offsets(fixture: &Fresh<Rabbitmq>) -> Vec<i64> {
    let records = fixture.embedded.records(Broker::Rabbitmq, "job.events", 0, 0, 1000).await.unwrap();
    records.iter().map(|record| record.offset).collect()
}

async fn until_there_are(fixture: &Fresh<Rabbitmq>, expected: Vec<i64>) {
    let there = async {
        while offsets(fixture).await != expected {
            tokio::time::sleep(AT_ONCE).await;
        }
    };
    within(there).await;
}

const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_beyond_the_count_go_once_every_queue_has_them_behind_it() {
    let retention = Retention { max_age: FOR_EVER, max_records: 4 };
    let fixture = pruning(retention, &["first", "second"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut first = subscribe(&fixture, &fixture.durable("first")).await;
    consume(&mut *first, 10).await;
    let mut second = subscribe(&fixture, &fixture.durable("second")).await;
    let got = receive(&mut *second, 5).await;
    within(second.ack(&tokens(&got[..3]))).await.unwrap();
    // The second queue's fourth message is in somebody's hands: offset 3 stays.
    until_there_are(&fixture, (3..10).collect()).await;
    within(second.ack(&tokens(&got[3..]))).await.unwrap();
    until_there_are(&fixture, (5..10).collect()).await;
    assert_eq!(sequences(&consume(&mut *second, 5).await), [6, 7, 8, 9, 10]);
    until_there_are(&fixture, (6..10).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_go_but_the_end_is_remembered() {
    let retention = Retention { max_age: Duration::ZERO, max_records: u64::MAX };
    let fixture = pruning(retention, &["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 10).await;
    until_there_are(&fixture, vec![9]).await;
    drop(inbound);

    let fixture = fixture.restart().await;
    let position = publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 11)]).await.remove(0);
    assert_eq!(position.offset, Some(10));
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [11]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_one_chunk_is_pruned_in_a_round() {
    let retention = Retention { max_age: FOR_EVER, max_records: 10 };
    let limits = Limits { prune_interval: FOR_EVER, ..Limits::default() };
    let mut topology = EmbeddedTopology { limits, ..topology::<Rabbitmq>(&["reader"]) };
    topology.exchanges[0].retention = retention;
    let fixture = Fresh::<Rabbitmq>::with(topology).await;
    for sequence in 1..=10 {
        let window: Vec<_> = (0..250).map(|n| outgoing(&fixture, &format!("key-{n}"), sequence)).collect();
        publish(&*fixture.publisher(), &window).await;
    }
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 2500).await;
    drop(inbound);
    // The first round runs at the start; the next would be never.
    let fixture = fixture.restart().await;
    until_there_are(&fixture, (2490..2500).collect()).await;
}

/// A queue that is no longer listed keeps its position but holds nothing back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_queue_holds_nothing_back() {
    let retention = Retention { max_age: FOR_EVER, max_records: 4 };
    let fixture = pruning(retention, &["reader", "old"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 10).await;
    drop(inbound);
    let mut topology = fixture.topology.clone();
    let both = std::mem::replace(&mut topology.consumers, vec![fixture.durable("reader")]);
    let fixture = Fresh { topology, ..fixture }.restart().await;
    until_there_are(&fixture, (6..10).collect()).await;

    let mut topology = fixture.topology.clone();
    topology.consumers = both;
    let fixture = Fresh { topology, ..fixture }.restart().await;
    let mut old = subscribe(&fixture, &fixture.durable("old")).await;
    assert_eq!(sequences(&consume(&mut *old, 4).await), [7, 8, 9, 10]);
}

/// A topic nobody reads keeps to its limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_log_is_pruned_too() {
    let limits = Limits { prune_interval: AT_ONCE, ..Limits::default() };
    let mut topology = EmbeddedTopology { limits, ..topology::<Kafka>(&[]) };
    topology.topics[0].retention = Retention { max_age: FOR_EVER, max_records: 3 };
    let fixture = Fresh::<Kafka>::with(topology).await;
    publish_series(&fixture, "alpha", 1..=10).await;
    let end = fixture.embedded.ends().into_iter().find(|end| end.end == 10).unwrap();
    let pruned = async {
        loop {
            let records = fixture.embedded.records(Broker::Kafka, &end.log, end.partition, 0, 100).await.unwrap();
            if records.iter().map(|r| r.offset).eq(7..10) {
                return;
            }
            tokio::time::sleep(AT_ONCE).await;
        }
    };
    within(pruned).await;
    // A group that comes now starts at the oldest that is left.
    let mut inbound = subscribe(&fixture, &fixture.durable("late")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [8, 9, 10]);
}
