//! A topic that somebody deletes while the gateway runs.

use std::time::Duration;

use event_gateway::broker::kafka::{Health, Kafka};
use event_gateway::broker::{Inbound, Outgoing, Publisher};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use super::load::RECOVERY;
use super::{Fresh, PARTITIONS, Site, TOPIC, consumer, route_to, topology};
use crate::fixture::{by_key, consume, event, publish, tokens, try_publish, within};

const KEYS: usize = 20;
const AGAIN: Duration = Duration::from_millis(50);

fn window(sequence: i64) -> Vec<Outgoing> {
    let keys = (0..KEYS).map(|n| format!("key-{n}"));
    keys.map(|key| Outgoing { event: event(&key, sequence), route: route_to(TOPIC, &key) }).collect()
}

async fn delete(site: &Site, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = site.client().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    within(admin.delete_topics(&[topic], &options)).await.unwrap().remove(0).unwrap();
}

/// As a lane does: what is not confirmed goes again.
async fn publish_until_confirmed(publisher: &dyn Publisher, mut waiting: Vec<Outgoing>) {
    while !waiting.is_empty() {
        let results = try_publish(publisher, &waiting).await;
        let mut results = results.iter();
        waiting.retain(|_| results.next().is_some_and(Result::is_err));
        tokio::time::sleep(AGAIN).await;
    }
}

async fn join(kafka: &Kafka) -> Box<dyn Inbound> {
    loop {
        match kafka.subscriber().subscribe(&consumer("reader")).await {
            Ok(inbound) => return inbound,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// As a consumer does: reads until it has this sequence of every key, subscribing again when it must.
async fn read_until(kafka: &Kafka, mut inbound: Box<dyn Inbound>, last: i64) -> Box<dyn Inbound> {
    let mut got = Vec::new();
    while by_key(&got).values().filter(|sequences| sequences.contains(&last)).count() < KEYS {
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
    let fresh = Fresh::with(site, &[]).await;
    let (kafka, publisher, mut health) = (&fresh.kafka, fresh.kafka.publisher(), fresh.kafka.watch());
    for sequence in 1..=3 {
        publish(&*publisher, &window(sequence)).await;
    }
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
                    publish_until_confirmed(&*publisher, window(sequence)).await;
                }
            },
            read_until(kafka, inbound, 6),
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
    publish(&*publisher, &window(1)).await;
    within(health.wait_for(|health| health.cluster == Health::Up)).await.unwrap();

    delete(&fresh.site, &fresh.topic()).await;
    let is_named = |health: &Health| matches!(health, Health::Down(why) if why.contains("kafka.create_topics"));
    let named = within(health.wait_for(|health| is_named(&health.cluster))).await.unwrap().clone();
    assert!(matches!(named.cluster, Health::Down(why) if why.contains(&fresh.topic())));

    // Somebody makes it again.
    open("true").await.shutdown().await;
    let confirmed = publish_until_confirmed(&*publisher, window(2));
    tokio::time::timeout(RECOVERY, confirmed).await.expect("it goes on");
    within(health.wait_for(|health| health.cluster == Health::Up)).await.unwrap();
    kafka.shutdown().await;
}
