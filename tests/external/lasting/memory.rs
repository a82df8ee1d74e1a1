//! What waits for a broker is in the store, and not in memory, however much it is.

use event_gateway::domain::Broker;

use super::user::User;
use super::{Healed, RABBITS, SHORT_LANES, mostly_in_the_store, world};
use crate::aftermath::{Memory, all_is_well};
use crate::gateway::Gateway;
use crate::readiness::until;
use crate::reconcile::{DATASET, submitted};
use crate::world::brokers;

/// Of each job a gateway would keep 64 KiB in memory, as JSON and as Avro: 400 MiB.
const PARAMS: usize = 32 << 10;
const BATCHES: usize = 64;
const BATCH: usize = 100;
/// In MiB: the lanes of a broker read 512 of these at once from the store.
const PAGES: u64 = 200;

#[test]
#[ignore = "kills nodes: make test-faults"]
fn what_waits_for_rabbitmq_is_not_kept_in_memory() {
    is_not_kept_in_memory(Broker::Rabbitmq, "rabbitmq", &RABBITS);
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn what_waits_for_kafka_is_not_kept_in_memory() {
    is_not_kept_in_memory(Broker::Kafka, "kafka", &["kafka1", "kafka2", "kafka3"]);
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn what_waits_for_nats_is_not_kept_in_memory() {
    is_not_kept_in_memory(Broker::Nats, "nats", &["nats1", "nats2", "nats3"]);
}

fn is_not_kept_in_memory(broker: Broker, named: &str, nodes: &[&str]) {
    let Some(world) = world() else { return };
    let _healed = Healed;
    let gateway = Gateway::start(&[&world.settings()[..], &SHORT_LANES].concat());
    let user = User::of(&gateway);
    // The orchestrator has to do with jobs that end only.
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    // What its clients buffer they buffer now.
    user.submits_batch(BATCH, PARAMS);
    all_is_well(&gateway, &world);
    let memory = Memory::of(&gateway);
    brokers(&[&["kill"], nodes].concat());
    until(&gateway, &[named]);
    for _ in 0..BATCHES {
        user.submits_batch(BATCH, PARAMS);
    }
    mostly_in_the_store(&world.database, broker);
    brokers(&[&["start"], nodes].concat());
    all_is_well(&gateway, &world);
    memory.sufficed(&gateway, PAGES);
    assert!(gateway.stop().success());
}
