//! A network that is late, resets connections, falls silent, and is slow: one after the other,
//! under load, between the gateway and all nodes of one kind.

use std::thread::sleep;
use std::time::Duration;

use event_gateway::domain::Broker;
use futures_util::future::join_all;
use tokio::runtime::Runtime;

use super::{AROUND, FROZEN, IMPATIENT, outlives, world};
use crate::aftermath::all_is_well;
use crate::environment::variable;
use crate::gateway::Gateway;
use crate::play::psql;
use crate::proxy::{Mode, Proxy};
use crate::readiness::until;
use crate::runtime::runtime_beside;
use crate::world::World;

const LATE: Mode = Mode::Late(Duration::from_millis(200));
const SLOW: Mode = Mode::Slow(1000);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
/// For whoever was refused to be answered before the next fault: clients give up after a minute.
const CALM: Duration = Duration::from_secs(10);
/// A lane with room for what has to wait for one broker in half a minute, without what waits behind it.
const LANE: [&str; 1] = ["relay.lane_capacity=1024"];
/// Half of what others lead: of twenty jobs a second, with four records and more each.
const ENOUGH: u64 = 800;
/// All faults and what is between them.
const LENGTH: Duration = Duration::from_secs(210);

/// Proxies in front of all nodes that a setting names.
pub(super) struct Network {
    pub(super) setting: String,
    proxies: Vec<Proxy>,
    /// Carries them.
    _runtime: Runtime,
}

impl Network {
    fn of(setting: &str, proxies: impl AsyncFnOnce() -> Vec<Proxy>) -> Self {
        let runtime = runtime_beside();
        let proxies = runtime.block_on(proxies());
        let urls: Vec<&str> = proxies.iter().map(|proxy| &*proxy.url).collect();
        Self { setting: format!("{setting}={}", urls.join(",")), proxies, _runtime: runtime }
    }

    /// In front of what the world's setting of this name says.
    pub(super) fn before(world: &World, setting: &str) -> Self {
        let mut known = world.settings().into_iter();
        let servers = known.find_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).unwrap();
        Self::of(setting, async || join_all(servers.split(',').map(Proxy::before)).await)
    }

    /// Kafka's brokers say where clients have to go next: there the proxies have to be.
    pub(super) fn before_kafka() -> Option<Self> {
        let ways = variable("EVENT_GATEWAY_TEST_KAFKA_PROXIED")?;
        let ways = ways.split(',').map(|way| way.split_once('=').unwrap());
        Some(Self::of("kafka.brokers", async || join_all(ways.map(|(at, server)| Proxy::at(at, server))).await))
    }

    pub(super) fn set(&self, mode: Mode) {
        self.proxies.iter().for_each(|proxy| proxy.set(mode));
    }

    /// Does it all; readiness calls it by this name.
    fn misbehaves(&self, gateway: &Gateway, name: &str) {
        self.set(LATE);
        sleep(FROZEN);
        // That is bearable.
        until(gateway, &[]);
        for _ in 0..5 {
            self.set(Mode::Cut);
            sleep(Duration::from_millis(500));
            self.set(Mode::Open);
            sleep(Duration::from_secs(3));
        }
        until(gateway, &[]);
        self.set(Mode::Cut);
        until(gateway, &[name]);
        self.set(Mode::Open);
        until(gateway, &[]);
        for fault in [Mode::Silent, SLOW] {
            self.set(fault);
            until(gateway, &[name]);
            sleep(HALF_A_MINUTE);
            self.set(Mode::Open);
            until(gateway, &[]);
            sleep(CALM);
        }
    }

    fn is_outlived(&self, world: &World, name: &str) {
        let more = [&IMPATIENT[..], &[&*self.setting]].concat();
        outlives(world, &more, LENGTH, |gateway| self.misbehaves(gateway, name), all_is_well);
    }
}

#[test]
#[ignore = "long: make test-faults"]
fn rabbitmq_is_far_and_badly_connected() {
    let Some(world) = world() else { return };
    Network::before(&world, "rabbitmq.urls").is_outlived(&world, "rabbitmq");
}

#[test]
#[ignore = "long: make test-faults"]
fn kafka_is_far_and_badly_connected() {
    let Some(world) = world() else { return };
    let Some(network) = Network::before_kafka() else { return };
    network.is_outlived(&world, "kafka");
}

#[test]
#[ignore = "long: make test-faults"]
fn nats_is_far_and_badly_connected() {
    let Some(world) = world() else { return };
    Network::before(&world, "nats.urls").is_outlived(&world, "nats");
}

#[test]
#[ignore = "long: make test-faults"]
fn postgresql_is_far_and_badly_connected() {
    let Some(world) = world() else { return };
    Network::before(&world, "store.url").is_outlived(&world, "store");
}

/// The cluster hears it: nobody else leads its partitions. Whoever is not of those goes on, though the
/// others would fill a lane.
#[test]
#[ignore = "long: make test-faults"]
fn a_kafka_broker_is_not_heard() {
    let Some(world) = world() else { return };
    let Some(network) = Network::before_kafka() else { return };
    let more = [&IMPATIENT[..], &LANE, &[&*network.setting]].concat();
    let in_kafka = || -> u64 {
        let done = format!("SELECT count(*) FROM legs WHERE state = 1 AND broker = {}", Broker::Kafka as i16);
        psql(&world.database, &done).parse().unwrap()
    };
    let meanwhile = |gateway: &Gateway| {
        network.proxies[0].set(Mode::Silent);
        until(gateway, &["kafka"]);
        let before = in_kafka();
        sleep(HALF_A_MINUTE);
        let since = in_kafka() - before;
        println!("{since} records were published in half a minute");
        assert!(since > ENOUGH, "{since}");
        network.proxies[0].set(Mode::Open);
    };
    outlives(&world, &more, HALF_A_MINUTE + AROUND, meanwhile, all_is_well);
}
