//! What `reconcile` finds in the real brokers, and what it names when something is not there.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::intruder::Intruder;
use crate::play::psql;
use crate::program::Ended;
use crate::waiting::{MINUTE, await_that};
use crate::world::{CLUSTER, World, brokers, jetstream};

/// A job with it ends well within seconds.
pub const DATASET: &str = "anomaly-detection/quiet-receiver.csv";
/// Of the audit consumer.
pub const QUEUE: &str = "job-events-audit";

/// Nothing is missing, out of order, unknown or still waiting; and every broker has had something,
/// and every consumer of a queue.
pub fn brokers_have_what_the_ledger_says(gateway: &Gateway, world: &World) {
    let ended = reconcile(gateway, world, &["--wait", "60s"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    had_load(&ended.json());
}

/// As [`brokers_have_what_the_ledger_says`], but for the order in which consumers were given what
/// RabbitMQ had lost for a while.
pub fn brokers_have_everything(gateway: &Gateway, world: &World) {
    let ended = reconcile(gateway, world, &["--wait", "60s"]);
    let found = ended.json();
    for name in ["rabbitmq", "kafka", "nats"] {
        for kind in ["missing", "out_of_order", "unknown", "unreadable", "waiting"] {
            let late = (name, kind) == ("rabbitmq", "out_of_order");
            assert!(late || broker(&found, name)[kind]["count"] == json!(0), "{name} {kind}: {found:#}");
        }
    }
    had_load(&found);
}

fn had_load(found: &Value) {
    for name in ["rabbitmq", "kafka", "nats"] {
        let legs = &broker(found, name)["legs"];
        assert!(legs["done"].as_u64().unwrap() > 0, "{name} had no load: {legs:#}");
    }
    for name in ["orchestrator", "audit"] {
        let consumer = consumer(found, name);
        assert!(consumer["handled"].as_u64().unwrap() > 0 && consumer["on_the_way"] == json!(0), "{consumer:#}");
    }
}

/// What was found of a consumer of RabbitMQ's queues.
fn consumer<'a>(found: &'a Value, name: &str) -> &'a Value {
    let consumers = broker(found, "rabbitmq")["consumers"].as_array().unwrap();
    consumers.iter().find(|consumer| consumer["name"] == name).unwrap()
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
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
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

fn published(world: &World) {
    await_that("all legs", MINUTE, || psql(&world.database, "SELECT count(*) FROM legs WHERE state IN (0, 3)") == "0");
}

/// What is in a queue, in hand or not.
pub fn depth(world: &World, queue: &str) -> u64 {
    let listed = brokers(&["rabbitmqctl", "rabbit1", "-q", "list_queues", "-p", &world.vhost, "name", "messages"]);
    let found = listed.lines().find_map(|line| line.strip_prefix(queue)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{listed}"))
}

#[test]
fn what_is_purged_from_a_queue_is_missing_at_its_consumer_and_published_again() {
    let Some(world) = World::fresh() else { return };
    let settings = world.settings();
    let mut gateway = Gateway::start(&settings);
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    brokers_have_what_the_ledger_says(&gateway, &world);

    // While the consumer waits for its turn nothing is missing: it is all in the queue.
    let intruder = Intruder::next_in(&world, QUEUE);
    gateway.restart(&settings);
    let job = submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    published(&world);
    let ended = reconcile(&gateway, &world, &["--wait", "1s"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    assert_eq!(broker(&found, "rabbitmq")["compared"], json!(false));
    assert_eq!(consumer(&found, "audit")["on_the_way"], json!(2), "{found:#}");
    assert_eq!(consumer(&found, "orchestrator")["on_the_way"], json!(0));

    assert!(gateway.halt().success());
    intruder.leave();
    let owed = "SELECT event_id FROM events WHERE event_type IN ('job.submitted', 'job.completed') \
                AND aggregate_id = '{}' ORDER BY sequence";
    let owed: Vec<String> = psql(&world.database, &owed.replace("{}", &job)).lines().map(str::to_owned).collect();
    assert_eq!(owed.len(), 2);
    assert!(depth(&world, QUEUE) >= 2);
    // One that comes back from the intruder's hands may do so a moment later.
    await_that("an empty queue", MINUTE, || {
        brokers(&["rabbitmqctl", "rabbit1", "-q", "purge_queue", "-p", &world.vhost, QUEUE]);
        depth(&world, QUEUE) == 0
    });

    let ended = reconcile(&gateway, &world, &["--wait", "1s"]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    let rabbitmq = broker(&found, "rabbitmq");
    let named: Vec<&Value> = rabbitmq["missing"]["examples"].as_array().unwrap().iter().collect();
    let ids: Vec<&str> = named.iter().map(|finding| finding["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids, owed, "{rabbitmq:#}");
    for finding in named {
        assert_eq!((&finding["consumer"], &finding["key"]), (&json!("audit"), &json!(format!("job/{job}"))));
        assert!(finding["why"].as_str().unwrap().contains("job-events-audit is empty"), "{finding}");
    }
    assert_eq!((&rabbitmq["lost"], &rabbitmq["reopened"]), (&json!(2), &json!(0)), "a look changes nothing");
    assert_eq!(consumer(&found, "audit")["missing"], json!(2));

    let ended = reconcile(&gateway, &world, &["--wait", "1s", "--reopen"]);
    assert_eq!(broker(&ended.json(), "rabbitmq")["reopened"], json!(2), "{}", ended.stdout);
    gateway.kill_and_restart(&settings);
    brokers_have_what_the_ledger_says(&gateway, &world);
    let audited = format!(
        "SELECT count(*), count(DISTINCT details ->> 'event_id') FROM audit_log \
                           WHERE target_resource_id = '{job}'"
    );
    assert_eq!(psql(&world.database, &audited), "2|2", "each has its effect, once");
    assert!(gateway.stop().success());
}

/// Takes what waits for workers of a cluster, claims as many jobs, and only then acknowledges.
fn work(gateway: &Gateway, commands: usize) -> Vec<String> {
    let http = reqwest::Client::new();
    let post = |path: &str, body: Value| http.post(format!("{}/api/v1/{path}", gateway.url())).json(&body);
    jetstream(async |jetstream| {
        let session = post("session/dev", json!({ "user": "worker", "role": "worker" })).send().await.unwrap();
        let token = session.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
        let stream = jetstream.get_stream("COMMANDS_JOB").await.unwrap();
        let durable = pull::Config {
            durable_name: Some("cluster".into()),
            filter_subject: "commands.job.submit.external".into(),
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream.get_or_create_consumer("cluster", durable).await.unwrap();
        let waiting = consumer.batch().max_messages(commands).expires(Duration::from_secs(30)).messages().await;
        let waiting: Vec<_> = waiting.unwrap().try_collect().await.unwrap();
        assert_eq!(waiting.len(), commands);
        let claim = post("worker/claim", json!({ "agents": [CLUSTER], "max": commands }));
        let claimed: Value = claim.bearer_auth(token).send().await.unwrap().json().await.unwrap();
        for command in waiting {
            command.double_ack().await.unwrap();
        }
        let jobs = claimed["items"].as_array().unwrap_or_else(|| panic!("{claimed}"));
        jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    })
}

#[test]
fn a_command_that_was_deleted_among_others_is_missing_though_later_ones_were_handed_out() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    // Workers take what is urgent first: the job without a command stays.
    let [first, lost, last] = ["normal", "low", "normal"]
        .map(|priority| submitted(&gateway, &["--agent", CLUSTER, "--dataset", "anything", "--priority", priority]));
    published(&world);
    let at = psql(
        &world.database,
        &format!(
            "SELECT \"offset\" FROM legs JOIN events USING (position) WHERE broker = 3 AND aggregate_id = '{lost}'"
        ),
    );
    jetstream(async |jetstream| {
        let stream = jetstream.get_stream("COMMANDS_JOB").await.unwrap();
        assert!(stream.delete_message(at.parse().unwrap()).await.unwrap());
    });
    assert_eq!(work(&gateway, 2), [first, last]);

    let ended = reconcile(&gateway, &world, &["--wait", "60s"]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    let nats = broker(&found, "nats");
    assert_eq!((&nats["missing"]["count"], &nats["consumed"]), (&json!(1), &json!(3)), "{nats:#}");
    let missing = &nats["missing"]["examples"][0];
    assert_eq!(missing["key"], json!(format!("job_command/{lost}")), "{nats:#}");
    assert!(missing["why"].as_str().unwrap().contains("never claimed"), "{missing}");
    assert_eq!((&nats["lost"], &nats["out_of_order"]["count"]), (&json!(0), &json!(0)));

    // What the job is owed is settled with it.
    let ended = gateway.run(&["jobs", "cancel", &lost]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    brokers_have_what_the_ledger_says(&gateway, &world);
    assert!(gateway.stop().success());
}
