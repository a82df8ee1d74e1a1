//! What waits for a broker is in the store, and not in memory, however much it is.

use event_gateway::domain::Broker;

use super::user::User;
use super::{Healed, SHORT_LANES, mostly_in_the_store, world};
use crate::aftermath::{Memory, all_is_well};
use crate::gateway::Gateway;
use crate::readiness::until;
use crate::reconcile::{DATASET, submitted};
use crate::world::brokers;

/// Of each job a gateway would keep 64 KiB in memory, as JSON and as Avro: 400 MiB.
const PARAMS: usize = 32 << 10;
const BATCHES: usize = 64;
const BATCH: usize = 100;
/// In MiB: the lanes of NATS and Kafka read 512 of these at once from the store.
const PAGES: u64 = 200;

#[test]
#[ignore = "kills nodes: make test-faults"]
fn what_waits_for_a_broker_is_not_kept_in_memory() {
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
    brokers(&["kill", "nats1", "nats2", "nats3"]);
    until(&gateway, &["nats"]);
    for _ in 0..BATCHES {
        user.submits_batch(BATCH, PARAMS);
    }
    mostly_in_the_store(&world.database, Broker::Nats);
    brokers(&["start", "nats1", "nats2", "nats3"]);
    all_is_well(&gateway, &world);
    memory.sufficed(&gateway, PAGES);
    assert!(gateway.stop().success());
}
