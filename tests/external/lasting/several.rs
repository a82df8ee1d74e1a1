//! Two gateways on one world: one is killed, frozen or replaced under load.

use std::path::Path;
use std::time::{Duration, Instant};

use event_gateway::domain::Id;
use nix::sys::signal::Signal;

use super::{Healed, MINUTE, SOME, log, world};
use crate::aftermath::all_is_well;
use crate::environment::variable;
use crate::gateway::Gateway;
use crate::play::{AGENTS, Playing};
use crate::program::THIS_VERSION;
use crate::readiness::until;
use crate::world::{CLUSTER, World, brokers};

/// Of two gateways on one world.
const NAMES: [&str; 2] = ["first", "second"];

/// Two gateways of a version on this world.
fn two(binary: &str, world: &World) -> [Gateway; 2] {
    NAMES.map(|name| {
        let id = format!("instance.id={name}");
        Gateway::start_as(Path::new(binary), &[&world.settings()[..], &[&id]].concat())
    })
}

fn submit(gateway: &Gateway) -> Id {
    let submitted = gateway.run(&["jobs", "submit", "--agent", CLUSTER, "--dataset", "d"]);
    assert_eq!(submitted.code, 0, "{}", submitted.stderr);
    submitted.stdout.trim().parse().unwrap()
}

/// Waits until every leg of the job's broker is settled.
fn published(gateway: &Gateway, job: Id) {
    let deadline = Instant::now() + MINUTE;
    loop {
        let ledger = gateway.run(&["ledger", &job.to_string(), "--output", "json"]);
        let events = ledger.json()["items"].as_array().cloned().unwrap_or_default();
        let mut legs = events.iter().filter_map(|event| event["legs"].as_array()).flatten();
        let settled = |leg: &serde_json::Value| leg["state"] == "done" || leg["state"] == "skipped";
        if !events.is_empty() && legs.all(settled) {
            return;
        }
        assert!(Instant::now() < deadline, "{}", ledger.stdout);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Freezes or kills the one that owes messages; the other publishes them.
fn is_taken_over(signal: Signal) -> Option<(World, [Gateway; 2])> {
    let world = world()?;
    let _healed = Healed;
    let gateways = two(THIS_VERSION, &world);
    let [first, second] = &gateways;
    until(first, &[]);
    // What the first accepts now it cannot publish.
    brokers(&["kill", "nats1", "nats2", "nats3"]);
    let jobs: Vec<Id> = (0..5).map(|_| submit(first)).collect();
    first.signal(signal);
    brokers(&["start", "nats1", "nats2", "nats3"]);
    jobs.iter().for_each(|job| published(second, *job));
    Some((world, gateways))
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn a_killed_gateway_is_taken_over() {
    let Some((world, [_, second])) = is_taken_over(Signal::SIGKILL) else { return };
    all_is_well(&second, &world);
}

#[test]
#[ignore = "kills nodes: make test-faults"]
fn a_frozen_gateway_is_taken_over_and_does_no_harm_when_it_wakes() {
    let Some((world, [first, second])) = is_taken_over(Signal::SIGSTOP) else { return };
    first.signal(Signal::SIGCONT);
    until(&first, &[]);
    let job = submit(&first);
    published(&first, job);
    all_is_well(&second, &world);
}

/// Each has users and a cluster of its own; both are stopped and started again, one by one.
fn are_rolled(world: &World, mut gateways: [Gateway; 2]) {
    let playing: Vec<Playing> = (gateways.iter().zip(AGENTS))
        .map(|(gateway, agent)| Playing::start(gateway, &log(gateway, MINUTE), &[agent], "1"))
        .collect();
    for (gateway, playing) in gateways.iter().zip(&playing) {
        playing.wait_for(gateway, SOME);
    }
    for (gateway, name) in gateways.iter_mut().zip(NAMES) {
        gateway.binary = THIS_VERSION.into();
        gateway.restart(&[&world.settings()[..], &[&format!("instance.id={name}")]].concat());
        until(gateway, &[]);
    }
    playing.into_iter().for_each(|playing| drop(playing.ends_well()));
    all_is_well(&gateways[0], world);
}

#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_restart_under_load() {
    let Some(world) = world() else { return };
    are_rolled(&world, two(THIS_VERSION, &world));
}

/// From an earlier build, which `EVENT_GATEWAY_TEST_PREVIOUS` names, to this one.
#[test]
#[ignore = "long: make test-faults"]
fn a_rolling_upgrade_under_load() {
    let Some(world) = world() else { return };
    let Some(previous) = variable("EVENT_GATEWAY_TEST_PREVIOUS") else { return };
    are_rolled(&world, two(&previous, &world));
}
