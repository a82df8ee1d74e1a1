//! The registry is away while a consumer needs a schema that only the registry knows.

use std::time::Duration;

use event_gateway::domain::Id;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use crate::aftermath::all_is_well;
use crate::gateway::Gateway;
use crate::lag::{grows_older, is_behind_no_more};
use crate::play::psql;
use crate::projections::{foreign, partitions};
use crate::proxy::{Mode, Proxy};
use crate::readiness::{metric, until};
use crate::reconcile::{DATASET, submitted};
use crate::runtime::{runtime, runtime_beside};
use crate::waiting::{MINUTE, await_that};
use crate::world::{World, address, kafka};

/// The oldest record of a topic that has one.
fn oldest(topic: &str) -> OwnedMessage {
    let consumer: BaseConsumer = foreign(&format!("stranger-{}", Id::new())).create().unwrap();
    let mut all = partitions(&consumer, topic);
    all.set_all_offsets(Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let mut found = None;
    await_that("a record", MINUTE, || {
        found = consumer.poll(Duration::from_millis(100)).and_then(Result::ok).map(|record| record.detach());
        found.is_some()
    });
    found.unwrap()
}

/// Registers what this schema is, under another text; its id.
async fn told_otherwise(registry: &str, topic: &str, id: u32) -> u32 {
    let http = reqwest::Client::new();
    let known = http.get(format!("{registry}/schemas/ids/{id}")).send().await.unwrap();
    let known: Value = known.error_for_status().unwrap().json().await.unwrap();
    let mut schema: Value = serde_json::from_str(known["schema"].as_str().unwrap()).unwrap();
    schema["doc"] = json!("As somebody else tells it.");
    let name = format!("{}.{}", schema["namespace"].as_str().unwrap(), schema["name"].as_str().unwrap());
    let versions = format!("{registry}/subjects/{topic}-{name}/versions");
    let version = http.post(versions).json(&json!({ "schemaType": "AVRO", "schema": schema.to_string() }));
    let registered: Value = version.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    u32::try_from(registered["id"].as_u64().unwrap()).unwrap()
}

/// Writes the record once more, as one that was written with this schema.
async fn written_again(topic: &str, record: OwnedMessage, schema: u32) {
    let producer: FutureProducer = kafka().create().unwrap();
    let mut body = record.payload().unwrap().to_vec();
    body[1..5].copy_from_slice(&schema.to_be_bytes());
    let again = FutureRecord::to(topic).key(record.key().unwrap()).partition(record.partition()).payload(&body);
    producer.send(again.headers(record.headers().unwrap().clone()), MINUTE).await.unwrap();
}

/// The record waits, and what is behind it in its partition; nothing is retried, nothing is dead.
#[test]
fn what_nobody_can_read_without_the_registry_waits_for_it() {
    let Some(world) = World::fresh() else { return };
    let (runtime, beside) = (runtime(), runtime_beside());
    let registry = address("REGISTRY").unwrap();
    let proxy = beside.block_on(Proxy::before(&registry));
    let behind = format!("kafka.schema_registry_url={}", proxy.url);
    let more = ["kafka.schema_registry_timeout=1s", &*behind];
    let gateway = Gateway::start(&[&world.settings()[..], &more].concat());
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    is_behind_no_more(&gateway, "metrics");

    proxy.set(Mode::Cut);
    let topic = format!("{}job-lifecycle", world.prefix);
    let record = oldest(&topic);
    let ours = u32::from_be_bytes(record.payload().unwrap()[1..5].try_into().unwrap());
    runtime.block_on(async {
        let theirs = told_otherwise(&registry, &topic, ours).await;
        assert_ne!(theirs, ours);
        written_again(&topic, record, theirs).await;
    });
    until(&gateway, &["schema-registry"]);
    await_that("a record", MINUTE, || metric(&gateway, "consumer_lag_messages", "metrics") > 0.0);
    grows_older(&gateway, "metrics");
    assert_eq!(psql(&world.database, "SELECT count(*) FROM backlog"), "0");
    assert_eq!(metric(&gateway, "inbox_hits_total", "metrics"), 0.0);

    proxy.set(Mode::Open);
    is_behind_no_more(&gateway, "metrics");
    assert_eq!(metric(&gateway, "inbox_hits_total", "metrics"), 1.0, "it is an event that was handled before");
    submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    all_is_well(&gateway, &world);
    assert_eq!(psql(&world.database, "SELECT count(*) FROM backlog"), "0");
    assert!(gateway.stop().success());
}
