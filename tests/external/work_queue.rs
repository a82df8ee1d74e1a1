//! Jobs that the gateway runs itself: their commands wait in JetStream's work queue, which wakes its
//! runner.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use event_gateway::runner::{CONSUMER, RunnerOptions};
use serde_json::json;

use crate::gateway::Gateway;
use crate::instances::people::ada_submits;
use crate::play::psql;
use crate::waiting::{await_that, becomes};
use crate::world::{World, jetstream};

/// More than run at the same time: a fault comes while commands wait.
const BATCH: usize = 12;
/// A command whose reader has gone is handed out again after half a minute.
const LIMIT: Duration = Duration::from_secs(120);

/// What became of the runner's jobs: those that completed at the first attempt, claims, and commands that are
/// in NATS.
const RAN: &str = "SELECT \
     (SELECT count(*) FROM jobs WHERE runner = 'process' AND status = 'COMPLETED' AND attempt = 1), \
     (SELECT count(*) FROM events JOIN jobs ON jobs.id::text = aggregate_id \
      WHERE runner = 'process' AND event_type = 'job.status.changed' \
        AND payload ->> 'previous_status' = 'QUEUED' AND payload ->> 'new_status' = 'RUNNING'), \
     (SELECT count(*) FROM events JOIN legs USING (position) \
      WHERE event_type = 'SubmitJobRequested' AND payload ->> 'runner' = 'process' AND broker = 3 AND state = 1)";

/// The runner gets jobs before `fault`, while it lasts and after what it returns has ended it. Each is
/// claimed once and completes, each command is acknowledged, and in the end commands wake the runner.
pub fn is_consumed_despite<End: FnOnce()>(gateway: &Gateway, world: &World, fault: impl FnOnce() -> End) {
    submits(gateway, BATCH);
    let end = fault();
    submits(gateway, BATCH);
    end();
    submits(gateway, BATCH);
    let jobs = 3 * BATCH;
    let once = format!("{jobs}|{jobs}|{jobs}");
    becomes(world, Instant::now() + LIMIT, RAN, &once);
    await_that("the runner's acknowledgements", LIMIT, nothing_waits);
    assert_eq!(psql(&world.database, RAN), once, "commands that came again started something");
    commands_wake_the_runner(gateway, world);
}

/// Jobs of a sample agent that has little to do. Their ids.
fn submits(gateway: &Gateway, jobs: usize) -> Vec<String> {
    let dataset = "anomaly-detection/quiet-receiver.csv";
    let job = json!({ "agent": "AnomalyDetection", "dataset_id": dataset, "params": { "simulations": 0 } });
    ada_submits(gateway, &job, jobs).into_iter().collect()
}

/// The runner was given every command that is in NATS, and has settled it.
pub fn nothing_waits() -> bool {
    jetstream(async |jetstream| {
        let consumer: Result<PullConsumer, _> = jetstream.get_consumer_from_stream(CONSUMER, "COMMANDS_JOB").await;
        consumer.is_ok_and(|consumer| {
            let info = consumer.cached_info();
            (info.num_pending, info.num_ack_pending) == (0, 0)
        })
    })
}

/// A job starts before any poll can have found it: a claim follows the end of the only other run, and the
/// next poll comes four fifths of the interval later at the earliest.
fn commands_wake_the_runner(gateway: &Gateway, world: &World) {
    let before_the_poll = RunnerOptions::default().poll_interval.mul_f64(0.75).as_secs_f64();
    await_that("a command that wakes the runner", LIMIT, || {
        let [first, second] = [(); 2].map(|()| completes(gateway, world));
        let woken = format!(
            "SELECT later.started_at < earlier.completed_at + interval '{before_the_poll} s' \
             FROM jobs AS earlier, jobs AS later WHERE earlier.id = '{first}' AND later.id = '{second}'"
        );
        psql(&world.database, &woken) == "t"
    });
}

/// One more job, to its end. Its id.
fn completes(gateway: &Gateway, world: &World) -> String {
    let job = submits(gateway, 1).remove(0);
    let status = format!("SELECT status FROM jobs WHERE id = '{job}'");
    becomes(world, Instant::now() + LIMIT, &status, "COMPLETED");
    job
}
