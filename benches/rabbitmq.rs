//! RabbitMQ: the adapter beside a bare lapin loop, on the same queue with the same windows
//! and bodies. What one round published, it then reads and acknowledges.
//!
//! `EVENT_GATEWAY_TEST_RABBITMQ=amqp://... cargo bench --bench rabbitmq -- [seconds] [window] [lanes]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use event_gateway::broker::rabbitmq::{Queue, RabbitMq, Topology};
use event_gateway::broker::{Outgoing, Source, Subscription};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Catalogue, EventType, ExchangeKind, Route};
use event_gateway::domain::{Broker, EncodedPayload, Event, EventDraft, Id, Origin, Timestamp};
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODY_BYTES: usize = 700;
const ROUNDS: usize = 3;
const PREFETCH: u16 = 1_024;
const ACK_BATCH: usize = 256;
const KEY: &str = "job.completed";

#[derive(Clone, Copy)]
struct Load {
    time: Duration,
    window: usize,
    lanes: usize,
}

/// Messages a second, and CPU a message in microseconds: ours, the servers'.
struct Figure {
    rate: f64,
    own_us: f64,
    servers_us: f64,
}

/// CPU seconds of this process, and of all RabbitMQ nodes on this machine.
fn cpu() -> (f64, f64) {
    let ticks = procfs::ticks_per_second() as f64;
    let of = |stat: &procfs::process::Stat| (stat.utime + stat.stime) as f64 / ticks;
    let own = procfs::process::Process::myself().and_then(|process| process.stat()).map_or(0.0, |stat| of(&stat));
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    let nodes = all.filter_map(|process| process.stat().ok()).filter(|stat| stat.comm.starts_with("beam"));
    (own, nodes.map(|stat| of(&stat)).sum())
}

async fn measured(count: impl Future<Output = usize>) -> (usize, Figure) {
    let (own, servers) = cpu();
    let started = Instant::now();
    let count = count.await;
    let took = started.elapsed().as_secs_f64();
    let (own_after, servers_after) = cpu();
    let each = |cpu: f64| cpu * 1e6 / count.max(1) as f64;
    (
        count,
        Figure { rate: count as f64 / took, own_us: each(own_after - own), servers_us: each(servers_after - servers) },
    )
}

/// An exchange and a queue of the bench's own.
struct Bench {
    urls: String,
    name: String,
    rabbitmq: RabbitMq,
    kind: Arc<EventType>,
    body: Bytes,
}

impl Bench {
    async fn new(urls: String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let set = [("rabbitmq.urls", urls.as_str()), ("rabbitmq.queue_max_length", "100000000")];
        let config = Config::defaults_in(directory.path(), &set).unwrap();
        let catalogue = Catalogue::load(&[]).unwrap();
        let name = format!("bench-{}", Id::new());
        let mut topology = Topology::new(&config.rabbitmq, &catalogue, &[]);
        topology.exchanges = vec![(name.as_str().into(), ExchangeKind::Topic)];
        topology.queues =
            vec![Queue { name: name.as_str().into(), bindings: vec![(name.as_str().into(), "job.#".into())] }];
        let rabbitmq = RabbitMq::open(&config.rabbitmq, topology).await.unwrap();
        assert!(rabbitmq.health().borrow().up, "{:?}", rabbitmq.health().borrow());
        let kind = catalogue.get("job.completed").unwrap().clone();
        Self { urls, name, rabbitmq, kind, body: Bytes::from(vec![b'x'; BODY_BYTES]) }
    }

    async fn channel(&self) -> (Connection, Channel) {
        let url = self.urls.split(',').next().unwrap();
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    fn outgoing(&self) -> Outgoing {
        let draft = EventDraft {
            event_id: Id::new(),
            event_type: self.kind.clone(),
            aggregate_id: Id::new().to_string().into(),
            user_id: "ada".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: None,
            tags: Vec::new(),
            payload: EncodedPayload { json: self.body.clone(), avro: None },
            traceparent: None,
            skip: Vec::new(),
        };
        let route =
            Route { broker: Broker::Rabbitmq, target: self.name.as_str().into(), key: KEY.into(), optional: false };
        Outgoing {
            event: Arc::new(Event { position: 0, sequence: 1, user_offset: None, origin: Origin::default(), draft }),
            route,
        }
    }

    async fn publish(&self, load: Load) -> usize {
        let publisher = self.rabbitmq.publisher();
        let end = Instant::now() + load.time;
        let lane = async || {
            let mut count = 0;
            while Instant::now() < end {
                let window: Vec<Outgoing> = (0..load.window).map(|_| self.outgoing()).collect();
                for result in publisher.publish(&window).await {
                    result.unwrap();
                    count += 1;
                }
            }
            count
        };
        join_all((0..load.lanes).map(|_| lane())).await.into_iter().sum()
    }

    /// A connection, a channel for each lane; every window is confirmed before the next.
    async fn publish_raw(&self, load: Load) -> usize {
        let (connection, _channel) = self.channel().await;
        let end = Instant::now() + load.time;
        let lane = async || {
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            let mut count = 0;
            while Instant::now() < end {
                let sent = try_join_all((0..load.window).map(|_| self.send(&channel))).await.unwrap();
                for confirmation in try_join_all(sent).await.unwrap() {
                    assert!(confirmation.is_ack());
                    count += 1;
                }
            }
            count
        };
        join_all((0..load.lanes).map(|_| lane())).await.into_iter().sum()
    }

    async fn send(&self, channel: &Channel) -> lapin::Result<lapin::PublisherConfirm> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(Id::new().to_string().into());
        channel.basic_publish(self.name.as_str().into(), KEY.into(), options, &self.body, properties).await
    }

    async fn consume(&self, expected: usize) -> usize {
        let source = Source::Queue {
            name: self.name.as_str().into(),
            bindings: vec![(self.name.as_str().into(), "job.#".into())],
            exclusive: false,
        };
        let subscription = Subscription {
            consumer: "bench".into(),
            source,
            prefetch: PREFETCH.into(),
            ack_wait: Duration::from_secs(30),
        };
        let mut inbound = self.rabbitmq.subscriber().subscribe(&subscription).await.unwrap();
        let mut count = 0;
        while count < expected {
            let got = inbound.receive(ACK_BATCH).await.unwrap();
            let tokens: Vec<_> = got.iter().map(|delivery| delivery.token).collect();
            inbound.ack(&tokens).await.unwrap();
            count += got.len();
        }
        count
    }

    async fn consume_raw(&self, expected: usize) -> usize {
        let (_connection, channel) = self.channel().await;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let consuming = channel.basic_consume(self.name.as_str().into(), "".into(), options, FieldTable::default());
        let mut consumer = consuming.await.unwrap();
        for count in 1..=expected {
            let delivery = consumer.next().await.unwrap().unwrap();
            if count % ACK_BATCH == 0 || count == expected {
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
            }
        }
        expected
    }

    async fn delete(self) {
        self.rabbitmq.shutdown().await;
        let (_connection, channel) = self.channel().await;
        let _ = channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default()).await;
        let _ = channel.exchange_delete(self.name.as_str().into(), ExchangeDeleteOptions::default()).await;
    }
}

/// The round in the middle, by rate.
fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    figures.swap_remove(figures.len() / 2)
}

fn print(what: &str, gateway: Vec<Figure>, raw: Vec<Figure>) {
    let (gateway, raw) = (median(gateway), median(raw));
    for (who, figure) in [("adapter", &gateway), ("lapin", &raw)] {
        println!(
            "{what:<8} {who:<8} {:>8.0}/s   CPU a message: {:>5.1} us here, {:>6.1} us in the three nodes",
            figure.rate, figure.own_us, figure.servers_us
        );
    }
    println!("{what:<8} ratio    {:>8.2}", gateway.rate / raw.rate);
}

#[tokio::main]
async fn main() {
    let Some(urls) = std::env::var("EVENT_GATEWAY_TEST_RABBITMQ").ok().filter(|urls| !urls.is_empty()) else {
        eprintln!("EVENT_GATEWAY_TEST_RABBITMQ is not set: nothing to measure");
        return;
    };
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let argument = |index: usize, default: usize| args.get(index).copied().unwrap_or(default).max(1);
    let load =
        Load { time: Duration::from_secs(argument(0, 5) as u64), window: argument(1, 200), lanes: argument(2, 1) };
    println!(
        "{} s a round, median of {ROUNDS}; {} lanes with windows of {}, {BODY_BYTES} bytes, one quorum queue",
        load.time.as_secs(),
        load.lanes,
        load.window
    );
    let bench = Bench::new(urls).await;
    let (mut published, mut published_raw, mut consumed, mut consumed_raw) = (vec![], vec![], vec![], vec![]);
    // The first pair warms the servers up and is not counted.
    for round in 0..=ROUNDS {
        let (count, publishing_raw) = measured(bench.publish_raw(load)).await;
        let (_, consuming_raw) = measured(bench.consume_raw(count)).await;
        let (count, publishing) = measured(bench.publish(load)).await;
        let (_, consuming) = measured(bench.consume(count)).await;
        if round > 0 {
            published_raw.push(publishing_raw);
            consumed_raw.push(consuming_raw);
            published.push(publishing);
            consumed.push(consuming);
        }
    }
    print("publish", published, published_raw);
    print("consume", consumed, consumed_raw);
    bench.delete().await;
}
