//! Kafka and a schema registry, real ones: `EVENT_GATEWAY_TEST_KAFKA` (brokers, host:port
//! with commas) and `EVENT_GATEWAY_TEST_REGISTRY` (URL) say where. Without them these tests
//! say so and pass, or fail if `REQUIRE_BROKERS=1`.

mod cluster;
mod deleted;
mod faults;
mod groups;
mod load;
mod proxy;
mod records;
mod secured;
mod server;
mod stock;
mod unheard;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use event_gateway::broker::kafka::{Kafka, KafkaTopology, TopicSpec};
use event_gateway::broker::{Outgoing, Publisher, Source, Subscriber, Subscription};
use event_gateway::config::Config;
use event_gateway::domain::Broker;
use event_gateway::domain::catalogue::{Catalogue, EventType, Route};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::environment::variable;
use crate::fixture::{Fixture, event, try_publish, within};

/// The topic's name in the catalogue; in the cluster it has the fixture's prefix.
pub const TOPIC: &str = "job-lifecycle";
const PARTITIONS: u32 = 4;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(50);

/// Where the brokers are.
#[derive(Clone)]
pub struct Site {
    pub bootstrap: String,
    pub registry: String,
}

impl Site {
    /// `None` when there are none and that is fine.
    pub fn find() -> Option<Self> {
        let (bootstrap, registry) =
            variable("EVENT_GATEWAY_TEST_KAFKA").zip(variable("EVENT_GATEWAY_TEST_REGISTRY"))?;
        Some(Self { bootstrap, registry })
    }

    /// Settings of a deployment of its own, and more.
    pub fn config(&self, prefix: &str, set: &[(&str, &str)]) -> Config {
        let own = [
            ("kafka.brokers", &*self.bootstrap),
            ("kafka.topic_prefix", prefix),
            ("kafka.commit_interval", "100ms"),
            ("kafka.schema_registry_url", &*self.registry),
        ];
        let set: Vec<_> = own.into_iter().chain(set.iter().copied()).collect();
        let directory = tempfile::tempdir().unwrap();
        Config::defaults_in(directory.path(), &set).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// Host and port of the registry.
    pub fn registry_address(&self) -> String {
        self.registry.trim_start_matches("http://").split('/').next().unwrap().to_owned()
    }

    /// The registry's URL as it is behind a proxy on this port.
    pub fn registry_at(&self, port: u16) -> String {
        self.registry.replace(&self.registry_address(), &format!("127.0.0.1:{port}"))
    }

    /// A client of somebody else's.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.bootstrap);
        client
    }
}

pub fn unique_prefix() -> String {
    format!("contract-{}-", event_gateway::domain::Id::new())
}

pub fn event_type(name: &str) -> Arc<EventType> {
    Catalogue::load(&[]).unwrap().get(name).unwrap().clone()
}

/// One topic with one type of event.
pub fn topology(prefix: &str, partitions: u32) -> KafkaTopology {
    let topic =
        TopicSpec { name: format!("{prefix}{TOPIC}").into(), partitions, retention: Duration::from_secs(24 * 3600) };
    KafkaTopology { topics: vec![topic], types: vec![(TOPIC.into(), event_type("job.cancelled"))] }
}

pub fn consumer(name: &str) -> Subscription {
    Subscription {
        consumer: name.into(),
        source: Source::Topics(vec![TOPIC.into()]),
        prefetch: 256,
        ack_wait: Duration::from_secs(30),
    }
}

pub fn route_to(topic: &str, key: &str) -> Route {
    Route { broker: Broker::Kafka, target: topic.into(), key: key.into(), optional: false }
}

/// One message of each of so many keys.
pub fn window(keys: usize, sequence: i64) -> Vec<Outgoing> {
    let keys = (0..keys).map(|n| format!("key-{n}"));
    keys.map(|key| Outgoing { event: event(&key, sequence), route: route_to(TOPIC, &key) }).collect()
}

/// As a lane does: what is not confirmed goes again.
pub async fn publish_until_confirmed(publisher: &dyn Publisher, mut waiting: Vec<Outgoing>) {
    while !waiting.is_empty() {
        let results = try_publish(publisher, &waiting).await;
        let mut results = results.iter();
        waiting.retain(|_| results.next().is_some_and(Result::is_err));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Kafka with a topic, subjects and groups of its own.
pub struct Fresh {
    pub site: Site,
    pub prefix: String,
    pub config: Config,
    pub kafka: Kafka,
}

impl Fresh {
    pub async fn with(site: Site, set: &[(&str, &str)]) -> Self {
        let prefix = unique_prefix();
        let config = site.config(&prefix, set);
        let kafka = Self::open(&config, &prefix).await;
        Self { site, prefix, config, kafka }
    }

    async fn open(config: &Config, prefix: &str) -> Kafka {
        let opened = Kafka::open_with(&config.kafka, &config.registry, topology(prefix, PARTITIONS));
        within(opened).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Another one beside it or after it.
    pub async fn open_again(&self) -> Kafka {
        Self::open(&self.config, &self.prefix).await
    }

    /// The topic's name in the cluster.
    pub fn topic(&self) -> String {
        format!("{}{TOPIC}", self.prefix)
    }

    /// Writes a record as somebody else would.
    pub async fn write(&self, record: FutureRecord<'_, str, [u8]>) {
        let producer: FutureProducer = self.site.client().set("partitioner", "murmur2_random").create().unwrap();
        within(producer.send(record, Duration::ZERO)).await.unwrap();
    }
}

impl Drop for Fresh {
    /// The cluster is shared: leave no topic behind.
    fn drop(&mut self) {
        let (client, topic) = (self.site.client(), self.topic());
        let deleting = std::thread::spawn(move || {
            let admin: rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> = client.create().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let options = rdkafka::admin::AdminOptions::new().request_timeout(Some(Duration::from_secs(5)));
            if let Err(error) = runtime.block_on(admin.delete_topics(&[&topic], &options)) {
                eprintln!("{topic} is left behind: {error}");
            }
        });
        if deleting.join().is_err() {
            eprintln!("{} is left behind", self.topic());
        }
    }
}

/// The fixture of the suite, which a test skips where there are no brokers.
pub struct Real(Option<Fresh>);

impl Real {
    fn fresh(&self) -> &Fresh {
        self.0.as_ref().expect("there until it is dropped")
    }
}

#[async_trait]
impl Fixture for Real {
    async fn start(_: &[&str]) -> Self {
        // A group begins at the beginning: nothing is declared for it.
        Self(Some(Fresh::with(Site::find().expect("asked for by the test"), &[]).await))
    }

    async fn restart(mut self) -> Self {
        let mut fresh = self.0.take().expect("there until it is dropped");
        within(fresh.kafka.shutdown()).await;
        fresh.kafka = Fresh::open(&fresh.config, &fresh.prefix).await;
        Self(Some(fresh))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.fresh().kafka.publisher()
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.fresh().kafka.subscriber()
    }

    fn route(&self, key: &str) -> Route {
        route_to(TOPIC, key)
    }

    fn nowhere(&self) -> Route {
        route_to("nowhere", "x")
    }

    fn durable(&self, name: &str) -> Subscription {
        consumer(name)
    }

    async fn publish_unreadable(self, key: &str, body: &'static [u8]) -> Self {
        let topic = self.fresh().topic();
        self.fresh().write(FutureRecord::to(&topic).key(key).payload(body)).await;
        self
    }
}

macro_rules! where_there_are_brokers {
    ($($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if Site::find().is_some() {
                    crate::suite::$test::<Real>().await;
                }
            }
        )*
    };
}

where_there_are_brokers! {
    a_message_arrives_as_it_was_published,
    order_holds_per_key,
    a_window_is_confirmed_message_by_message,
    confirmed_positions_increase,
    an_empty_window_is_fine,
    a_refused_message_does_not_harm_its_window,
    a_large_message_arrives_whole,
    what_was_not_acknowledged_comes_again_after_a_drop,
    messages_and_positions_survive_a_restart,
    unreadable_headers_are_delivered_as_such,
    no_more_than_the_prefetch_is_handed_out,
    a_receive_given_up_loses_nothing,
    a_waiting_receive_wakes_up,
    lag_falls_to_zero,
    acknowledging_twice_is_harmless,
    tokens_increase,
    each_consumer_gets_everything,
    sharing_readers_keep_order_per_key,
    a_second_reader_takes_over,
}
