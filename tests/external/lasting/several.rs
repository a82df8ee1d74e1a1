//! Two gateways on one world: one is killed, frozen or replaced under load.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::network::Network;
use super::{FROZEN, Healed, MINUTE, SOME, log, world};
use crate::aftermath::{Memory, SMALL, all_is_well};
use crate::environment::variable;
use crate::gateway::Gateway;
use crate::play::{AGENTS, Playing, psql};
use crate::program::THIS_VERSION;
use crate::proxy::Mode;
use crate::readiness::until;
use crate::reconcile::{broker, reconcile};
use crate::waiting::becomes;
use crate::world::World;

/// Of two gateways on one world.
const NAMES: [&str; 2] = ["instance.id=first", "instance.id=second"];
const LEASE: &str = "instance.lease=3s";
/// Within seconds: the lease, which may just have been renewed, and ten more.
const TAKEN_OVER: Duration = Duration::from_secs(3 + 10);
/// Nothing arrives before the mode changes: tests are shorter.
const HELD_BACK: Mode = Mode::Late(Duration::from_secs(3600));

/// Cancels through this one what runs and whose command another has not published yet: that one's
/// command has to be the first in Kafka.
fn cancels_what_is_owed(gateway: &Gateway, world: &World, owner: &str) {
    let running = format!(
        "SELECT DISTINCT j.id FROM jobs AS j JOIN events AS e ON e.aggregate_id = j.id::text \
         JOIN legs USING (position) \
         WHERE j.status = 'RUNNING' AND e.aggregate = 'job_command' AND owner = {owner} AND legs.state = 0 LIMIT 5"
    );
    let running = psql(&world.database, &running);
    // What it had sent of a COMMIT may end one of them.
    let cancelled = running.lines().filter(|job| gateway.run(&["jobs", "cancel", job]).code == 0);
    assert!(cancelled.count() > 0, "none of these was cancelled: {running}");
}

/// The first has windows to every broker in flight when it gets the signal; `back` is how it comes
/// back, when the second has published what the first had committed. Both have load all the time.
/// How many records are in Kafka more than once then.
fn is_taken_over(signal: Signal, back: impl FnOnce(&mut Gateway, &[&str])) -> Option<u64> {
    let world = world()?;
    let _healed = Healed;
    let networks =
        [Network::before(&world, "rabbitmq.urls"), Network::before_kafka()?, Network::before(&world, "nats.urls")];
    let ways = networks.each_ref().map(|network| &*network.setting);
    // A frozen one is given up by RabbitMQ as well: what it was to handle has new readers.
    let shared = [&world.settings()[..], &[LEASE, "rabbitmq.heartbeat=5s"]].concat();
    let settings = [&shared[..], &ways, &NAMES[..1]].concat();
    let mut first = Gateway::start(&settings);
    let second = Gateway::start(&[&shared[..], &NAMES[1..]].concat());
    [&first, &second].into_iter().for_each(|gateway| until(gateway, &[]));
    // Only jobs of the last agent go to JetStream: they are the first's.
    let playing: Vec<Playing> = ([&second, &first].into_iter().zip(AGENTS))
        .map(|(gateway, agent)| Playing::start(gateway, &log(gateway, MINUTE), &[agent], "1"))
        .collect();
    playing.iter().for_each(|playing| playing.wait_for(&second, SOME));
    let memory = [&first, &second].map(Memory::of);

    let sql = |query: &str| psql(&world.database, query);
    let owner = sql("SELECT owner FROM owners WHERE instance = 'first' AND adopted_by IS NULL");
    let newest = sql("SELECT max(owner) FROM owners");
    networks.iter().for_each(|network| network.set(HELD_BACK));
    // Windows go at least every 0.6 s: what is older is on its way.
    let in_flight = format!(
        "SELECT count(DISTINCT broker) FROM legs \
         WHERE owner = {owner} AND state = 0 AND at < clock_timestamp() - interval '1 s'"
    );
    becomes(&world, Instant::now() + MINUTE, &in_flight, "3");
    first.signal(signal);
    let gone = Instant::now();
    cancels_what_is_owed(&second, &world, &owner);
    let owed = format!("SELECT count(*) FROM legs WHERE owner = {owner} AND state NOT IN (1, 2)");
    becomes(&world, gone + TAKEN_OVER, &owed, "0");
    println!("taken over after {} ms", gone.elapsed().as_millis());
    let legs = format!("SELECT count(*) FROM legs WHERE owner = {owner}");
    let committed = sql(&legs);

    // What was in flight arrives, where its connections are still there.
    networks.iter().for_each(|network| network.set(Mode::Open));
    back(&mut first, &settings);
    let enrolled = format!("SELECT count(*) FROM owners WHERE instance = 'first' AND owner > {newest}");
    becomes(&world, Instant::now() + MINUTE, &enrolled, "1");
    playing.into_iter().for_each(|playing| drop(playing.ends_well()));
    all_is_well(&first, &world);
    until(&second, &[]);
    assert_eq!(sql(&legs), committed, "events were committed for an owner that others answer for");
    let published = format!("SELECT count(DISTINCT broker) FROM legs WHERE owner > {newest} AND state = 1");
    assert_eq!(sql(&published), "3", "it does not go on with every broker");
    for (memory, gateway) in memory.iter().zip([&first, &second]) {
        memory.sufficed(gateway, SMALL);
    }
    let found = reconcile(&first, &world, &["--wait", "60s"]).json();
    assert!(first.stop().success() && second.stop().success());
    Some(broker(&found, "kafka")["duplicates"]["count"].as_u64().unwrap())
}

#[test]
#[ignore = "long: make test-faults"]
fn a_killed_gateway_is_taken_over_under_load() {
    is_taken_over(Signal::SIGKILL, Gateway::kill_and_restart);
}

#[test]
#[ignore = "long: make test-faults"]
fn a_frozen_gateway_is_taken_over_under_load_and_does_no_harm_when_it_wakes() {
    let twice = is_taken_over(Signal::SIGSTOP, |first, _| {
        std::thread::sleep(FROZEN);
        first.signal(Signal::SIGCONT);
    });
    // Its records came late, after the second's: the inbox absorbs them.
    assert_ne!(twice, Some(0), "no window was in flight");
}

/// A version to come migrates the database: a column more in every table. sqlx notes it so.
fn a_later_version_migrates(world: &World) {
    let sql = |query: &str| psql(&world.database, query);
    let tables = sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'");
    assert!(tables.lines().any(|table| table == "events"), "{tables}");
    for table in tables.lines() {
        sql(&format!("ALTER TABLE {table} ADD COLUMN later integer NOT NULL DEFAULT 0"));
    }
    sql("CREATE TABLE later (id bigint PRIMARY KEY)");
    sql("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9001, 'one more column', true, '', 1)");
}

/// Two of a version have users and a cluster of their own. A later version migrates meanwhile, then both
/// are stopped and started again as this version, one by one.
fn are_rolled(world: &World, binary: &str) {
    let settings = |id| [&world.settings()[..], &[id]].concat();
    let mut gateways = NAMES.map(|id| Gateway::start_as(Path::new(binary), &settings(id)));
    let playing: Vec<Playing> = (gateways.iter().zip(AGENTS))
        .map(|(gateway, agent)| Playing::start(gateway, &log(gateway, MINUTE), &[agent], "1"))
        .collect();
    for (gateway, playing) in gateways.iter().zip(&playing) {
        playing.wait_for(gateway, SOME);
    }
    a_later_version_migrates(world);
    let jobs: usize = psql(&world.database, "SELECT count(*) FROM jobs").parse().unwrap();
    let more = format!("SELECT count(*) >= {} FROM jobs", jobs + 2 * SOME);
    becomes(world, Instant::now() + MINUTE, &more, "t");
    for (gateway, id) in gateways.iter_mut().zip(NAMES) {
        gateway.binary = THIS_VERSION.into();
        gateway.restart(&settings(id));
        until(gateway, &[]);
    }
    playing.into_iter().for_each(|playing| drop(playing.ends_well()));
    all_is_well(&gateways[0], world);
}

/// This version is the one before: it goes on, and can be started again.
#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_restart_under_load() {
    let Some(world) = world() else { return };
    are_rolled(&world, THIS_VERSION);
}

/// From an earlier build, which `EVENT_GATEWAY_TEST_PREVIOUS` names, to this one.
#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_upgrade_under_load() {
    let Some(world) = world() else { return };
    let Some(previous) = variable("EVENT_GATEWAY_TEST_PREVIOUS") else { return };
    are_rolled(&world, &previous);
}
