//! A network that is late, resets connections, falls silent, and is slow: one after the other,
//! under load, between the gateway and all nodes of one kind.

use std::thread::sleep;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};

use super::{FROZEN, IMPATIENT, outlives, world};
use crate::aftermath::all_is_well;
use crate::environment::variable;
use crate::gateway::Gateway;
use crate::proxy::{Mode, Proxy};
use crate::readiness::until;
use crate::world::World;

const LATE: Mode = Mode::Late(Duration::from_millis(200));
const SLOW: Mode = Mode::Slow(1000);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
/// For whoever was refused to be answered before the next fault: clients give up after a minute.
const CALM: Duration = Duration::from_secs(10);
/// All faults and what is between them.
const LENGTH: Duration = Duration::from_secs(130);

/// Proxies in front of all nodes that a setting names.
struct Network {
    setting: String,
    proxies: Vec<Proxy>,
    /// Carries them.
    _runtime: Runtime,
}

impl Network {
    fn of(setting: &str, proxies: impl AsyncFnOnce() -> Vec<Proxy>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let proxies = runtime.block_on(proxies());
        let urls: Vec<&str> = proxies.iter().map(|proxy| &*proxy.url).collect();
        Self { setting: format!("{setting}={}", urls.join(",")), proxies, _runtime: runtime }
    }

    /// In front of what the world's setting of this name says.
    fn before(world: &World, setting: &str) -> Self {
        let mut known = world.settings().into_iter();
        let servers = known.find_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).unwrap();
        Self::of(setting, async || join_all(servers.split(',').map(Proxy::before)).await)
    }

    /// Kafka's brokers say where clients have to go next: there the proxies have to be.
    fn before_kafka() -> Option<Self> {
        let ways = variable("EVENT_GATEWAY_TEST_KAFKA_PROXIED")?;
        let ways = ways.split(',').map(|way| way.split_once('=').unwrap());
        Some(Self::of("kafka.brokers", async || join_all(ways.map(|(at, server)| Proxy::at(at, server))).await))
    }

    fn set(&self, mode: Mode) {
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
