//! Consumers outside our code: Python's confluent-kafka with its AvroDeserializer, and kcat.
//!
//! `EVENT_GATEWAY_TEST_PYTHON` names a Python that has tests/kafka/requirements.txt (scripts/test
//! makes one). Without it, or without kcat, these tests say so and pass, or fail if
//! `REQUIRE_BROKERS=1`.

use std::process::Command;

use event_gateway::broker::Outgoing;
use serde_json::{Value, json};

use super::{Fresh, Site, TOPIC, route_to};
use crate::environment::{or_skip, variable};
use crate::fixture::*;

/// A Python that has tests/kafka/requirements.txt.
pub fn python() -> Option<String> {
    variable("EVENT_GATEWAY_TEST_PYTHON")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{error}");
    out
}

async fn three_events(site: Site) -> (Fresh, Vec<Outgoing>) {
    let fresh = Fresh::with(site, &[]).await;
    let window: Vec<Outgoing> =
        ["21", "abc", "foobar"].map(|key| Outgoing { event: event(key, 5), route: route_to(TOPIC, key) }).into();
    publish(&*fresh.kafka.publisher(), &window).await;
    (fresh, window)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_avro_deserializer_reads_our_records() {
    let Some(site) = Site::find() else { return };
    let Some(python) = python() else { return };
    let (fresh, window) = three_events(site).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/read.py");
    let (bootstrap, registry, topic) = (fresh.site.bootstrap.clone(), fresh.site.registry.clone(), fresh.topic());
    let reading = move || run(Command::new(python).args([script, &bootstrap, &registry, &topic, "3"]));
    let printed = tokio::task::spawn_blocking(reading).await.unwrap();

    let records: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3, "{printed}");
    for Outgoing { event, route } in &window {
        let record = records.iter().find(|record| record["key"] == json!(route.key)).expect("the key is there");
        let (value, headers) = (&record["value"], &record["headers"]);
        assert_eq!(value["event_id"], json!(event.event_id));
        assert_eq!(value["event_type"], json!("job.cancelled"));
        assert_eq!(value["aggregate_id"], json!(route.key));
        assert_eq!(value["sequence"], json!(5));
        assert_eq!(value["tags"], json!(["contract"]));
        assert_eq!(value["offsets"], json!({ "user:ada": 7 }));
        assert_eq!(value["occurred_at"].as_str().unwrap().replace("+00:00", "Z"), event.occurred_at.to_string());
        let payload: Value = serde_json::from_slice(&event.payload.json).unwrap();
        for field in ["job_id", "cancelled_by", "reason"] {
            assert_eq!(value["payload"][field], payload[field], "{field}");
        }
        assert_eq!(value["payload"]["refund_amount_usd"], Value::Null);
        assert_eq!(headers["ce_id"], value["event_id"]);
        assert_eq!(headers["ce_type"], value["event_type"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_shows_keys_and_cloudevents_headers() {
    let Some(site) = Site::find() else { return };
    if or_skip(Command::new("kcat").arg("-V").output().ok(), "there is no kcat").is_none() {
        return;
    }
    let (fresh, window) = three_events(site).await;
    let (bootstrap, topic) = (fresh.site.bootstrap.clone(), fresh.topic());
    let reading = move || {
        let arguments = ["-C", "-q", "-e", "-b", &bootstrap, "-t", &topic, "-o", "beginning", "-f", "%k|%h\\n"];
        run(Command::new("kcat").args(arguments))
    };
    let printed = tokio::task::spawn_blocking(reading).await.unwrap();
    for Outgoing { event, route } in &window {
        let start = format!("{}|", route.key);
        let line = printed.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{printed}"));
        for header in [
            format!("ce_id={}", event.event_id),
            "ce_type=job.cancelled".to_owned(),
            "ce_sequence=5".to_owned(),
            format!("traceparent={}", event.traceparent.as_deref().unwrap()),
        ] {
            assert!(line.contains(&header), "{header} is missing in {line}");
        }
    }
}
