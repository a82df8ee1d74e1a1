//! A domain of somebody else's on the real brokers: files, no Rust. Its exchange, topic and stream are
//! declared, and clients outside our code find its events there.

use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::play::{kcat, psql};
use crate::program::Program;
use crate::readiness::until;
use crate::runtime::runtime;
use crate::world::{World, jetstream};

const CATALOGUE: &str = r#"
[[exchange]]
name = "police.events"
kind = "topic"

[[topic]]
name = "officers"
partitions = 3
retention_days = 30

[[stream]]
name = "COMMANDS_OFFICER"
subjects = ["commands.officer.>"]
kind = "limits"
max_age_minutes = 60

[[type]]
name = "ChangeOfficerStatusRequested"
schema = "change.avsc"
version = 1
aggregate = "officer"
aggregate_id = "badge_number"
order = "aggregate"
command = true
ingest = ["operator"]
rabbitmq = { exchange = "police.events", key = "officer.change", optional = true }
kafka = { topic = "officers", key = "badge_number" }
nats = { subject = "commands.officer.change-status" }
"#;

/// The built-in envelope with a payload of this domain.
fn schema() -> String {
    let built_in = include_str!("../../schemas/job.submitted.avsc");
    let mut schema: Value = serde_json::from_str(built_in).unwrap();
    let name = "ChangeOfficerStatusRequested";
    (schema["name"], schema["namespace"]) = (json!(name), json!("org.police.events"));
    let fields = json!([{"name": "badge_number", "type": "string"}, {"name": "status", "type": "string"}]);
    let payload = schema["fields"].as_array_mut().unwrap().last_mut().unwrap();
    payload["type"] = json!({"type": "record", "name": format!("{name}Payload"), "fields": fields});
    schema.to_string()
}

fn catalogue(program: &Program) -> String {
    program.file("police/change.avsc", &schema());
    program.file("police/catalogue.toml", CATALOGUE).parent().unwrap().display().to_string()
}

/// Posts it as an operator does.
async fn post(gateway: &Gateway, badge: &str) {
    let issued = gateway.program.run(&["token", "issue", "--user", "ada", "--role", "operator"]);
    let event = json!({
        "specversion": "1.0", "id": badge, "source": "/station/4", "type": "ChangeOfficerStatusRequested",
        "data": { "badge_number": badge, "status": "on_duty" }
    });
    let request = reqwest::Client::new().post(format!("{}/api/v1/events", gateway.url()));
    let request = request.bearer_auth(issued.stdout.trim()).header("content-type", "application/cloudevents+json");
    let answer = request.body(event.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 202, "{:?}", answer.text().await);
}

#[test]
fn a_domain_of_somebody_elses_is_declared_and_its_commands_arrive() {
    let Some(world) = World::fresh() else { return };
    let files = Program::new();
    let dirs = format!("catalogue.dirs={}", catalogue(&files));
    let mut settings = world.settings();
    settings.push(&dirs);
    let gateway = Gateway::start(&settings);
    until(&gateway, &[]);

    let runtime = runtime();
    let heard = runtime.block_on(async {
        // A queue of the domain's own.
        let connection = Connection::connect(&world.amqp(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (queue, none) = ("officers", FieldTable::default());
        channel.queue_declare(queue.into(), QueueDeclareOptions::default(), none.clone()).await.unwrap();
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), "police.events".into(), "officer.#".into(), options, none).await.unwrap();
        post(&gateway, "B-7").await;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(got) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
                return serde_json::from_slice::<Value>(&got.delivery.data).unwrap();
            }
            assert!(Instant::now() < deadline, "nothing comes to the queue");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(heard["badge_number"], json!("B-7"), "{heard:#}");

    let open = "SELECT count(*) FILTER (WHERE state <> 1), count(*) FROM legs JOIN events USING (position) \
                WHERE event_type = 'ChangeOfficerStatusRequested'";
    let deadline = Instant::now() + Duration::from_secs(60);
    while psql(&world.database, open) != "0|3" {
        assert!(Instant::now() < deadline, "{}", psql(&world.database, open));
        std::thread::sleep(Duration::from_millis(50));
    }
    let records = kcat(&world, "officers");
    assert!(records.starts_with("B-7 ") && records.contains("ChangeOfficerStatusRequested"), "{records}");
    let command = jetstream(async |jetstream| {
        let stream = jetstream.get_stream("COMMANDS_OFFICER").await.unwrap();
        let command = stream.get_last_raw_message_by_subject("commands.officer.change-status").await.unwrap();
        jetstream.delete_stream("COMMANDS_OFFICER").await.unwrap();
        serde_json::from_slice::<Value>(&command.payload).unwrap()
    });
    assert_eq!(command["status"], json!("on_duty"), "{command:#}");
    assert!(gateway.stop().success());
}
