//! How far a consumer is behind is seen in the metrics: by the number of messages that wait, and by
//! how old they can be.

use crate::aftermath::consumers_have_everything;
use crate::gateway::Gateway;
use crate::intruder::Intruder;
use crate::readiness::{metric, until};
use crate::reconcile::{QUEUE, submitted};
use crate::waiting::{MINUTE, await_that};
use crate::world::{CLUSTER, World};

/// One that messages wait for shows how old they are, too.
pub fn grows_older(gateway: &Gateway, consumer: &str) {
    let seconds = metric(gateway, "consumer_lag_seconds", consumer);
    await_that("their age", MINUTE, || metric(gateway, "consumer_lag_seconds", consumer) > seconds + 1.0);
}

pub fn is_behind_no_more(gateway: &Gateway, consumer: &str) {
    for gauge in ["consumer_lag_messages", "consumer_lag_seconds"] {
        await_that(gauge, MINUTE, || metric(gateway, gauge, consumer) == 0.0);
    }
}

/// Somebody else reads the audit's queue, which has one reader at a time, and acknowledges nothing.
#[test]
fn a_consumer_that_must_wait_shows_how_many_messages_do_and_for_how_long() {
    let Some(world) = World::fresh() else { return };
    // The first declares the queue.
    assert!(Gateway::start(&world.settings()).stop().success());
    let intruder = Intruder::next_in(&world, QUEUE);
    let gateway = Gateway::start(&world.settings());
    for _ in 0..5 {
        submitted(&gateway, &["--agent", CLUSTER, "--dataset", "d"]);
    }
    // One is in the other's hands.
    await_that("four messages", MINUTE, || metric(&gateway, "consumer_lag_messages", "audit") == 4.0);
    grows_older(&gateway, "audit");

    intruder.leave();
    is_behind_no_more(&gateway, "audit");
    until(&gateway, &[]);
    consumers_have_everything(&world);
    assert!(gateway.stop().success());
}
