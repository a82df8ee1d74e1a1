//! Two gateways on one PostgreSQL and one set of brokers.

use serde_json::json;

use crate::gateway::Gateway;
use crate::play::{is_clean, play};
use crate::world::World;

/// A gateway of this name.
fn instance(world: &World, name: &str) -> Gateway {
    let id = format!("instance.id={name}");
    let mut settings = world.settings();
    settings.push(&id);
    Gateway::start(&settings)
}

#[test]
fn a_job_accepted_by_one_is_watched_on_the_other() {
    let Some(world) = World::fresh() else { return };
    let (first, second) = (instance(&world, "first"), instance(&world, "second"));
    let dataset = "anomaly-detection/quiet-receiver.csv";
    let submitted = first.run(&["jobs", "submit", "--agent", "AnomalyDetection", "--dataset", dataset]);
    assert_eq!(submitted.code, 0, "{}", submitted.stderr);
    let job = submitted.stdout.trim();
    let watched = second.run(&["jobs", "watch", job]);
    assert_eq!(watched.code, 0, "{}{}", watched.stdout, watched.stderr);
    assert!(watched.stdout.contains("COMPLETED"), "{}", watched.stdout);
    let listed = second.run(&["jobs", "list", "--output", "json"]);
    assert_eq!(listed.json()["items"][0]["status"], json!("COMPLETED"));
}

#[test]
fn a_log_is_played_through_one_while_the_other_comes_and_goes() {
    let Some(world) = World::fresh() else { return };
    let mut first = instance(&world, "first");
    // It takes over queues and partitions, and leaves them again.
    let report = play(&mut first, "150", |_| {
        let second = instance(&world, "second");
        assert!(second.stop().success());
    });
    is_clean(&report);
}
