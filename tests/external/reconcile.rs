//! What `reconcile` finds in the real brokers, and what it names when something is not there.

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::play::psql;
use crate::program::Ended;
use crate::world::{CLUSTER, World, jetstream};

/// Nothing is missing, out of order, unknown or still waiting; and every broker has had something.
pub fn brokers_have_what_the_ledger_says(gateway: &Gateway, world: &World) {
    let ended = reconcile(gateway, world, &["--wait", "60s"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    for name in ["rabbitmq", "kafka", "nats"] {
        let legs = &broker(&found, name)["legs"];
        assert!(legs["done"].as_u64().unwrap() > 0, "{name} had no load: {legs:#}");
    }
}

pub fn reconcile(gateway: &Gateway, world: &World, more: &[&str]) -> Ended {
    let settings = world.settings();
    let set = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> =
        ["reconcile", "--output", "json"].into_iter().chain(set).chain(more.iter().copied()).collect();
    gateway.run(&arguments)
}

pub fn broker<'a>(found: &'a Value, name: &str) -> &'a Value {
    let brokers = found["report"]["brokers"].as_array().unwrap();
    brokers.iter().find(|broker| broker["broker"] == name).unwrap()
}

pub fn submitted(gateway: &Gateway, arguments: &[&str]) -> String {
    let ended = gateway.run(&[&["jobs", "submit"], arguments].concat());
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    ended.stdout.lines().next().unwrap().to_owned()
}

/// Deletes the newest command for external agents from its stream.
fn lose_the_command() {
    jetstream(async |jetstream| {
        let stream = jetstream.get_stream("COMMANDS_JOB").await.unwrap();
        let found = stream.get_last_raw_message_by_subject("commands.job.submit.external").await.unwrap();
        assert!(stream.delete_message(found.sequence).await.unwrap());
    });
}

#[test]
fn what_is_lost_repeated_or_open_is_named() {
    let Some(world) = World::fresh() else { return };
    let settings = world.settings();
    let mut gateway = Gateway::start(&settings);
    let dataset = "anomaly-detection/quiet-receiver.csv";
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", dataset, "--watch"]);
    let waiting = submitted(&gateway, &["--agent", CLUSTER, "--dataset", "anything"]);

    let ended = reconcile(&gateway, &world, &["--wait", "60s"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    let (rabbitmq, kafka, nats) = (broker(&found, "rabbitmq"), broker(&found, "kafka"), broker(&found, "nats"));
    assert_eq!(rabbitmq["compared"], json!(false));
    let queues: Vec<&str> = rabbitmq["queues"].as_array().unwrap().iter().filter_map(|q| q["name"].as_str()).collect();
    assert_eq!(queues, ["job-events-api", "job-events-audit", "job-dlq"]);
    assert!(
        kafka["legs"]["done"].as_u64().unwrap() >= 5 && kafka["messages"].as_u64() >= kafka["legs"]["done"].as_u64()
    );
    assert_eq!((&nats["messages"], &nats["consumed"]), (&json!(1), &json!(1)), "{nats:#}");

    lose_the_command();
    let ended = reconcile(&gateway, &world, &["--wait", "60s"]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    let missing = &broker(&found, "nats")["missing"];
    assert_eq!(missing["count"], json!(1), "{found:#}");
    assert_eq!(missing["examples"][0]["key"], json!(format!("job_command/{waiting}")));
    assert_eq!(broker(&found, "kafka")["missing"]["count"], json!(0));

    // A mark that was lost: the message is there, the leg is open again.
    assert!(gateway.halt().success());
    let reopened = psql(
        &world.database,
        &format!(
            "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL FROM events \
             WHERE events.position = legs.position AND legs.broker = 2 AND events.aggregate_id = '{waiting}' \
             AND events.aggregate = 'job' RETURNING 1"
        ),
    );
    assert!(reopened.starts_with('1'), "{reopened}");
    let found = reconcile(&gateway, &world, &["--wait", "0s"]).json();
    let open = &broker(&found, "kafka")["waiting"];
    assert_eq!(open["count"], json!(1), "{found:#}");
    assert_eq!(open["examples"][0]["key"], json!(format!("job/{waiting}")));
    assert!(open["examples"][0]["why"].as_str().unwrap().contains("is there"), "{open}");

    // The next start publishes it again: a repeat, which is harmless.
    gateway.kill_and_restart(&settings);
    let found = reconcile(&gateway, &world, &["--wait", "60s"]).json();
    let kafka = broker(&found, "kafka");
    assert_eq!((&kafka["waiting"]["count"], &kafka["duplicates"]["count"]), (&json!(0), &json!(1)), "{found:#}");
    assert_eq!(kafka["missing"]["count"], json!(0));
}
