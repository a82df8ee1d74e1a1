//! Events of one job that are committed on two instances in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use futures_util::future::join_all;

use super::instance;
use super::people::{Claimed, claimed, signed_in};
use crate::aftermath::all_is_well;
use crate::gateway::Gateway;
use crate::play::{AGENTS, psql};
use crate::runtime::runtime;
use crate::world::{World, address};

/// Jobs of each agent, all reported of at the same time.
const JOBS: usize = 30;
const REPORTS: usize = 20;
/// job.submitted, one of each report, job.status.changed and job.completed of the end.
const EVENTS: i64 = REPORTS as i64 + 3;

/// Each report of a job goes to another instance than the one before, as soon as that was answered.
async fn reported_in_turn(gateways: [&Gateway; 2]) -> BTreeSet<String> {
    let workers = [
        // Of one name: the claim is one.
        signed_in(gateways[0], "worker", "worker").await,
        signed_in(gateways[1], "worker", "worker").await,
    ];
    let user = signed_in(gateways[0], "ada", "user").await;
    let mut jobs: Vec<Claimed> = Vec::new();
    for agent in AGENTS {
        jobs.extend(claimed(&user, &workers[0], agent, JOBS).await);
    }
    let reports = jobs.iter().enumerate().map(async |(number, job)| {
        for report in 0..REPORTS {
            job.progresses(&workers[(number + report) % 2], report as f64 / REPORTS as f64).await;
        }
        job.completes(&workers[(number + REPORTS) % 2]).await;
    });
    join_all(reports).await;
    jobs.into_iter().map(|job| job.id).collect()
}

/// The sequences of each key as a stock consumer reads them; of repeats the first.
fn sequences_in_kafka(topic: &str) -> BTreeMap<String, Vec<i64>> {
    let kafka = address("KAFKA").unwrap();
    let arguments = ["-b", &kafka, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k %h\n"];
    let read = Command::new("kcat").args(arguments).output().expect("kcat runs");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let mut sequences: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for line in String::from_utf8(read.stdout).unwrap().lines() {
        let (key, headers) = line.split_once(' ').unwrap();
        let sequence = headers.split(',').find_map(|header| header.strip_prefix("ce_sequence=")).expect(line);
        let (sequence, known) = (sequence.parse().unwrap(), sequences.entry(key.to_owned()).or_default());
        if !known.contains(&sequence) {
            known.push(sequence);
        }
    }
    sequences
}

#[test]
fn events_of_a_job_that_two_instances_commit_in_turn_stay_in_order() {
    let Some(world) = World::fresh() else { return };
    let (first, second) = (instance(&world, "first"), instance(&world, "second"));
    let runtime = runtime();
    let jobs = runtime.block_on(reported_in_turn([&first, &second]));
    all_is_well(&first, &world);

    // Had one instance committed them all, this would be no test.
    let turns = "SELECT count(*) FROM (SELECT l.owner <> lag(l.owner) OVER \
                   (PARTITION BY e.aggregate_id ORDER BY e.sequence) AS other FROM events AS e JOIN legs AS l \
                   ON l.position = e.position AND l.broker = 2 \
                   WHERE e.event_type IN ('job.status.changed', 'job.completed')) AS committed WHERE other";
    assert_eq!(psql(&world.database, turns), (jobs.len() * REPORTS).to_string());

    let found = sequences_in_kafka(&format!("{}job-lifecycle", world.prefix));
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), jobs);
    for (job, sequences) in found {
        assert_eq!(sequences, (1..=EVENTS).collect::<Vec<_>>(), "{job}");
    }
    assert!(first.stop().success() && second.stop().success());
}
