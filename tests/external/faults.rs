//! One SIGKILL of each kind under load; the rest of the list is in `make test-faults`.

use crate::gateway::Gateway;
use crate::play::{is_clean, play};
use crate::world::{World, brokers};

fn survives(node: &str) {
    let Some(world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    let report = play(&mut gateway, "150", |_| {
        brokers(&["kill", node]);
        brokers(&["start", node]);
    });
    is_clean(&report);
}

#[test]
fn the_gateway_is_killed() {
    let Some(world) = World::fresh() else { return };
    let mut settings = world.settings();
    settings.push("runner.external_lease=5s");
    let mut gateway = Gateway::start(&settings);
    let report = play(&mut gateway, "150", |gateway| gateway.kill_and_restart(&settings));
    is_clean(&report);
}

#[test]
fn a_rabbitmq_node_is_killed() {
    survives("rabbit1");
}

#[test]
fn a_kafka_broker_is_killed() {
    survives("kafka1");
}

#[test]
fn a_nats_node_is_killed() {
    survives("nats1");
}

#[test]
fn postgresql_is_killed() {
    survives("postgres");
}

#[test]
fn the_registry_is_killed() {
    survives("registry");
}
