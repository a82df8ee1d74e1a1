//! A topic that somebody deletes while the gateway runs.

use std::ops::RangeInclusive;
use std::time::Duration;

use event_gateway::broker::kafka::{Health, Kafka};
use event_gateway::broker::{Inbound, Subscription};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};

use super::load::RECOVERY;
use super::{AGAIN, Fresh, PARTITIONS, Site, consumer, publish_until_confirmed, topology, window};
use crate::fixture::{PATIENCE, by_key, consume, publish, receive, tokens, within};

const KEYS: usize = 20;

async fn delete(site: &Site, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = site.client().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    within(admin.delete_topics(&[topic], &options)).await.unwrap().remove(0).unwrap();
}

async fn three_of_each_key(site: Site) -> Fresh {
    let fresh = Fresh::with(site, &[]).await;
    let publisher = fresh.kafka.publisher();
    for sequence in 1..=3 {
        publish(&*publisher, &window(KEYS, sequence)).await;
    }
    fresh
}

async fn join(kafka: &Kafka) -> Box<dyn Inbound> {
    loop {
        match kafka.subscriber().subscribe(&consumer("reader")).await {
            Ok(inbound) => return inbound,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// As a consumer does: reads until it has these sequences of every key, subscribing again when it must.
async fn read_until(kafka: &Kafka, mut inbound: Box<dyn Inbound>, sequences: RangeInclusive<i64>) -> Box<dyn Inbound> {
    let mut got = Vec::new();
    let has_all = |seen: &Vec<i64>| sequences.clone().all(|sequence| seen.contains(&sequence));
    while by_key(&got).values().filter(|seen| has_all(seen)).count() < KEYS {
        match inbound.receive(100).await {
            Ok(more) => {
                let _ = inbound.ack(&tokens(&more)).await;
                got.extend(more);
            }
            Err(_) => inbound = join(kafka).await,
        }
    }
    inbound
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_is_declared_again_and_both_sides_go_on() {
    let Some(site) = Site::find() else { return };
    let fresh = three_of_each_key(site).await;
    let (kafka, publisher, mut health) = (&fresh.kafka, fresh.kafka.publisher(), fresh.kafka.watch());
    let mut inbound = within(join(kafka)).await;
    consume(&mut *inbound, 3 * KEYS).await;

    delete(&fresh.site, &fresh.topic()).await;
    let named = async {
        let is_named = |health: &Health| matches!(health, Health::Down(why) if why.contains("deleted"));
        health.wait_for(|health| is_named(&health.cluster)).await.unwrap().clone()
    };
    let going_on = async {
        tokio::join!(
            named,
            async {
                for sequence in 4..=6 {
                    publish_until_confirmed(&*publisher, window(KEYS, sequence)).await;
                }
            },
            read_until(kafka, inbound, 4..=6),
        )
    };
    let (named, (), inbound) = tokio::time::timeout(RECOVERY, going_on).await.expect("both sides go on");
    assert!(matches!(named.cluster, Health::Down(why) if why.contains(&fresh.topic())));
    within(fresh.kafka.watch().wait_for(|health| health.cluster == Health::Up)).await.unwrap();
    drop(inbound);
    // Compared when it is opened: the new one has the same settings.
    let set = [("kafka.create_topics", "false")];
    let config = fresh.site.config(&fresh.prefix, &set);
    let again = Kafka::open_with(&config.kafka, &config.registry, topology(&fresh.prefix, PARTITIONS));
    within(again).await.unwrap_or_else(|error| panic!("{error}")).shutdown().await;
}

/// The offsets of the topic before are there in the new one, too, when the reader comes to look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_slow_misses_nothing_of_a_topic_that_took_the_place_of_its_own() {
    let Some(site) = Site::find() else { return };
    let fresh = three_of_each_key(site).await;
    let (kafka, publisher) = (&fresh.kafka, fresh.kafka.publisher());
    let full = Subscription { prefetch: 3 * KEYS, ..consumer("reader") };
    let mut inbound = within(kafka.subscriber().subscribe(&full)).await.unwrap();
    // While they are not acknowledged, nothing more is fetched.
    let held = receive(&mut *inbound, 3 * KEYS).await;

    delete(&fresh.site, &fresh.topic()).await;
    let publishing = async {
        for sequence in 4..=9 {
            publish_until_confirmed(&*publisher, window(KEYS, sequence)).await;
        }
    };
    tokio::time::timeout(RECOVERY, publishing).await.expect("publishing goes on");
    let _ = inbound.ack(&tokens(&held)).await;
    let reading = read_until(kafka, inbound, 4..=9);
    tokio::time::timeout(RECOVERY, reading).await.expect("nothing is skipped");
}

/// A member that has not noticed stores where it was after the new topic is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_in_the_topic_before_is_none_in_this_one() {
    let Some(site) = Site::find() else { return };
    let fresh = three_of_each_key(site).await;
    let kafka = &fresh.kafka;
    let mut inbound = within(join(kafka)).await;
    consume(&mut *inbound, 3 * KEYS).await;
    within(kafka.shutdown()).await;
    drop(inbound);
    let group = format!("{}reader", fresh.prefix);
    let other: BaseConsumer = fresh.site.client().set("group.id", group).create().unwrap();
    let mut places = TopicPartitionList::new();
    places.add_partition_range(&fresh.topic(), 0, PARTITIONS as i32 - 1);
    let before = other.committed_offsets(places, PATIENCE).unwrap();
    let read: i64 = before.elements().iter().filter_map(|at| at.offset().to_raw()).sum();
    assert_eq!(read, 3 * KEYS as i64, "{before:?}");

    delete(&fresh.site, &fresh.topic()).await;
    let again = fresh.open_again().await;
    for sequence in 4..=9 {
        publish_until_confirmed(&*again.publisher(), window(KEYS, sequence)).await;
    }
    other.commit(&before, CommitMode::Sync).unwrap();
    let reading = read_until(&again, within(join(&again)).await, 4..=9);
    let inbound = tokio::time::timeout(RECOVERY, reading).await.expect("all of it is read");
    within(again.shutdown()).await;
    drop(inbound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_that_may_not_be_created_is_named_with_what_to_do() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let open = async |create: &str| {
        let config = fresh.site.config(&fresh.prefix, &[("kafka.create_topics", create)]);
        let opened = Kafka::open_with(&config.kafka, &config.registry, topology(&fresh.prefix, PARTITIONS));
        within(opened).await.unwrap_or_else(|error| panic!("{error}"))
    };
    fresh.kafka.shutdown().await;
    let kafka = open("false").await;
    let (publisher, mut health) = (kafka.publisher(), kafka.watch());
    publish(&*publisher, &window(KEYS, 1)).await;
    within(health.wait_for(|health| health.cluster == Health::Up)).await.unwrap();

    delete(&fresh.site, &fresh.topic()).await;
    let is_named = |health: &Health| matches!(health, Health::Down(why) if why.contains("kafka.create_topics"));
    let named = within(health.wait_for(|health| is_named(&health.cluster))).await.unwrap().clone();
    assert!(matches!(named.cluster, Health::Down(why) if why.contains(&fresh.topic())));

    // Somebody makes it again.
    open("true").await.shutdown().await;
    let confirmed = publish_until_confirmed(&*publisher, window(KEYS, 2));
    tokio::time::timeout(RECOVERY, confirmed).await.expect("it goes on");
    within(health.wait_for(|health| health.cluster == Health::Up)).await.unwrap();
    kafka.shutdown().await;
}
