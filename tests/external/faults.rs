//! One SIGKILL of each kind under load; the rest of the list is in `make test-faults`.

use crate::aftermath::{Memory, SMALL, all_is_well};
use crate::gateway::Gateway;
use crate::play::play;
use crate::readiness::until;
use crate::work_queue::is_consumed_despite;
use crate::world::{World, brokers, queue_leader, stream_leader};

fn survives(more: &[&str], fault: impl FnOnce(&mut Gateway, &World, &[&str])) {
    let Some(world) = World::fresh() else { return };
    let settings = [&world.settings()[..], more].concat();
    let mut gateway = Gateway::start(&settings);
    let mut memory = None;
    play(&mut gateway, "150", |gateway| {
        memory = Some(Memory::of(gateway));
        fault(gateway, &world, &settings);
    });
    all_is_well(&gateway, &world);
    memory.unwrap().sufficed(&gateway, SMALL);
}

/// Other tests need this node, too, whatever becomes of this one.
struct Started(String);

impl Drop for Started {
    fn drop(&mut self) {
        brokers(&["start", &self.0]);
    }
}

fn killed(node: &str) -> Started {
    brokers(&["kill", node]);
    Started(node.to_owned())
}

/// Readiness names it, also where two others take over.
fn killed_and_named(gateway: &Gateway, node: &str, component: &str) {
    let _started = killed(node);
    until(gateway, &[component]);
}

/// What it had answered is there, and what it had not committed is nowhere.
#[test]
fn the_gateway_is_killed() {
    survives(&["runner.external_lease=5s"], |gateway, _, settings| gateway.kill_and_restart(settings));
}

#[test]
fn the_rabbitmq_node_that_leads_a_queue_is_killed() {
    survives(&[], |gateway, world, _| {
        killed_and_named(gateway, &queue_leader(world, "job-events-audit"), "rabbitmq");
    });
}

/// Leaders are spread over all three.
#[test]
fn a_kafka_broker_is_killed() {
    survives(&[], |gateway, _, _| killed_and_named(gateway, "kafka1", "kafka"));
}

/// The gateway's own runner reads from the stream meanwhile.
#[test]
fn the_nats_node_that_leads_the_stream_is_killed() {
    survives(&[], |gateway, world, _| {
        is_consumed_despite(gateway, world, || {
            let started = killed(&stream_leader());
            until(gateway, &["nats"]);
            move || drop(started)
        });
    });
}

#[test]
fn postgresql_is_killed() {
    survives(&[], |gateway, _, _| killed_and_named(gateway, "postgres", "store"));
}

#[test]
fn the_registry_is_killed() {
    survives(&[], |gateway, _, _| killed_and_named(gateway, "registry", "schema-registry"));
}
