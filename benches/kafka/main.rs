//! The Kafka publisher beside a bare rdkafka loop: the same records, window, settings and
//! durability, in turns; then the publisher with each compression.
//!
//! `cargo bench --bench kafka -- [seconds] [window]`, with the brokers that `scripts/brokers env tests`
//! names (EVENT_GATEWAY_TEST_KAFKA, EVENT_GATEWAY_TEST_REGISTRY) and nothing else running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_gateway::broker::Outgoing;
use event_gateway::broker::cloudevents::attributes;
use event_gateway::broker::kafka::{Kafka, KafkaTopology, TopicSpec};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Catalogue, EventType};
use event_gateway::domain::{Broker, Event, EventDraft, Id, Origin, Timestamp};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "job-lifecycle";

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

/// An event such as most are: about 700 bytes with its headers.
fn event(event_type: &Arc<EventType>, number: usize) -> Arc<Event> {
    let job = Id::new();
    let payload = serde_json::json!({
        "job_id": job, "previous_status": "QUEUED", "new_status": "RUNNING", "attempt": 1,
        "progress": (number % 100) as f64 / 100.0, "reason": format!("window {number}"),
    });
    Arc::new(Event {
        position: number as i64,
        sequence: 1,
        user_offset: Some(number as i64),
        origin: Origin::default(),
        draft: EventDraft {
            event_id: Id::new(),
            event_type: event_type.clone(),
            aggregate_id: job.to_string().into(),
            user_id: "bench".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: None,
            tags: Vec::new(),
            payload: event_type.encode_json(payload.to_string().into()).unwrap(),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            skip: Vec::new(),
        },
    })
}

/// A record encoded beforehand.
struct Ready {
    key: Arc<str>,
    body: Vec<u8>,
    headers: OwnedHeaders,
}

impl Ready {
    fn of(outgoing: &Outgoing) -> Self {
        let envelope = outgoing.event.headers();
        let headers = attributes(&envelope).fold(OwnedHeaders::new(), |all, (attribute, text)| {
            all.insert(Header { key: &format!("ce_{}", attribute.name()), value: Some(text.as_bytes()) })
        });
        let record = outgoing.event.event_type.encode_record(&outgoing.event).unwrap();
        Self { key: outgoing.route.key.clone(), body: [&[0_u8; 5], &record[..]].concat(), headers }
    }
}

struct Bench {
    brokers: String,
    registry: String,
    event_type: Arc<EventType>,
    windows: Vec<Vec<Outgoing>>,
    length: Duration,
}

impl Bench {
    async fn kafka(&self, compression: &str) -> (Kafka, Arc<str>) {
        let prefix = format!("bench-{}-", Id::new());
        let directory = tempfile::tempdir().unwrap();
        let set = [
            ("kafka.brokers", &*self.brokers),
            ("kafka.topic_prefix", &*prefix),
            ("kafka.compression", compression),
            ("kafka.schema_registry_url", &*self.registry),
        ];
        let config = Config::defaults_in(directory.path(), &set).unwrap();
        let name: Arc<str> = format!("{prefix}{TOPIC}").into();
        let topic = TopicSpec { name: name.clone(), partitions: 10, retention: Duration::from_secs(3600) };
        let topology = KafkaTopology { topics: vec![topic], types: vec![(TOPIC.into(), self.event_type.clone())] };
        (Kafka::open_with(&config.kafka, &config.registry, topology).await.unwrap(), name)
    }

    async fn delete(&self, topic: &str) {
        let mut client = ClientConfig::new();
        let admin: AdminClient<DefaultClientContext> = client.set("bootstrap.servers", &self.brokers).create().unwrap();
        admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    }

    async fn ours(&self, kafka: &Kafka) -> Figures {
        let publisher = kafka.publisher();
        self.run(async |window: usize| {
            for result in publisher.publish(&self.windows[window]).await {
                result.unwrap();
            }
        })
        .await
    }

    /// A bare loop: everything is encoded beforehand, nothing is looked up.
    async fn bare(&self, topic: &str, compression: &str) -> Figures {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", compression)
            .set("linger.ms", "1")
            .create()
            .unwrap();
        let ready: Vec<Vec<Ready>> = self.windows.iter().map(|window| window.iter().map(Ready::of).collect()).collect();
        self.run(async |window: usize| {
            let sent: Vec<_> = ready[window]
                .iter()
                .map(|Ready { key, body, headers }| {
                    let headers = headers.as_borrowed().detach();
                    let record = FutureRecord::to(topic).key(key.as_bytes()).payload(body).headers(headers);
                    producer.send_result(record).map_err(|(error, _)| error).unwrap()
                })
                .collect();
            for delivery in sent {
                delivery.await.unwrap().map_err(|(error, _)| error).unwrap();
            }
        })
        .await
    }

    async fn run(&self, mut publish: impl AsyncFnMut(usize)) -> Figures {
        for window in 0..20 {
            publish(window).await;
        }
        let mut latencies = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        let (cpu, start) = (cpu_seconds(), Instant::now());
        let mut count = 0;
        for window in (0..self.windows.len()).cycle() {
            let begun = Instant::now();
            publish(window).await;
            latencies.record(begun.elapsed().as_micros() as u64).unwrap();
            count += self.windows[window].len();
            if start.elapsed() > self.length {
                break;
            }
        }
        Figures {
            rate: count as f64 / start.elapsed().as_secs_f64(),
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1000.0,
            cpu_us: (cpu_seconds() - cpu) * 1e6 / count as f64,
        }
    }
}

struct Figures {
    rate: f64,
    p99_ms: f64,
    cpu_us: f64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate, p99_ms, cpu_us } = self;
        write!(f, "{rate:>9.0}/s  window p99 {p99_ms:>6.1} ms  {cpu_us:>5.1} us CPU each")
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (seconds, window) = (args.first().copied().unwrap_or(5), args.get(1).copied().unwrap_or(256));
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let catalogue = Catalogue::load(&[]).unwrap();
    let event_type = catalogue.get("job.status.changed").unwrap().clone();
    let route = |event: &Event| {
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        routes.into_iter().find(|route| route.broker == Broker::Kafka).unwrap()
    };
    let windows = (0..64)
        .map(|_| (0..window).map(|n| event(&event_type, n)).map(|e| Outgoing { route: route(&e), event: e }).collect())
        .collect();
    let (brokers, registry) = (variable("EVENT_GATEWAY_TEST_KAFKA"), variable("EVENT_GATEWAY_TEST_REGISTRY"));
    let bench = Bench { brokers, registry, event_type, windows, length: Duration::from_secs(seconds as u64) };
    for compression in ["none", "lz4", "zstd"] {
        let (kafka, topic) = bench.kafka(compression).await;
        let bare = bench.bare(&topic, compression).await;
        let ours = bench.ours(&kafka).await;
        println!("window {window} {compression:<5} bare {bare}");
        println!("window {window} {compression:<5} ours {ours}  {:.2} of bare", ours.rate / bare.rate);
        kafka.shutdown().await;
        bench.delete(&topic).await;
    }
}
