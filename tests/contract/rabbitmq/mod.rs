//! RabbitMQ, a real cluster: `EVENT_GATEWAY_TEST_RABBITMQ` (URLs with commas) says where.
//! Without it these tests say so and pass, or fail if `REQUIRE_BROKERS=1`.

mod cluster;
mod connection;
mod dead_letters;
mod faults;
mod load;
mod publishing;
mod secured;
mod takeover;
mod topology;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_gateway::broker::rabbitmq::{Queue, RabbitMq, Topology};
use event_gateway::broker::{Inbound, Publisher, Source, Subscriber, Subscription};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Catalogue, ExchangeKind, Route};
use event_gateway::domain::{Broker, Id};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::environment::variable;
use crate::fixture::{Fixture, Live, QUIET, consume, outgoing, publish, receive, sequences, subscribe, tokens, within};

/// The servers, or `None` when there are none and that is fine.
pub fn servers() -> Option<String> {
    variable("EVENT_GATEWAY_TEST_RABBITMQ")
}

pub fn config(urls: &str, set: &[(&str, &str)]) -> Config {
    let set: Vec<_> = [("rabbitmq.urls", urls)].into_iter().chain(set.iter().copied()).collect();
    let directory = tempfile::tempdir().unwrap();
    Config::defaults_in(directory.path(), &set).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A connection of somebody else's, with a channel.
pub async fn outsider(urls: &str) -> (Connection, Channel) {
    let url = urls.split(',').next().unwrap();
    let connection = within(Connection::connect(url, ConnectionProperties::default())).await.unwrap();
    let channel = within(connection.create_channel()).await.unwrap();
    (connection, channel)
}

/// Takes a fixture's queue off its exchange.
pub async fn unbind(channel: &Channel, fixture: &Fresh, queue: &str) {
    let (queue, exchange) = (fixture.name(queue), fixture.name("events"));
    let unbinding = channel.queue_unbind((&*queue).into(), (&*exchange).into(), "job.#".into(), FieldTable::default());
    within(unbinding).await.unwrap();
}

/// Publishes until the reader of a queue that was unbound gets something: it is bound again.
pub async fn until_heard_again(fixture: &Fresh, inbound: &mut dyn Inbound) {
    let publisher = fixture.publisher();
    within(async {
        for n in 0.. {
            publish(&*publisher, &[outgoing(fixture, &format!("key-{n}"), 1)]).await;
            if tokio::time::timeout(QUIET, consume(inbound, 1)).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

/// RabbitMQ with an exchange and queues of its own.
pub struct Fresh {
    /// Before the names of everything it has.
    pub prefix: String,
    pub urls: String,
    pub config: Config,
    pub topology: Topology,
    pub rabbitmq: Option<RabbitMq>,
    readers: AtomicU32,
}

impl Fresh {
    pub async fn with(urls: &str, set: &[(&str, &str)], consumers: &[&str]) -> Self {
        let fixture = Self::named(format!("contract-{}", Id::new()), urls, set, consumers);
        fixture.opened().await
    }

    /// Not opened yet.
    pub fn named(prefix: String, urls: &str, set: &[(&str, &str)], consumers: &[&str]) -> Self {
        let config = config(urls, set);
        let mut topology = Topology::new(&config.rabbitmq, &Catalogue::load(&[]).unwrap(), &[]);
        let name = |name: &str| -> Arc<str> { format!("{prefix}.{name}").into() };
        topology.exchanges = vec![(name("events"), ExchangeKind::Topic), (name("dlx"), ExchangeKind::Direct)];
        topology.dead_letter_exchange = name("dlx");
        topology.dead_letter_queue = name("job-dlq");
        let queue = |consumer: &&str| Queue { name: name(consumer), bindings: vec![(name("events"), "job.#".into())] };
        topology.queues = consumers.iter().map(queue).collect();
        Self { prefix, urls: urls.to_owned(), config, topology, rabbitmq: None, readers: AtomicU32::new(0) }
    }

    pub async fn opened(mut self) -> Self {
        let opened = within(RabbitMq::open(&self.config.rabbitmq, self.topology.clone())).await;
        self.rabbitmq = Some(opened.unwrap_or_else(|error| panic!("{error}")));
        self
    }

    pub fn name(&self, name: &str) -> Arc<str> {
        format!("{}.{name}", self.prefix).into()
    }

    pub fn rabbitmq(&self) -> &RabbitMq {
        self.rabbitmq.as_ref().expect("open")
    }

    pub fn subscription(&self, queue: Arc<str>, exclusive: bool) -> Subscription {
        let bindings = vec![(self.name("events"), "job.#".into())];
        let source = Source::Queue { name: queue, bindings, exclusive };
        Subscription { consumer: "contract".into(), source, prefetch: 256, ack_wait: Duration::from_secs(30) }
    }
}

impl Drop for Fresh {
    /// The cluster is shared: leave nothing behind.
    fn drop(&mut self) {
        let Some(urls) = servers() else { return };
        let queues: Vec<Arc<str>> = (self.topology.queues.iter().map(|queue| queue.name.clone()))
            .chain([self.topology.dead_letter_queue.clone()])
            .collect();
        let exchanges: Vec<Arc<str>> = self.topology.exchanges.iter().map(|(name, _)| name.clone()).collect();
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (_connection, channel) = outsider(&urls).await;
                for queue in queues {
                    let _ = channel.queue_delete((&*queue).into(), QueueDeleteOptions::default()).await;
                }
                for exchange in exchanges {
                    let _ = channel.exchange_delete((&*exchange).into(), ExchangeDeleteOptions::default()).await;
                }
            });
        });
        if deleting.join().is_err() {
            eprintln!("{} is left behind", self.prefix);
        }
    }
}

#[async_trait]
impl Fixture for Fresh {
    async fn start(consumers: &[&str]) -> Self {
        Self::with(&servers().expect("asked for by the test"), &[], consumers).await
    }

    async fn restart(mut self) -> Self {
        let rabbitmq = self.rabbitmq.take().expect("open");
        within(rabbitmq.shutdown()).await;
        self.opened().await
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.rabbitmq().publisher()
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.rabbitmq().subscriber()
    }

    fn route(&self, key: &str) -> Route {
        let (target, key) = (self.name("events"), format!("job.{key}.status").into());
        Route { broker: Broker::Rabbitmq, target, key, optional: false }
    }

    fn nowhere(&self) -> Route {
        Route { target: self.name("nowhere"), ..self.route("x") }
    }

    fn durable(&self, name: &str) -> Subscription {
        self.subscription(self.name(name), false)
    }

    async fn publish_unreadable(self, key: &str, body: &'static [u8]) -> Self {
        let (_connection, channel) = outsider(&self.urls).await;
        within(channel.confirm_select(ConfirmSelectOptions::default())).await.unwrap();
        let route = self.route(key);
        let sent = channel.basic_publish(
            (&*route.target).into(),
            (&*route.key).into(),
            BasicPublishOptions::default(),
            body,
            BasicProperties::default(),
        );
        assert!(within(within(sent).await.unwrap()).await.unwrap().is_ack());
        self
    }
}

impl Live for Fresh {
    /// Another instance each time.
    fn live(&self) -> Subscription {
        let reader = self.readers.fetch_add(1, Ordering::Relaxed);
        self.subscription(self.name(&format!("websocket-broadcast.{reader}-1")), true)
    }
}

macro_rules! where_there_are_servers {
    ($($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if servers().is_some() {
                    crate::suite::$test::<Fresh>().await;
                }
            }
        )*
    };
}

where_there_are_servers! {
    a_message_arrives_as_it_was_published,
    order_holds_per_key,
    a_window_is_confirmed_message_by_message,
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
    a_live_reader_starts_now,
    a_live_reader_leaves_nothing_behind,
}

/// What was fetched ahead counts as delivered here, too: only what came later is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_delivery_says_so() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let publisher = fixture.publisher();
    publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 1).await;
    assert!(!got[0].redelivered);
    drop(inbound);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let mut got = receive(&mut *inbound, 1).await;
    // Published now, it cannot have been with the reader before.
    publish(&*publisher, &[outgoing(&fixture, "alpha", 2)]).await;
    got.extend(receive(&mut *inbound, 1).await);
    assert_eq!(sequences(&got), [1, 2]);
    assert_eq!(got.iter().map(|delivery| delivery.redelivered).collect::<Vec<_>>(), [true, false]);
    within(inbound.ack(&tokens(&got))).await.unwrap();
}
