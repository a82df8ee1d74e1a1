//! A consumer outside our code, Python's confluent-kafka with its AvroDeserializer, reads whatever
//! a gateway has published: every type, with the schemas the gateway itself has registered.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use chrono::{DateTime, FixedOffset};
use event_gateway::domain::Broker;
use event_gateway::domain::catalogue::Catalogue;
use serde_json::Value;

use crate::environment::variable;
use crate::play::psql;
use crate::world::{World, address};

/// What the ledger says Kafka has, one JSON document a line.
const PUBLISHED: &str = "SELECT json_build_object('event_id', event_id, 'event_type', event_type, 'payload', payload) \
     FROM events JOIN legs USING (position) WHERE broker = 2 AND state = 1";

/// Every event that Kafka has is read, under its type and with the fields of its payload.
pub fn reads_everything(world: &World) {
    let Some(python) = variable("EVENT_GATEWAY_TEST_PYTHON") else { return };
    let catalogue = Catalogue::load(&[]).unwrap();
    let mut topics: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for line in psql(&world.database, PUBLISHED).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let event_type = catalogue.get(event["event_type"].as_str().unwrap()).expect("a type of the catalogue");
        let kafka = event_type.route_templates().find(|(broker, ..)| *broker == Broker::Kafka).expect("a topic");
        topics.entry(kafka.1).or_default().insert(event["event_id"].as_str().unwrap().to_owned(), event);
    }
    let names: Vec<&str> = topics.keys().map(String::as_str).collect();
    assert_eq!(names, ["audit-trail", "commands", "job-lifecycle", "job-metrics"], "what the play is about");
    for (topic, published) in &topics {
        let read = read(&python, &format!("{}{topic}", world.prefix), published.len());
        let ids: BTreeSet<&String> = read.keys().collect();
        assert_eq!(ids, published.keys().collect(), "{topic}");
        for (id, event) in published {
            let value = &read[id];
            assert_eq!(value["event_type"], event["event_type"], "{value:#}");
            for (field, found) in event["payload"].as_object().unwrap() {
                let decoded = &value["payload"][field];
                let same = decoded == found || (moment(decoded).is_some() && moment(decoded) == moment(found));
                assert!(same, "{field} is {found} in the ledger: {value:#}");
            }
        }
    }
}

/// Times are objects of Python's own, written with an offset.
fn moment(value: &Value) -> Option<DateTime<FixedOffset>> {
    DateTime::parse_from_rfc3339(value.as_str()?).ok()
}

/// So many records of a topic, by their event's id.
fn read(python: &str, topic: &str, count: usize) -> BTreeMap<String, Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/read.py");
    let (kafka, registry) = (address("KAFKA").unwrap(), address("REGISTRY").unwrap());
    let output = Command::new(python).args([script, &kafka, &registry, topic, &count.to_string()]).output().unwrap();
    assert!(output.status.success(), "{topic}: {}", String::from_utf8_lossy(&output.stderr));
    let records = String::from_utf8(output.stdout).unwrap();
    let values = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["value"].take());
    values.map(|value| (value["event_id"].as_str().unwrap().to_owned(), value)).collect()
}
