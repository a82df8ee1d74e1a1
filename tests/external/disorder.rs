//! What `reconcile` finds in real logs where messages stand twice, or before those they must follow.

use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::Context;
use event_gateway::client::Api;
use event_gateway::domain::Id;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::aftermath::consumers_have_everything;
use crate::gateway::Gateway;
use crate::instances::people::{claimed, external, signed_in, submitted};
use crate::play::psql;
use crate::projections::{foreign, partitions};
use crate::reconcile::{broker, reconcile};
use crate::restore::{admin, count, finds};
use crate::runtime::runtime;
use crate::waiting::{MINUTE, await_that};
use crate::world::{CLUSTER, World, jetstream, kafka};

const PATIENCE: Duration = Duration::from_secs(30);
const COMMANDS: &str = "COMMANDS_JOB";

/// Two jobs whose commands nobody takes: one that has failed and was submitted again, which has two,
/// and one that waits.
async fn jobs(gateway: &Gateway) -> [String; 2] {
    let (user, worker) = (signed_in(gateway, "ada", "user").await, signed_in(gateway, "w", "worker").await);
    let failed = claimed(&user, &worker, CLUSTER, 1).await.remove(0);
    failed.fails(&worker).await;
    let again = user.post(&Api::path(&["jobs", &failed.id, "retry"]), &json!({}));
    user.bytes(again).await.unwrap();
    let waiting = submitted(&user, &external(CLUSTER), 1).await.pop_first().unwrap();
    [failed.id, waiting]
}

/// Where the commands of a job were confirmed in their stream, in order.
fn commands(world: &World, job: &str) -> Vec<u64> {
    let sql = format!(
        "SELECT \"offset\" FROM legs JOIN events USING (position) \
         WHERE broker = 3 AND state = 1 AND aggregate_id = '{job}' ORDER BY sequence"
    );
    psql(&world.database, &sql).lines().map(|at| at.parse().unwrap()).collect()
}

/// Appends copies of these messages to the commands, in this order.
async fn repeat(jetstream: &Context, places: &[u64]) {
    let stream = jetstream.get_stream(COMMANDS).await.unwrap();
    for place in places {
        let message = stream.get_raw_message(*place).await.unwrap();
        let mut headers = message.headers;
        // By the id of the first one the server would drop it.
        headers.insert(NATS_MESSAGE_ID, Id::new().to_string());
        let sent = jetstream.publish_with_headers(message.subject, headers, message.payload).await.unwrap();
        assert!(!sent.await.unwrap().duplicate);
    }
}

/// The two commands of a job stand the other way round.
async fn swap(jetstream: &Context, [first, second]: [u64; 2]) {
    repeat(jetstream, &[second, first]).await;
    let stream = jetstream.get_stream(COMMANDS).await.unwrap();
    for place in [first, second] {
        assert!(stream.delete_message(place).await.unwrap());
    }
}

/// Takes every record out of a topic, those of a partition in their order.
fn emptied(topic: &str) -> Vec<OwnedMessage> {
    let reader: BaseConsumer = foreign(&format!("{topic}-stranger")).create().unwrap();
    let mut all = partitions(&reader, topic);
    let (mut ends, mut held) = (TopicPartitionList::new(), 0);
    for partition in all.elements() {
        let (low, high) = reader.fetch_watermarks(topic, partition.partition(), PATIENCE).unwrap();
        if high > low {
            ends.add_partition_offset(topic, partition.partition(), Offset::Offset(high)).unwrap();
            held += high - low;
        }
    }
    all.set_all_offsets(Offset::Beginning).unwrap();
    reader.assign(&all).unwrap();
    let mut records: Vec<OwnedMessage> = Vec::new();
    await_that("every record", MINUTE, || {
        // After an error the client tries again by itself.
        let record = reader.poll(Duration::from_millis(100)).and_then(Result::ok);
        records.extend(record.map(|record| record.detach()));
        records.len() as i64 >= held
    });
    assert_eq!(records.len() as i64, held);

    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let deleted = runtime().block_on(async { admin().delete_records(&ends, &options).await.unwrap() });
    for partition in deleted.elements() {
        partition.error().unwrap();
    }
    records
}

/// Appends these records to their partitions, one after the other.
fn fill(topic: &str, records: &[OwnedMessage]) {
    runtime().block_on(async {
        let producer: FutureProducer = kafka().create().unwrap();
        for record in records {
            let (key, body) = (record.key().unwrap(), record.payload().unwrap());
            let copy = FutureRecord::to(topic).partition(record.partition()).key(key).payload(body);
            producer.send(copy.headers(record.headers().unwrap().clone()), PATIENCE).await.unwrap();
        }
    });
}

/// The first two records of this key stand the other way round.
fn swap_first_two(topic: &str, key: &str) {
    let mut records = emptied(topic);
    let mut of_key = (0..records.len()).filter(|at| records[*at].key() == Some(key.as_bytes()));
    let (first, second) = (of_key.next().unwrap(), of_key.next().unwrap());
    records.swap(first, second);
    fill(topic, &records);
}

/// Two messages of the job's command, and of nothing else.
fn is_repeated(found: &Value, job: &str) {
    let duplicates = ["rabbitmq", "kafka", "nats"].map(|name| count(found, name, "duplicates"));
    assert_eq!(duplicates, [0, 0, 1], "{found:#}");
    let repeated = &broker(found, "nats")["duplicates"]["examples"][0];
    assert_eq!(repeated["key"], json!(format!("job_command/{job}")), "{repeated}");
    assert!(repeated["why"].as_str().unwrap().contains("2 of it"), "{repeated}");
}

#[test]
fn what_stands_twice_or_too_early_in_real_logs_is_counted_and_named() {
    let Some(world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    let [again, waiting] = runtime().block_on(jobs(&gateway));
    consumers_have_everything(&world);
    finds(&reconcile(&gateway, &world, &["--wait", "60s", "--strict"]), &[]);
    assert!(gateway.halt().success());

    jetstream(async |jetstream| repeat(&jetstream, &commands(&world, &waiting)).await);
    let ended = reconcile(&gateway, &world, &[]);
    finds(&ended, &[]);
    is_repeated(&ended.json(), &waiting);
    assert_eq!(reconcile(&gateway, &world, &["--strict"]).code, 1);

    let both: [u64; 2] = commands(&world, &again).try_into().expect("two commands");
    jetstream(async |jetstream| swap(&jetstream, both).await);
    swap_first_two(&format!("{}job-lifecycle", world.prefix), &again);
    let ended = reconcile(&gateway, &world, &[]);
    finds(&ended, &[("kafka", "out_of_order", 1), ("nats", "out_of_order", 1)]);
    let found = ended.json();
    is_repeated(&found, &waiting);
    for (name, aggregate) in [("kafka", "job"), ("nats", "job_command")] {
        let early = &broker(&found, name)["out_of_order"]["examples"][0];
        assert_eq!((&early["key"], &early["sequence"]), (&json!(format!("{aggregate}/{again}")), &json!(2)), "{early}");
        assert!(early["why"].as_str().unwrap().contains("before sequence 1"), "{early}");
    }
}
