//! One SIGKILL of each kind under load; the rest of the list is in `make test-faults`.

use crate::aftermath::{Memory, SMALL, all_is_well};
use crate::gateway::Gateway;
use crate::play::play;
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

fn killed(node: &str) {
    brokers(&["kill", node]);
    brokers(&["start", node]);
}

/// What it had answered is there, and what it had not committed is nowhere.
#[test]
fn the_gateway_is_killed() {
    survives(&["runner.external_lease=5s"], |gateway, _, settings| gateway.kill_and_restart(settings));
}

#[test]
fn the_rabbitmq_node_that_leads_a_queue_is_killed() {
    survives(&[], |_, world, _| killed(&queue_leader(world, "job-events-audit")));
}

/// Leaders are spread over all three.
#[test]
fn a_kafka_broker_is_killed() {
    survives(&[], |_, _, _| killed("kafka1"));
}

#[test]
fn the_nats_node_that_leads_the_stream_is_killed() {
    survives(&[], |_, _, _| killed(&stream_leader()));
}

#[test]
fn postgresql_is_killed() {
    survives(&[], |_, _, _| killed("postgres"));
}

#[test]
fn the_registry_is_killed() {
    survives(&[], |_, _, _| killed("registry"));
}
