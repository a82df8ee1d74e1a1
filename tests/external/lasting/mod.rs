//! Faults that last, under load, on brokers that the tests may hurt: `make test-faults`.
//!
//! After each: every job ended, every leg is done, no screen missed anything, the brokers have
//! what the ledger says, in order, consumers have had each event once, memory was bounded, and
//! readiness has named the fault and forgotten it.

mod disk;
mod memory;
mod network;
mod postgresql;
mod rabbitmq;
mod several;
mod user;

use std::fmt::Write as _;
use std::time::Duration;

use event_gateway::domain::Broker;

use crate::aftermath::{Memory, SMALL, all_is_well};
use crate::environment::given;
use crate::gateway::Gateway;
use crate::play::{AGENTS, Playing, psql};
use crate::readiness::{scraped, until};
use crate::work_queue::is_consumed_despite;
use crate::world::{World, brokers, stream_leader};

/// An outage as operators see it.
const MINUTE: Duration = Duration::from_secs(60);
/// Longer than the timeouts that [`IMPATIENT`] sets, and than those of the store's statements.
const FROZEN: Duration = Duration::from_secs(25);
const IMPATIENT: [&str; 6] = [
    "rabbitmq.heartbeat=2s",
    "rabbitmq.confirm_timeout=3s",
    "kafka.request_timeout=3s",
    "kafka.delivery_timeout=10s",
    "nats.publish_timeout=3s",
    "store.read_timeout=1s",
];
/// Lanes that soon have to leave it to the store what waits.
const SHORT_LANES: [&str; 2] = ["relay.lane_capacity=64", "relay.window=64"];
/// What such a lane has in memory at most while its broker is away: taken in, and arrived.
const LANE_HOLDS: u64 = 2 * 64;
/// Jobs a second of each agent while a fault lasts, and how many make sure that there is load.
const RATE: u64 = 10;
const SOME: usize = 50;
/// By which the load is longer than a fault: for the fault to be named, and its end.
const AROUND: Duration = Duration::from_secs(60);
/// What RabbitMQ's nodes may use: deploy/brokers/rabbitmq.conf.
const MEMORY: &str = "2GB";
const RABBITS: [&str; 3] = ["rabbit1", "rabbit2", "rabbit3"];

/// `None`, with the reason printed, where no brokers may be hurt.
fn world() -> Option<World> {
    if given("EVENT_GATEWAY_TEST_FAULTS").is_some_and(|value| value == "1") {
        return World::fresh();
    }
    eprintln!("SKIPPED: EVENT_GATEWAY_TEST_FAULTS=1 is not set: make test-faults");
    None
}

/// Above its limit a node of RabbitMQ takes no more messages.
fn limit_memory(node: &str, limit: &str) {
    brokers(&["rabbitmqctl", node, "set_vm_memory_high_watermark", "absolute", limit]);
}

/// Whatever a failed test left broken is not the next one's.
struct Healed;

impl Drop for Healed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let nodes = ["rabbit", "kafka", "nats"].map(|kind| (1..=3).map(move |number| format!("{kind}{number}")));
            for node in nodes.into_iter().flatten().chain(["registry".into(), "postgres".into()]) {
                // Most are not frozen.
                std::panic::catch_unwind(|| brokers(&["resume", &node])).ok();
            }
            // Killed ones begin with this limit; the others are not healthy with an alarm.
            for node in RABBITS {
                std::panic::catch_unwind(|| limit_memory(node, MEMORY)).ok();
            }
            std::panic::catch_unwind(|| brokers(&["up"])).ok();
        }
    }
}

/// Jobs that were answered 201.
fn accepted(gateway: &Gateway) -> u64 {
    let metrics = scraped(gateway);
    let jobs = metrics.lines().find_map(|line| line.strip_prefix("event_gateway_accepted_total{kind=\"job\"} "));
    jobs.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

/// A workload log of [`RATE`] one-second jobs a second for so long, of seven users.
fn log(gateway: &Gateway, time: Duration) -> String {
    let mut text = String::from("; Version: 2.2\n");
    for job in 0..RATE * time.as_secs() {
        let (number, at, user) = (job + 1, job / RATE, job % 7 + 1);
        writeln!(text, "{number} {at} -1 1 1 -1 -1 1 1 -1 1 {user} 1 1 1 -1 -1 -1").unwrap();
    }
    gateway.program.file("lasting.swf", &text).to_str().unwrap().to_owned()
}

/// Plays a log of this length to all agents; `fault` happens and ends meanwhile. Then it needed no
/// more memory than is fair, and `check` says what else holds, mostly that [`all_is_well`].
fn outlives(
    world: &World,
    more: &[&str],
    length: Duration,
    fault: impl FnOnce(&Gateway),
    check: impl FnOnce(&Gateway, &World),
) {
    let _healed = Healed;
    let gateway = Gateway::start(&[&world.settings()[..], more].concat());
    until(&gateway, &[]);
    let playing = Playing::start(&gateway, &log(&gateway, length), &AGENTS, "1");
    playing.wait_for(&gateway, SOME);
    let memory = Memory::of(&gateway);
    fault(&gateway);
    let (accepted, offered) = (accepted(&gateway), AGENTS.len() as u64 * RATE * length.as_secs());
    assert!(accepted < offered, "the load ended before the fault: {accepted} jobs of {offered}");
    playing.ends_well();
    check(&gateway, world);
    memory.sufficed(&gateway, SMALL);
    assert!(gateway.stop().success());
}

/// Plays a log that is longer than `lasting` by a minute; `fault` returns what ends it.
fn survives<End: FnOnce()>(more: &[&str], lasting: Duration, named: Option<&str>, fault: impl FnOnce(&World) -> End) {
    survives_and(more, lasting, named, fault, all_is_well);
}

/// As [`survives`]; `check` says what holds afterwards.
fn survives_and<End: FnOnce()>(
    more: &[&str],
    lasting: Duration,
    named: Option<&str>,
    fault: impl FnOnce(&World) -> End,
    check: impl FnOnce(&Gateway, &World),
) {
    let Some(world) = world() else { return };
    let meanwhile = |gateway: &Gateway| {
        lasts(gateway, lasting, named, fault(&world));
    };
    outlives(&world, more, lasting + AROUND, meanwhile, check);
}

/// A fault is on: readiness names it, and after so long `end` ends it.
fn lasts(gateway: &Gateway, lasting: Duration, named: Option<&str>, end: impl FnOnce()) {
    if let Some(name) = named {
        until(gateway, &[name]);
    }
    std::thread::sleep(lasting);
    end();
}

/// As [`survives`], without NATS; the gateway's own runner has jobs before, meanwhile and afterwards.
fn survives_without_nats<End: FnOnce()>(more: &[&str], lasting: Duration, fault: impl FnOnce(&World) -> End) {
    let Some(world) = world() else { return };
    let meanwhile = |gateway: &Gateway| {
        is_consumed_despite(gateway, &world, || {
            let end = fault(&world);
            move || lasts(gateway, lasting, Some("nats"), end)
        });
    };
    outlives(&world, more, lasting + AROUND, meanwhile, all_is_well);
}

/// As [`survives`], without a broker for a minute: its legs wait, and most of them in the store alone.
fn survives_a_minute<End: FnOnce()>(broker: Broker, named: &str, fault: impl FnOnce(&World) -> End) {
    survives(&SHORT_LANES, MINUTE, Some(named), |world| fills_the_store(world, broker, fault(world)));
}

/// `end`, before which legs wait for a broker, and most of them in the store alone.
fn fills_the_store<End: FnOnce()>(world: &World, broker: Broker, end: End) -> impl FnOnce() + use<End> {
    let database = world.database.clone();
    move || {
        mostly_in_the_store(&database, broker);
        end();
    }
}

/// More legs wait for a broker than a short lane has room for.
fn mostly_in_the_store(database: &str, broker: Broker) {
    let waiting = format!("SELECT count(*) FROM legs WHERE state = 0 AND broker = {}", broker as i16);
    let waiting: u64 = psql(database, &waiting).parse().unwrap();
    assert!(waiting > 2 * LANE_HOLDS, "{waiting} legs wait: the lane may have most of them in memory");
}

fn killed(nodes: &'static [&'static str]) -> impl FnOnce() {
    brokers(&[&["kill"], nodes].concat());
    move || drop(brokers(&[&["start"], nodes].concat()))
}

fn frozen(node: &str) -> impl FnOnce() + use<> {
    brokers(&["pause", node]);
    let node = node.to_owned();
    move || drop(brokers(&["resume", &node]))
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn rabbitmq_without_a_majority_for_a_minute() {
    survives_a_minute(Broker::Rabbitmq, "rabbitmq", |_| killed(&["rabbit2", "rabbit3"]));
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn kafka_without_a_majority_for_a_minute() {
    survives_a_minute(Broker::Kafka, "kafka", |_| killed(&["kafka2", "kafka3"]));
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn nats_without_a_majority_for_a_minute() {
    survives_without_nats(&SHORT_LANES, MINUTE, |world| {
        fills_the_store(world, Broker::Nats, killed(&["nats2", "nats3"]))
    });
}

/// Each of them leads partitions, and whichever is the controller is among them.
#[test]
#[ignore = "kills nodes: make test-faults"]
fn every_kafka_broker_is_killed_in_turn() {
    let Some(world) = world() else { return };
    let in_turn = |gateway: &Gateway| {
        for node in ["kafka1", "kafka2", "kafka3"] {
            brokers(&["kill", node]);
            until(gateway, &["kafka"]);
            brokers(&["start", node]);
            until(gateway, &[]);
        }
    };
    outlives(&world, &[], 2 * MINUTE + AROUND, in_turn, all_is_well);
}

/// Its partitions have other leaders before a message is given up; readiness says that it is missed.
#[test]
#[ignore = "freezes nodes: make test-faults"]
fn a_kafka_broker_is_frozen() {
    survives(&IMPATIENT, FROZEN, Some("kafka"), |_| frozen("kafka1"));
}

#[test]
#[ignore = "freezes nodes: make test-faults"]
fn the_nats_node_that_leads_the_stream_is_frozen() {
    survives_without_nats(&IMPATIENT, FROZEN, |_| frozen(&stream_leader()));
}

/// Nothing waits: what is registered already is known.
#[test]
#[ignore = "kills the registry: make test-faults"]
fn the_registry_is_away_for_a_minute() {
    survives(&[], MINUTE, Some("schema-registry"), |_| killed(&["registry"]));
}

/// All replicas are wanted, one is away: nothing is written.
#[test]
#[ignore = "kills nodes: make test-faults"]
fn too_few_replicas_in_sync() {
    survives_a_minute(Broker::Kafka, "kafka", |world| {
        for topic in ["job-lifecycle", "commands", "audit-trail", "job-metrics"] {
            let topic = format!("{}{topic}", world.prefix);
            let what = ["--entity-type", "topics", "--entity-name", &topic];
            let change = ["--alter", "--add-config", "min.insync.replicas=3"];
            brokers(&[&["kafka", "kafka.admin.ConfigCommand"], &what[..], &change].concat());
        }
        killed(&["kafka3"])
    });
}
