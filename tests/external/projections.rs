//! What a projection stands on is its inbox: a group's offsets may be lost, or ahead of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_gateway::consumer::{declarations, metrics};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::aftermath::{consumers_have_everything, missed_by};
use crate::gateway::Gateway;
use crate::instances::people::{ada_submits, external};
use crate::play::{play, psql};
use crate::readiness::{metric, until};
use crate::reconcile::reconcile;
use crate::restore::{dumped, put_back};
use crate::waiting::await_that;
use crate::world::{CLUSTER, World, kafka};

const PATIENCE: Duration = Duration::from_secs(30);
const LIFECYCLE: &str = "SELECT count(*) FROM events \
     WHERE event_type IN ('job.submitted', 'job.completed', 'job.failed', 'job.cancelled')";
const COUNTED: &str = "SELECT coalesce(sum(value::numeric), 0)::bigint \
     FROM read_models, jsonb_each_text(data::jsonb) AS counter(name, value) \
     WHERE model = 'jobs_per_minute' AND name IN ('submitted', 'completed', 'failed', 'cancelled')";

/// Somebody else's client of the group.
pub fn foreign(group: &str) -> ClientConfig {
    let mut config = kafka();
    config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    config
}

/// All partitions of the topic.
pub fn partitions(consumer: &BaseConsumer, topic: &str) -> TopicPartitionList {
    let known = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in known.topics()[0].partitions() {
        list.add_partition(topic, partition.id());
    }
    assert!(list.count() > 0, "{topic} has partitions");
    list
}

/// Its next member begins with the oldest record, as where offsets have expired or were reset.
fn lose_offsets(group: &str, topic: &str) {
    let consumer: BaseConsumer = foreign(group).create().unwrap();
    let mut oldest = partitions(&consumer, topic);
    oldest.set_all_offsets(Offset::Offset(0)).unwrap();
    // The broker refuses it while the group has members: the gateway's has just left.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = consumer.commit(&oldest, CommitMode::Sync) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn repeats_absorbed(gateway: &Gateway) -> f64 {
    metric(gateway, "inbox_hits_total", "metrics")
}

fn number(world: &World, query: &str) -> u64 {
    psql(&world.database, query).parse().unwrap()
}

/// A member of the group that handles nothing: records of its partitions wait until it leaves.
struct Idler {
    stop: Arc<AtomicBool>,
    partitions: Arc<AtomicU64>,
    records: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Idler {
    fn join(group: &str, topic: &str) -> Self {
        let mut config = foreign(group);
        let consumer: BaseConsumer =
            config.set("partition.assignment.strategy", "cooperative-sticky").create().unwrap();
        consumer.subscribe(&[topic]).unwrap();
        let mut idler =
            Self { stop: Arc::default(), partitions: Arc::default(), records: Arc::default(), thread: None };
        let (stop, partitions, records) = (idler.stop.clone(), idler.partitions.clone(), idler.records.clone());
        // Ends with the idler. The group drops a member that does not poll.
        idler.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                    records.fetch_add(1, Ordering::Relaxed);
                }
                partitions.store(consumer.assignment().unwrap().count() as u64, Ordering::Relaxed);
            }
        }));
        await_that("partitions", PATIENCE, || idler.partitions.load(Ordering::Relaxed) > 0);
        idler
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It has left the group when its thread has ended, however.
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What the group has committed beyond the oldest record, of all partitions; asserts that nothing is
/// beyond that.
fn committed_to_the_end(group: &str, topic: &str) -> u64 {
    let consumer: BaseConsumer = foreign(group).create().unwrap();
    let committed = consumer.committed_offsets(partitions(&consumer, topic), PATIENCE).unwrap();
    let mut records = 0;
    for partition in committed.elements() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.partition(), PATIENCE).unwrap();
        let next = match partition.offset() {
            Offset::Offset(next) => next,
            _ => low,
        };
        assert_eq!(next, high, "partition {}", partition.partition());
        records += (next - low) as u64;
    }
    records
}

/// Each is an event for the projection.
fn submit(gateway: &Gateway, jobs: usize) {
    ada_submits(gateway, &external(CLUSTER), jobs);
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
    while repeats_absorbed(&gateway) < events as f64 {
        assert!(Instant::now() < deadline, "{} of {events} are read again", repeats_absorbed(&gateway));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(psql(&world.database, COUNTED), events.to_string());
    assert!(gateway.stop().success());
}

/// A store put back from a dump that was made while the projection was behind: what it has not
/// counted is in Kafka, but below the group's offsets.
#[test]
fn a_group_whose_offsets_are_ahead_of_a_restored_store_misses_nothing() {
    let Some(mut world) = World::fresh() else { return };
    let (group, topic) = (format!("{}metrics", world.prefix), format!("{}job-lifecycle", world.prefix));
    let mut gateway = Gateway::start(&world.settings());
    let idler = Idler::join(&group, &topic);
    submit(&gateway, 100);
    let missed = missed_by(&metrics::declaration());
    let others: Vec<String> =
        declarations().iter().filter(|c| c.name != metrics::declaration().name).map(missed_by).collect();
    let owed = format!("SELECT ({}) + (SELECT count(*) FROM legs WHERE state NOT IN (1, 2))", others.join(") + ("));
    await_that("all but what the idler has", PATIENCE, || {
        let had = idler.records.load(Ordering::Relaxed);
        had > 0 && number(&world, &missed) == had && number(&world, &owed) == 0
    });
    let dump = dumped(&gateway, &world);

    drop(idler);
    await_that("what the idler had", PATIENCE, || number(&world, &missed) == 0);
    let all = number(&world, LIFECYCLE);
    assert!(gateway.halt().success());
    assert_eq!(committed_to_the_end(&group, &topic), all, "a record for each event, and all are behind the group");
    put_back(&mut world, &dump);
    let behind = number(&world, &missed);
    assert_eq!((number(&world, COUNTED), number(&world, LIFECYCLE)), (all - behind, all));
    assert!(behind > 0);

    gateway.kill_and_restart(&[&world.settings()[..], &["consumer.overdue_after=1s"]].concat());
    let deadline = Instant::now() + 4 * PATIENCE;
    while number(&world, &missed) > 0 {
        assert!(Instant::now() < deadline, "{} events are not counted", number(&world, &missed));
        // What is overdue in a partition is known by later events there.
        submit(&gateway, 20);
        let look = Instant::now() + Duration::from_secs(3);
        while Instant::now() < look && number(&world, &missed) > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert!(metric(&gateway, "overdue_total", "metrics") >= behind as f64);
    until(&gateway, &[]);
    consumers_have_everything(&world);
    // No job ends here: not every consumer has something to handle.
    let ended = reconcile(&gateway, &world, &["--wait", "60s"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert!(gateway.stop().success());
}
