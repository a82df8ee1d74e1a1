//! A topic of ten partitions, three replicas; acks=all, idempotent; and what compression costs.

use std::sync::Arc;

use event_gateway::broker::kafka::{Kafka as Adapter, KafkaTopology, TopicSpec};
use event_gateway::broker::{Outgoing, Publisher};
use event_gateway::config::Config;
use event_gateway::domain::{Broker, Id};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::sample::{self, Sample};
use crate::{Pair, Plan, alone, variable};

const TOPIC: &str = "job-lifecycle";

pub struct Kafka {
    window: usize,
    brokers: String,
    topic: Arc<str>,
    adapter: Adapter,
    publisher: Arc<dyn Publisher>,
    sample: Sample,
    producer: FutureProducer,
    /// A window of messages that differ as those of the adapter do, for the compression's sake.
    ready: Vec<Ready>,
}

/// A message of the bare client, encoded once.
struct Ready {
    key: String,
    headers: OwnedHeaders,
    body: Vec<u8>,
}

impl Ready {
    fn new(Outgoing { event, route }: &Outgoing) -> Self {
        let headers = sample::headers(event, "ce_").iter().fold(OwnedHeaders::new(), |all, (name, text)| {
            all.insert(Header { key: name, value: Some(text.as_bytes()) })
        });
        let record = event.event_type.encode_record(event).expect("a record of the type");
        Self { key: route.key.to_string(), headers, body: [&[0_u8; 5], &record[..]].concat() }
    }
}

impl Kafka {
    pub async fn new(window: usize, compression: &str) -> Self {
        let (brokers, registry) = (variable("KAFKA"), variable("REGISTRY"));
        let sample = Sample::new(Broker::Kafka, TOPIC, None);
        let prefix = format!("bench-{}-", Id::new());
        let directory = tempfile::tempdir().expect("a directory");
        let set = [
            ("kafka.brokers", &*brokers),
            ("kafka.topic_prefix", &*prefix),
            ("kafka.compression", compression),
            ("kafka.schema_registry_url", &*registry),
        ];
        let config = Config::defaults_in(directory.path(), &set).expect("good settings");
        let topic: Arc<str> = format!("{prefix}{TOPIC}").into();
        let spec = TopicSpec { name: topic.clone(), partitions: 10, retention: std::time::Duration::from_secs(3600) };
        let topology = KafkaTopology { topics: vec![spec], types: vec![(TOPIC.into(), sample.event_type.clone())] };
        let adapter = Adapter::open_with(&config.kafka, &config.registry, topology).await.expect("a cluster");
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", compression)
            .set("linger.ms", "1")
            .create()
            .expect("good settings");
        let ready = sample.window(window).iter().map(Ready::new).collect();
        let publisher = adapter.publisher();
        Self { window, brokers, topic, adapter, publisher, sample, producer, ready }
    }

    pub async fn end(self) {
        self.adapter.shutdown().await;
        let mut client = ClientConfig::new();
        let admin: AdminClient<DefaultClientContext> =
            client.set("bootstrap.servers", &self.brokers).create().expect("good settings");
        admin.delete_topics(&[&self.topic], &AdminOptions::new()).await.expect("an answer");
    }
}

impl Pair for Kafka {
    async fn adapter(&self) {
        for result in self.publisher.publish(&self.sample.window(self.window)).await {
            result.expect("published");
        }
    }

    async fn bare(&self) {
        let sent: Vec<_> = (self.ready.iter())
            .map(|Ready { key, headers, body }| {
                let headers = headers.as_borrowed().detach();
                let record = FutureRecord::to(&self.topic).key(key).payload(body).headers(headers);
                self.producer.send_result(record).map_err(|(error, _)| error).expect("room in its queue")
            })
            .collect();
        for delivery in sent {
            delivery.await.expect("an answer").map_err(|(error, _)| error).expect("confirmed");
        }
    }

    /// Retention does it.
    async fn tidy(&self) {}
}

/// Each in turn: the CPU of all says what a byte less is worth.
pub async fn compressions(plan: &Plan) {
    for compression in ["none", "lz4", "zstd"] {
        let kafka = Kafka::new(plan.window, compression).await;
        println!("compression {compression}");
        alone("kafka", plan, &kafka).await;
        kafka.end().await;
    }
}
