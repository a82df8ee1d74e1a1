//! What a projection stands on is its inbox: a group's offsets may be lost.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset};

use crate::gateway::Gateway;
use crate::play::{play, psql};
use crate::readiness::scraped;
use crate::world::{World, address};

const PATIENCE: Duration = Duration::from_secs(30);
const LIFECYCLE: &str = "SELECT count(*) FROM events \
     WHERE event_type IN ('job.submitted', 'job.completed', 'job.failed', 'job.cancelled')";
const COUNTED: &str = "SELECT coalesce(sum(value::numeric), 0)::bigint \
     FROM read_models, jsonb_each_text(data::jsonb) AS counter(name, value) \
     WHERE model = 'jobs_per_minute' AND name IN ('submitted', 'completed', 'failed', 'cancelled')";

/// Its next member begins with the oldest record, as where offsets have expired or were reset.
fn lose_offsets(group: &str, topic: &str) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address("KAFKA").unwrap())
        .set("group.id", group)
        .create()
        .unwrap();
    let known = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let mut oldest = rdkafka::TopicPartitionList::new();
    for partition in known.topics()[0].partitions() {
        oldest.add_partition_offset(topic, partition.id(), Offset::Offset(0)).unwrap();
    }
    assert!(oldest.count() > 0, "{topic} has partitions");
    // The broker refuses it while the group has members: the gateway's has just left.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = consumer.commit(&oldest, CommitMode::Sync) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn repeats_absorbed(gateway: &Gateway) -> u64 {
    let metrics = scraped(gateway);
    let line = metrics.lines().find(|line| line.starts_with("event_gateway_inbox_hits_total{consumer=\"metrics\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

#[test]
fn a_group_whose_offsets_are_lost_counts_nothing_twice() {
    let Some(world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    play(&mut gateway, "150", |_| {});
    let events: u64 = psql(&world.database, LIFECYCLE).parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while psql(&world.database, COUNTED) != events.to_string() {
        assert!(Instant::now() < deadline, "{} of {events} are counted", psql(&world.database, COUNTED));
        std::thread::sleep(Duration::from_millis(100));
    }

    assert!(gateway.stop().success());
    lose_offsets(&format!("{}metrics", world.prefix), &format!("{}job-lifecycle", world.prefix));
    let gateway = Gateway::start(&world.settings());
    let deadline = Instant::now() + PATIENCE;
    while repeats_absorbed(&gateway) < events {
        assert!(Instant::now() < deadline, "{} of {events} are read again", repeats_absorbed(&gateway));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(psql(&world.database, COUNTED), events.to_string());
    assert!(gateway.stop().success());
}
