//! A broker that the gateway cannot hear, while the cluster is well: nobody else takes over what it
//! leads. Its partitions' keys wait, the others do not, and health says so.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use event_gateway::broker::PublishError;
use event_gateway::broker::kafka::Health;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Fresh, Site, consumer, publish_until_confirmed, window};
use crate::environment::variable;
use crate::fixture::{consume, publish, try_publish, within};
use crate::proxy::{Mode, Proxy};

/// Enough for all partitions.
const KEYS: usize = 32;

/// Which broker leads each partition, as its place in the list of brokers.
fn leaders(fresh: &Fresh) -> HashMap<i32, usize> {
    let client: BaseConsumer = fresh.site.client().create().unwrap();
    let metadata = client.fetch_metadata(Some(&fresh.topic()), Duration::from_secs(5)).unwrap();
    let partitions = metadata.topics()[0].partitions();
    partitions.iter().map(|partition| (partition.id(), partition.leader() as usize - 1)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_not_heard_holds_up_its_own_partitions_only() {
    let (Some(site), Some(ways)) = (Site::find(), variable("EVENT_GATEWAY_TEST_KAFKA_PROXIED")) else { return };
    let mut proxies = Vec::new();
    for (at, server) in ways.split(',').map(|way| way.split_once('=').unwrap()) {
        proxies.push(Proxy::at(at, server).await);
    }
    let bootstrap = proxies.iter().map(|proxy| &*proxy.url).collect::<Vec<_>>().join(",");
    let set = [("kafka.brokers", &*bootstrap), ("kafka.request_timeout", "3s")];
    let fresh = Fresh::with(site, &set).await;
    let publisher = fresh.kafka.publisher();
    let positions = publish(&*publisher, &window(KEYS, 1)).await;

    let leaders = leaders(&fresh);
    let unheard = leaders[&positions[0].partition];
    let is_led_by_it = |index: usize| leaders[&positions[index].partition] == unheard;
    let theirs = (0..KEYS).filter(|index| is_led_by_it(*index)).count();
    assert!(theirs < KEYS, "the test needs partitions of several leaders: {leaders:?}");
    proxies[unheard].set(Mode::Silent);
    let second = window(KEYS, 2);
    // The same again: it is not sent again.
    for _ in 0..3 {
        let results = try_publish(&*publisher, &second).await;
        for (index, result) in results.iter().enumerate() {
            let as_it_should = match result {
                Ok(_) => !is_led_by_it(index),
                Err(why) => is_led_by_it(index) && matches!(why, PublishError::Unsettled { down: None }),
            };
            assert!(as_it_should, "key {index}: {result:?}; unheard: {}", is_led_by_it(index));
        }
    }
    let mut health = fresh.kafka.watch();
    let named = |health: &Health| matches!(health, Health::Down(why) if why.contains("are not confirmed"));
    println!("{:?}", within(health.wait_for(|health| named(&health.cluster))).await.unwrap().cluster);

    proxies[unheard].set(Mode::Open);
    let waiting = second.into_iter().enumerate().filter(|(index, _)| is_led_by_it(*index));
    publish_until_confirmed(&*publisher, waiting.map(|(_, outgoing)| outgoing).collect()).await;
    within(health.wait_for(|health| health.cluster == Health::Up)).await.unwrap();

    // Those that were asked for three times are there three times, the others once.
    let all = KEYS + theirs + 3 * (KEYS - theirs);
    let mut inbound = within(fresh.kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap();
    let mut read: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for delivery in consume(&mut *inbound, all).await {
        let headers = delivery.headers.unwrap();
        read.entry(delivery.key.to_string()).or_default().push(headers.sequence);
    }
    for index in 0..KEYS {
        let expected = if is_led_by_it(index) { vec![1, 2] } else { vec![1, 2, 2, 2] };
        assert_eq!(read[&format!("key-{index}")], expected, "key-{index}");
    }
    drop(inbound);
    fresh.kafka.shutdown().await;
}
