//! Two gateways on one PostgreSQL and one set of brokers.

mod live;
mod order;
pub mod people;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::aftermath::all_is_well;
use crate::gateway::Gateway;
use crate::play::{play, psql};
use crate::readiness::scraped;
use crate::waiting::{MINUTE, await_that};
use crate::world::World;

/// A gateway of this name.
fn instance(world: &World, name: &str) -> Gateway {
    instance_with(world, name, &[])
}

/// The same, with these settings besides.
fn instance_with(world: &World, name: &str, more: &[&str]) -> Gateway {
    let id = format!("instance.id={name}");
    Gateway::start(&[&world.settings()[..], &[&*id], more].concat())
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
    play(&mut first, "150", |_| {
        let second = instance(&world, "second");
        assert!(second.stop().success());
    });
    all_is_well(&first, &world);
}

/// A gateway of this name that runs one job at a time. Its agent notes each start in the file
/// `name` and waits until both instances have one.
fn worker(world: &World, name: &str, notes: &Path) -> Gateway {
    let script = format!(
        "cd '{}'; echo \"$GATEWAY_JOB_ID $GATEWAY_ATTEMPT\" >> {name}; \
         until [ -s first ] && [ -s second ]; do sleep 0.1; done",
        notes.display()
    );
    let agents = json!([{ "name": "Noting", "runner": "process", "command": ["/bin/sh", "-c", script] }]);
    let (id, agents) = (format!("instance.id={name}"), format!("runner.agents={agents}"));
    let mut settings = world.settings();
    settings.extend([&*id, &*agents, "runner.concurrency=1"]);
    Gateway::start(&settings)
}

#[test]
fn runners_of_two_instances_share_the_jobs_and_each_runs_once() {
    const JOBS: usize = 20;
    let Some(world) = World::fresh() else { return };
    let notes = tempfile::tempdir().unwrap();
    let (first, second) = (worker(&world, "first", notes.path()), worker(&world, "second", notes.path()));
    let dataset = "anomaly-detection/quiet-receiver.csv";
    let submitted: BTreeSet<String> = (0..JOBS)
        .map(|_| {
            let ended = first.run(&["jobs", "submit", "--agent", "Noting", "--dataset", dataset]);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            ended.stdout.trim().to_owned()
        })
        .collect();

    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let listed = second.run(&["jobs", "list", "--agent", "Noting", "--limit", "500", "--output", "json"]);
        let items = listed.json()["items"].as_array().unwrap().clone();
        let completed = |job: &&Value| job["status"] == json!("COMPLETED");
        if items.iter().filter(completed).count() == JOBS {
            break;
        }
        assert!(Instant::now() < deadline, "not all jobs end: {items:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let started = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(notes.path().join(name)).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let (by_first, by_second) = (started("first"), started("second"));
    assert!(!by_first.is_empty() && !by_second.is_empty());
    let mut all = [by_first, by_second].concat();
    all.sort();
    let once: Vec<String> = submitted.iter().map(|job| format!("{job} 1")).collect();
    assert_eq!(all, once, "each job was started once");

    // The history says the same.
    let sql = |query: &str| psql(&world.database, query);
    assert_eq!(sql("SELECT count(*) FROM jobs WHERE attempt = 1 AND retry_count = 0"), JOBS.to_string());
    for event in ["job.completed", "SubmitJobRequested"] {
        let counted =
            sql(&format!("SELECT count(*), count(DISTINCT aggregate_id) FROM events WHERE event_type = '{event}'"));
        assert_eq!(counted, format!("{JOBS}|{JOBS}"), "{event}");
    }
    assert_eq!(sql("SELECT count(*) FROM events WHERE event_type = 'job.failed'"), "0");
    all_is_well(&first, &world);
    assert!(first.stop().success() && second.stop().success());
}

#[test]
fn one_instance_samples_the_health_and_another_goes_on_when_it_is_killed() {
    let Some(world) = World::fresh() else { return };
    let start = |name: &str| instance_with(&world, name, &["health.interval=1s", "instance.lease=3s"]);
    let events = "FROM events WHERE event_type = 'system.health.check'";
    let count = |of: &str| -> u64 {
        psql(&world.database, &format!("SELECT count(*) {events} AND aggregate_id = '{of}'")).parse().unwrap()
    };
    let first = start("first");
    await_that("a sample of the first", MINUTE, || count("first") > 0);
    let second = start("second");
    let before = count("first");
    await_that("more samples of the first", MINUTE, || count("first") >= before + 4);
    assert_eq!(count("second"), 0, "one samples for all");

    drop(first); // SIGKILL
    await_that("a sample of the second", MINUTE, || count("second") > 1);
    let payload = psql(&world.database, &format!("SELECT payload {events} AND aggregate_id = 'second' LIMIT 1"));
    let payload: Value = serde_json::from_str(&payload).unwrap();
    for component in ["database", "rabbitmq", "kafka", "nats", "registry", "external_api"] {
        assert_eq!(payload["components"][component], json!("healthy"), "{payload:#}");
    }
    // And it is on its way to both brokers.
    let legs = "SELECT count(*) FROM events e JOIN legs l USING (position) \
                WHERE e.event_type = 'system.health.check' AND l.state = 1";
    await_that("its legs", MINUTE, || psql(&world.database, legs).parse::<u64>().unwrap() > 0);
    assert!(second.stop().success());
}

/// Rows of the audit trail that an instance has deleted by itself.
fn pruned_by(gateway: &Gateway) -> u64 {
    let metrics = scraped(gateway);
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("event_gateway_pruned_rows_total{kind=\"audit\"} "));
    counted.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

#[test]
fn one_instance_deletes_what_is_old_and_another_goes_on_when_it_is_killed() {
    let Some(world) = World::fresh() else { return };
    let sql = |query: &str| psql(&world.database, query);
    // The duty's lease is twice that: time enough for an instance on a busy machine to ask again.
    let start = |name: &str| instance_with(&world, name, &["retention.interval=2s"]);
    let on_duty = || sql("SELECT instance FROM duties JOIN owners USING (owner) WHERE name = 'retention'");
    let add_old_rows = || {
        sql("INSERT INTO audit_log (audit_id, audit_type, actor_user_id, target_resource_type, target_resource_id, \
               at, details) SELECT gen_random_uuid(), 'a', 'ada', 'job', 'j', now() - interval '100 days', \
               '{}'::json FROM generate_series(1, 3)");
    };
    // The newest row stays, however old it is.
    let await_the_last = || await_that("old rows to go", MINUTE, || sql("SELECT count(*) FROM audit_log") == "1");

    let first = start("first");
    await_that("the first to have the duty", MINUTE, || on_duty() == "first");
    let second = start("second");
    add_old_rows();
    await_the_last();
    await_that("the first to count them", MINUTE, || pruned_by(&first) == 2);
    assert_eq!((&*on_duty(), pruned_by(&second)), ("first", 0), "one does it for all");

    drop(first); // SIGKILL
    add_old_rows();
    await_the_last();
    await_that("the second to count them", MINUTE, || pruned_by(&second) == 3);
    assert_eq!(on_duty(), "second");
    assert!(second.stop().success());
}
