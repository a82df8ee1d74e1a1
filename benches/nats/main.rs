//! The JetStream publisher beside a bare async-nats loop: the same messages, window and
//! durability, in turns.
//!
//! `EVENT_GATEWAY_TEST_NATS=nats://host:port,... cargo bench --bench nats -- [seconds] [window]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use bytes::Bytes;
use event_gateway::broker::Outgoing;
use event_gateway::broker::cloudevents::attributes;
use event_gateway::broker::nats::{Nats, NatsTopology};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Catalogue, EventType, Route, Stream, StreamKind};
use event_gateway::domain::{Broker, Event, EventDraft, Id, Origin, Timestamp};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

/// An event such as most are: about 700 bytes with its headers.
fn event(event_type: &Arc<EventType>) -> Event {
    let job = Id::new();
    let payload = serde_json::json!({
        "job_id": job, "previous_status": "QUEUED", "new_status": "RUNNING", "attempt": 1, "progress": 0.5,
    });
    Event {
        position: 1,
        sequence: 1,
        user_offset: Some(1),
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
    }
}

/// A message encoded beforehand.
struct Ready {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Ready {
    fn of(outgoing: &Outgoing) -> Self {
        let envelope = outgoing.event.headers();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", envelope.event_id.to_string());
        headers.insert("ce-datacontenttype", "application/json");
        for (attribute, text) in attributes(&envelope) {
            headers.insert(format!("ce-{}", attribute.name()), &*text);
        }
        Self { subject: outgoing.route.target.to_string(), headers, body: outgoing.event.payload.json.clone() }
    }
}

struct Bench {
    event_type: Arc<EventType>,
    subject: Arc<str>,
    window: usize,
    length: Duration,
}

impl Bench {
    fn window(&self) -> Vec<Outgoing> {
        let route = |key: &Arc<str>| Route {
            broker: Broker::Nats,
            target: self.subject.clone(),
            key: key.clone(),
            optional: false,
        };
        let outgoing = |event: Event| Outgoing { route: route(&event.aggregate_id), event: Arc::new(event) };
        (0..self.window).map(|_| outgoing(event(&self.event_type))).collect()
    }

    async fn ours(&self, nats: &Nats) -> Figures {
        let publisher = nats.publisher();
        self.run(
            || self.window(),
            async |window: Vec<Outgoing>| {
                for result in publisher.publish(&window).await {
                    result.unwrap();
                }
            },
        )
        .await
    }

    /// Nothing is encoded or looked up; every confirm is awaited.
    async fn bare(&self, jetstream: &Context) -> Figures {
        self.run(
            || self.window().iter().map(Ready::of).collect(),
            async |window: Vec<Ready>| {
                let mut confirms = Vec::with_capacity(window.len());
                for Ready { subject, headers, body } in window {
                    let sent = jetstream.publish_with_headers(subject, headers, body).await.unwrap();
                    confirms.push(sent.into_future());
                }
                for confirm in confirms {
                    assert!(!confirm.await.unwrap().duplicate);
                }
            },
        )
        .await
    }

    /// Each window is new, since a stream drops what it already has, and made before its
    /// time is taken.
    async fn run<W>(&self, window: impl Fn() -> W, mut publish: impl AsyncFnMut(W)) -> Figures {
        for _ in 0..20 {
            publish(window()).await;
        }
        let mut latencies = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        let (mut busy, mut cpu, mut count) = (Duration::ZERO, 0.0, 0);
        while busy < self.length {
            let window = window();
            let (cpu_before, begun) = (cpu_seconds(), Instant::now());
            publish(window).await;
            let took = begun.elapsed();
            cpu += cpu_seconds() - cpu_before;
            busy += took;
            latencies.record(took.as_micros() as u64).unwrap();
            count += self.window;
        }
        Figures {
            rate: count as f64 / busy.as_secs_f64(),
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1000.0,
            cpu_us: cpu * 1e6 / count as f64,
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
    let urls = std::env::var("EVENT_GATEWAY_TEST_NATS").expect("EVENT_GATEWAY_TEST_NATS names the servers");
    let catalogue = Catalogue::load(&[]).unwrap();
    let event_type = catalogue.get("job.status.changed").unwrap().clone();

    let (id, directory) = (Id::new(), tempfile::tempdir().unwrap());
    let config = Config::defaults_in(directory.path(), &[("nats.urls", &urls)]).unwrap();
    let (stream, subject) = (format!("BENCH-{id}"), format!("bench.{id}"));
    let kind = StreamKind::Limits { max_age: Duration::from_secs(3600) };
    let streams = vec![Stream { name: stream.as_str().into(), subjects: vec![subject.as_str().into()], kind }];
    let nats = Nats::open(&config.nats, NatsTopology { streams, consumers: Vec::new() }).await.unwrap();
    let client = async_nats::connect(urls.split(',').map(str::to_owned).collect::<Vec<_>>()).await.unwrap();
    let jetstream = ContextBuilder::new().max_ack_inflight(window).build(client);

    let bench = Bench { event_type, subject: subject.into(), window, length: Duration::from_secs(seconds as u64) };
    for _ in 0..ROUNDS {
        let bare = bench.bare(&jetstream).await;
        let ours = bench.ours(&nats).await;
        println!("window {window} bare {bare}");
        println!("window {window} ours {ours}  {:.2} of bare", ours.rate / bare.rate);
    }
    nats.shutdown().await;
    jetstream.delete_stream(&stream).await.unwrap();
}
