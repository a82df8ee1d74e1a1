//! Faults that last, under load, on brokers that the tests may hurt: `make test-faults`.
//!
//! After each: every job ended, every leg is done, no screen missed anything, the brokers have
//! what the ledger says, in order, and readiness has named the fault and forgotten it.

mod disk;
mod network;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use event_gateway::consumer::declarations;
use event_gateway::domain::Id;
use lapin::options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};
use nix::sys::signal::Signal;

use crate::environment::{given, variable};
use crate::gateway::Gateway;
use crate::play::{Playing, is_clean, psql};
use crate::program::THIS_VERSION;
use crate::readiness::until;
use crate::reconcile::{AGENT, brokers_have_what_the_ledger_says};
use crate::world::{World, address, brokers};

/// An outage as operators see it.
const MINUTE: Duration = Duration::from_secs(60);
/// Longer than the timeouts that [`IMPATIENT`] sets.
const FROZEN: Duration = Duration::from_secs(15);
const IMPATIENT: [&str; 5] = [
    "rabbitmq.heartbeat=2s",
    "rabbitmq.confirm_timeout=3s",
    "kafka.request_timeout=3s",
    "nats.publish_timeout=3s",
    "store.read_timeout=1s",
];
/// Jobs a second while a fault lasts, and how many make sure that there is load.
const RATE: u64 = 10;
const SOME: usize = 50;
/// Of two gateways on one world.
const NAMES: [&str; 2] = ["first", "second"];
/// Far below what a gateway that keeps everything in memory would need.
const MEMORY_MIB: u64 = 600;

/// `None`, with the reason printed, where no brokers may be hurt.
fn world() -> Option<World> {
    if given("EVENT_GATEWAY_TEST_FAULTS").is_some_and(|value| value == "1") {
        return World::fresh();
    }
    eprintln!("SKIPPED: EVENT_GATEWAY_TEST_FAULTS=1 is not set: make test-faults");
    None
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
            std::panic::catch_unwind(|| brokers(&["up"])).ok();
        }
    }
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

/// Plays a log of this length to an agent; `fault` happens and ends meanwhile. Then all is well, and `check`
/// looks at the gateway.
fn outlives(
    world: &World,
    agent: &str,
    more: &[&str],
    length: Duration,
    fault: impl FnOnce(&Gateway),
    check: impl FnOnce(&Gateway),
) {
    let _healed = Healed;
    let gateway = started(THIS_VERSION, &[&world.settings()[..], more].concat());
    until(&gateway, &[]);
    let playing = Playing::start(&gateway, &log(&gateway, length), agent, "1");
    playing.wait_for(&gateway, SOME);
    fault(&gateway);
    is_clean(&playing.report());
    until(&gateway, &[]);
    brokers_have_what_the_ledger_says(&gateway, world);
    consumers_have_everything(world);
    check(&gateway);
    let peak = gateway.peak_memory();
    assert!(peak < MEMORY_MIB, "{peak} MiB");
    assert!(gateway.stop().success());
}

/// Each has handled each event that it handles, once.
fn consumers_have_everything(world: &World) {
    for consumer in declarations() {
        let types: Vec<String> = consumer.consumes.iter().map(|(name, _)| format!("'{name}'")).collect();
        let missing = format!(
            "SELECT count(*) FROM events AS e WHERE event_type IN ({}) AND NOT EXISTS \
               (SELECT 1 FROM inbox AS i WHERE i.consumer = '{}' AND i.event_id = e.event_id)",
            types.join(", "),
            consumer.name
        );
        let deadline = std::time::Instant::now() + MINUTE;
        while psql(&world.database, &missing) != "0" {
            assert!(std::time::Instant::now() < deadline, "{} misses events", consumer.name);
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    let audited = "SELECT count(*) - (SELECT count(*) FROM inbox WHERE consumer = 'audit') FROM audit_log \
         WHERE audit_type = 'audit.job.lifecycle'";
    assert_eq!(psql(&world.database, audited), "0");
}

/// Plays a log that is longer than `lasting` by half a minute; `fault` returns what ends it.
fn survives<End: FnOnce()>(more: &[&str], lasting: Duration, named: Option<&str>, fault: impl FnOnce(&World) -> End) {
    survives_and(more, lasting, named, fault, |_| {});
}

/// As [`survives`]; `check` looks at the gateway afterwards.
fn survives_and<End: FnOnce()>(
    more: &[&str],
    lasting: Duration,
    named: Option<&str>,
    fault: impl FnOnce(&World) -> End,
    check: impl FnOnce(&Gateway),
) {
    let Some(world) = world() else { return };
    let meanwhile = |gateway: &Gateway| {
        let end = fault(&world);
        if let Some(name) = named {
            until(gateway, &[name]);
        }
        std::thread::sleep(lasting);
        end();
    };
    outlives(&world, "external", more, lasting + Duration::from_secs(30), meanwhile, check);
}

fn killed(nodes: &'static [&'static str]) -> impl FnOnce() {
    brokers(&[&["kill"], nodes].concat());
    move || drop(brokers(&[&["start"], nodes].concat()))
}

fn frozen(node: &'static str) -> impl FnOnce() {
    brokers(&["pause", node]);
    move || drop(brokers(&["resume", node]))
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn rabbitmq_without_a_majority_for_a_minute() {
    survives(&[], MINUTE, Some("rabbitmq"), |_| killed(&["rabbit2", "rabbit3"]));
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn kafka_without_a_majority_for_a_minute() {
    survives(&[], MINUTE, Some("kafka"), |_| killed(&["kafka2", "kafka3"]));
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn nats_without_a_majority_for_a_minute() {
    survives(&[], MINUTE, Some("nats"), |_| killed(&["nats2", "nats3"]));
}

/// Each broker in turn: one of them leads partitions, one is the controller.
#[test]
#[ignore = "kills nodes: make test-faults"]
fn every_kafka_broker_is_killed_in_turn() {
    survives(&[], FROZEN, None, |_| {
        for node in ["kafka1", "kafka2", "kafka3"] {
            brokers(&["kill", node]);
            brokers(&["start", node]);
        }
        || {}
    });
}

#[test]
#[ignore = "freezes nodes: make test-faults"]
fn a_rabbitmq_node_is_frozen() {
    survives(&IMPATIENT, FROZEN, None, |_| frozen("rabbit1"));
}

#[test]
#[ignore = "freezes nodes: make test-faults"]
fn a_kafka_broker_is_frozen() {
    survives(&IMPATIENT, FROZEN, None, |_| frozen("kafka1"));
}

#[test]
#[ignore = "freezes nodes: make test-faults"]
fn a_nats_node_is_frozen() {
    survives(&IMPATIENT, FROZEN, None, |_| frozen("nats1"));
}

#[test]
#[ignore = "kills the registry: make test-faults"]
fn the_registry_is_away_for_a_minute() {
    survives(&[], MINUTE, Some("schema-registry"), |_| killed(&["registry"]));
}

#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_memory_alarm_for_a_minute() {
    let limit = |limit: &str| {
        for node in ["rabbit1", "rabbit2", "rabbit3"] {
            brokers(&["rabbitmqctl", node, "set_vm_memory_high_watermark", "absolute", limit]);
        }
    };
    survives(&[], MINUTE, Some("rabbitmq"), |_| {
        limit("1");
        move || limit("2GB")
    });
}

/// All replicas are wanted, one is away.
#[test]
#[ignore = "kills nodes: make test-faults"]
fn too_few_replicas_in_sync() {
    survives(&[], FROZEN, Some("kafka"), |world| {
        for topic in ["job-lifecycle", "commands", "audit-trail", "job-metrics"] {
            let topic = format!("{}{topic}", world.prefix);
            let what = ["--entity-type", "topics", "--entity-name", &topic];
            let change = ["--alter", "--add-config", "min.insync.replicas=3"];
            brokers(&[&["kafka", "kafka.admin.ConfigCommand"], &what[..], &change].concat());
        }
        killed(&["kafka3"])
    });
}

/// As a client of its own.
fn rabbitmq<T>(world: &World, act: impl AsyncFnOnce(&Channel) -> Result<T, lapin::Error>) -> T {
    let urls = address("RABBITMQ").unwrap();
    let url = urls.split(',').next().unwrap().replace("/%2f", &format!("/{}", world.vhost));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let done = act(&channel).await.unwrap();
        connection.close(0, "done".into()).await.unwrap();
        done
    })
}

/// Somebody's queue takes a hundred messages and no more: all publishers of its exchange wait.
#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_queue_is_at_its_limit() {
    survives(&[], FROZEN, None, |world| {
        rabbitmq(world, async |channel| {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(100));
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare("full".into(), durable, arguments).await?;
            let (exchange, key): (ShortString, ShortString) = ("job.events".into(), "job.#".into());
            channel.queue_bind("full".into(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await
        });
        let vhost = world.vhost.clone();
        move || drop(brokers(&["rabbitmqctl", "rabbit1", "delete_queue", "-p", &vhost, "full"]))
    });
}

/// All its bindings go with it.
#[test]
#[ignore = "deletes an exchange: make test-faults"]
fn an_exchange_is_deleted_under_load() {
    survives(&[], Duration::ZERO, None, |world| {
        for _ in 0..5 {
            rabbitmq(world, async |channel| {
                channel.exchange_delete("job.events".into(), ExchangeDeleteOptions::default()).await
            });
            std::thread::sleep(Duration::from_secs(2));
        }
        || {}
    });
}

/// What other queues of the exchange take is confirmed all the same.
#[test]
#[ignore = "deletes bindings and a queue: make test-faults"]
fn a_binding_and_a_queue_are_deleted_under_load() {
    let fault = |world: &World| {
        for _ in 0..5 {
            rabbitmq(world, async |channel| {
                let [queue, exchange, key]: [ShortString; 3] =
                    ["job-events-audit", "job.events", "job.#"].map(Into::into);
                channel.queue_unbind(queue, exchange, key, FieldTable::default()).await
            });
            std::thread::sleep(Duration::from_secs(2));
        }
        rabbitmq(world, async |channel| {
            channel.queue_delete("job-events-api".into(), QueueDeleteOptions::default()).await
        });
        || {}
    };
    survives_and(&["consumer.overdue_after=5s"], Duration::ZERO, None, fault, |gateway| {
        let metrics = scraped(gateway);
        let overdue = |line: &&str| line.starts_with("event_gateway_overdue_total{consumer=\"audit\"}");
        let line = metrics.lines().find(overdue).unwrap_or_else(|| panic!("{metrics}"));
        assert!(!line.ends_with(" 0"), "nothing was lost: {line}");
    });
}

pub fn scraped(gateway: &Gateway) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { reqwest::get(format!("{}/metrics", gateway.url())).await.unwrap().text().await.unwrap() })
}

/// The queues of single instances go with them.
#[test]
#[ignore = "closes connections: make test-faults"]
fn every_connection_to_rabbitmq_is_closed_again_and_again() {
    survives(&[], Duration::ZERO, None, |world| {
        for _ in 0..5 {
            brokers(&["rabbitmqctl", "rabbit1", "close_all_connections", "--vhost", &world.vhost, "by a test"]);
            std::thread::sleep(Duration::from_secs(3));
        }
        || {}
    });
}

#[test]
#[ignore = "freezes PostgreSQL: make test-faults"]
fn postgresql_is_frozen() {
    survives(&IMPATIENT, FROZEN, Some("store"), |_| frozen("postgres"));
}

/// As a primary that becomes a standby, and a primary again.
#[test]
#[ignore = "long: make test-faults"]
fn postgresql_is_read_only() {
    let end_sessions = |database: &str| {
        psql(
            "postgres",
            &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"),
        );
    };
    survives(&[], FROZEN, Some("store"), |world| {
        let database = world.database.clone();
        let set = move |on: &str| {
            psql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = {on}"));
            end_sessions(&database);
        };
        set("on");
        move || set("off")
    });
}

/// A gateway that knows the agent `Cluster`, too, whose commands go through JetStream.
fn started(binary: &str, settings: &[&str]) -> Gateway {
    let mut gateway = Gateway::start_as(Path::new(binary), settings);
    gateway.program.file("config/agents.toml", AGENT);
    gateway.restart(settings);
    gateway
}

/// Two gateways of a version on this world.
fn two(binary: &str, world: &World) -> [Gateway; 2] {
    NAMES.map(|name| started(binary, &[&world.settings()[..], &[&format!("instance.id={name}")]].concat()))
}

fn submit(gateway: &Gateway) -> Id {
    let submitted = gateway.run(&["jobs", "submit", "--agent", "Cluster", "--dataset", "d"]);
    assert_eq!(submitted.code, 0, "{}", submitted.stderr);
    submitted.stdout.trim().parse().unwrap()
}

/// Waits until every leg of the job's broker is settled.
fn published(gateway: &Gateway, job: Id) {
    let deadline = std::time::Instant::now() + MINUTE;
    loop {
        let ledger = gateway.run(&["ledger", &job.to_string(), "--output", "json"]);
        let events = ledger.json()["items"].as_array().cloned().unwrap_or_default();
        let mut legs = events.iter().filter_map(|event| event["legs"].as_array()).flatten();
        let settled = |leg: &serde_json::Value| leg["state"] == "done" || leg["state"] == "skipped";
        if !events.is_empty() && legs.all(settled) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{}", ledger.stdout);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Freezes or kills the one that owes messages; the other publishes them.
fn is_taken_over(signal: Signal) -> Option<(World, [Gateway; 2])> {
    let world = world()?;
    let _healed = Healed;
    let gateways = two(THIS_VERSION, &world);
    let [first, second] = &gateways;
    until(first, &[]);
    // What the first accepts now it cannot publish.
    brokers(&["kill", "nats1", "nats2", "nats3"]);
    let jobs: Vec<Id> = (0..5).map(|_| submit(first)).collect();
    first.signal(signal);
    brokers(&["start", "nats1", "nats2", "nats3"]);
    jobs.iter().for_each(|job| published(second, *job));
    Some((world, gateways))
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn a_killed_gateway_is_taken_over() {
    let Some((world, [_, second])) = is_taken_over(Signal::SIGKILL) else { return };
    brokers_have_what_the_ledger_says(&second, &world);
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn a_frozen_gateway_is_taken_over_and_does_no_harm_when_it_wakes() {
    let Some((world, [first, second])) = is_taken_over(Signal::SIGSTOP) else { return };
    first.signal(Signal::SIGCONT);
    until(&first, &[]);
    let job = submit(&first);
    published(&first, job);
    brokers_have_what_the_ledger_says(&second, &world);
}

/// Each has users and a cluster of its own; both are stopped and started again, one by one.
fn are_rolled(world: &World, mut gateways: [Gateway; 2]) {
    let agents = ["external", "Cluster"];
    let playing: Vec<Playing> = (gateways.iter().zip(agents))
        .map(|(gateway, agent)| Playing::start(gateway, &log(gateway, MINUTE), agent, "1"))
        .collect();
    for (gateway, playing) in gateways.iter().zip(&playing) {
        playing.wait_for(gateway, SOME);
    }
    for (gateway, name) in gateways.iter_mut().zip(NAMES) {
        gateway.binary = THIS_VERSION.into();
        gateway.restart(&[&world.settings()[..], &[&format!("instance.id={name}")]].concat());
        until(gateway, &[]);
    }
    playing.into_iter().for_each(|playing| is_clean(&playing.report()));
    brokers_have_what_the_ledger_says(&gateways[0], world);
}

#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_restart_under_load() {
    let Some(world) = world() else { return };
    are_rolled(&world, two(THIS_VERSION, &world));
}

/// From an earlier build, which `EVENT_GATEWAY_TEST_PREVIOUS` names, to this one.
#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_upgrade_under_load() {
    let Some(world) = world() else { return };
    let Some(previous) = variable("EVENT_GATEWAY_TEST_PREVIOUS") else { return };
    are_rolled(&world, two(&previous, &world));
}
