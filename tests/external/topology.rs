//! `topology`: an empty cluster gets everything, and what somebody changed is named.

use serde_json::{Value, json};

use crate::program::{Ended, Program};
use crate::world::{World, brokers};

fn run(world: &World, command: &str, more: &[&str]) -> Ended {
    let set = world.settings().into_iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> =
        ["topology", command, "--output", "json"].into_iter().chain(set).chain(more.iter().copied()).collect();
    Program::new().run(&arguments)
}

fn differences(ended: &Ended, broker: &str) -> Vec<String> {
    let found = ended.json();
    let brokers = found["brokers"].as_array().unwrap();
    let found = brokers.iter().find(|found| found["broker"] == broker).unwrap();
    assert_eq!(found["unreachable"], Value::Null, "{found:#}");
    found["differences"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_missing_is_named_declared_and_then_there() {
    let Some(world) = World::fresh() else { return };
    let ended = run(&world, "check", &[]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    for (broker, missing) in [
        ("rabbitmq", "queue job-events-api is missing".to_owned()),
        ("kafka", format!("topic {}job-lifecycle is missing", world.prefix)),
        ("nats", "stream COMMANDS_JOB: State is missing".to_owned()),
    ] {
        let found = differences(&ended, broker);
        assert!(found.iter().any(|line| line.contains(&missing)), "{missing}: {found:#?}");
    }

    for _ in 0..2 {
        let ended = run(&world, "apply", &[]);
        assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    }
    let ended = run(&world, "check", &[]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    // Another program sees the same.
    let queues = brokers(&["rabbitmqctl", "rabbit1", "-q", "list_queues", "-p", &world.vhost, "name", "type"]);
    for queue in ["job-events-api", "job-events-audit", "job-dlq"] {
        assert!(queues.lines().any(|line| line.split_whitespace().eq([queue, "quorum"])), "{queues}");
    }

    let ended = run(&world, "check", &["--set", "rabbitmq.queue_max_length=7000", "--set", "nats.replicas=1"]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let found = differences(&ended, "rabbitmq");
    assert!(found.len() == 2 && found[0].contains("x-max-length"), "{found:#?}");
    assert!(differences(&ended, "nats").iter().all(|line| line.contains("Replicas is 3, must be 1")));
    assert_eq!(differences(&ended, "kafka"), Vec::<String>::new());
}

#[test]
fn a_broker_that_is_away_is_named() {
    let Some(world) = World::fresh() else { return };
    let ended = run(&world, "check", &["--set", "nats.urls=nats://127.0.0.1:9", "--set", "nats.connect_timeout=1s"]);
    let found = ended.json();
    let away: Vec<&Value> =
        found["brokers"].as_array().unwrap().iter().filter(|found| found["unreachable"].is_string()).collect();
    assert_eq!(away.iter().map(|found| &found["broker"]).collect::<Vec<_>>(), [&json!("nats")], "{found:#}");
}
