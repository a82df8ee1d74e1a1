//! NATS JetStream, a real cluster: `EVENT_GATEWAY_TEST_NATS` (URLs with commas) says where.
//! Without it these tests say so and pass, or fail if `REQUIRE_BROKERS=1`.

mod answers;
mod faults;
mod publishing;
mod records;
mod secured;
mod server;
mod topology;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_trait::async_trait;
use event_gateway::broker::nats::{Nats, NatsTopology};
use event_gateway::broker::{Publisher, Source, Subscriber, Subscription};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Route, Stream, StreamKind};
use event_gateway::domain::{Broker, Id};

use crate::environment::variable;
use crate::fixture::{Fixture, Live, TellsRedelivery, within};

/// The servers, or `None` when there are none and that is fine.
pub fn servers() -> Option<String> {
    variable("EVENT_GATEWAY_TEST_NATS")
}

pub fn config(urls: &str, set: &[(&str, &str)]) -> Config {
    let set: Vec<_> = [("nats.urls", urls)].into_iter().chain(set.iter().copied()).collect();
    let directory = tempfile::tempdir().unwrap();
    Config::defaults_in(directory.path(), &set).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A client of somebody else's.
pub async fn outsider(urls: &str) -> jetstream::Context {
    let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
    jetstream::new(within(async_nats::connect(urls)).await.unwrap())
}

/// A stream and subjects that nobody else has.
#[derive(Clone)]
pub struct Names {
    pub stream: Arc<str>,
    pub prefix: String,
}

impl Names {
    pub fn unique() -> Self {
        let id = Id::new();
        Self { stream: format!("CONTRACT-{id}").into(), prefix: format!("contract.{id}") }
    }

    pub fn subject(&self, rest: &str) -> Arc<str> {
        format!("{}.{rest}", self.prefix).into()
    }

    pub fn stream(&self, kind: StreamKind) -> Stream {
        Stream { name: self.stream.clone(), subjects: vec![self.subject(">")], kind }
    }

    pub fn queue(&self, name: &str, filter: &str) -> Subscription {
        let source = Source::WorkQueue { stream: self.stream.clone(), filter: self.subject(filter) };
        Subscription { consumer: name.into(), source, prefetch: 256, ack_wait: Duration::from_secs(30) }
    }

    pub fn route(&self, rest: &str, key: &str) -> Route {
        Route { broker: Broker::Nats, target: self.subject(rest), key: key.into(), optional: false }
    }
}

/// What differs between a work queue and a log.
pub trait Kind: Send + Sync + 'static {
    const KIND: StreamKind;
    fn filter(consumer: &str) -> &'static str;
}

pub struct WorkQueue;
pub struct Log;

impl Kind for WorkQueue {
    const KIND: StreamKind = StreamKind::WorkQueue;

    fn filter(consumer: &str) -> &'static str {
        // A message of a work queue is one consumer's: only "reader" takes the route's.
        if consumer == "reader" { "work.>" } else { "other.>" }
    }
}

impl Kind for Log {
    const KIND: StreamKind = StreamKind::Limits { max_age: Duration::from_secs(3600) };

    fn filter(_: &str) -> &'static str {
        "work.>"
    }
}

/// JetStream with a stream of its own.
pub struct Fresh<K> {
    pub names: Names,
    pub urls: String,
    pub config: Config,
    pub topology: NatsTopology,
    pub nats: Option<Nats>,
    kind: PhantomData<K>,
}

impl<K: Kind> Fresh<K> {
    pub async fn with(urls: String, set: &[(&str, &str)], consumers: &[&str]) -> Self {
        let names = Names::unique();
        let topology = NatsTopology {
            streams: vec![names.stream(K::KIND)],
            consumers: consumers.iter().map(|name| names.queue(name, K::filter(name))).collect(),
        };
        let config = config(&urls, set);
        let nats = Some(open(&config, &topology).await);
        Self { names, urls, config, topology, nats, kind: PhantomData }
    }

    pub fn nats(&self) -> &Nats {
        self.nats.as_ref().expect("there until it restarts")
    }
}

pub async fn open(config: &Config, topology: &NatsTopology) -> Nats {
    within(Nats::open(&config.nats, topology.clone())).await.unwrap_or_else(|error| panic!("{error}"))
}

impl<K> Drop for Fresh<K> {
    /// The cluster is shared: leave no stream behind.
    fn drop(&mut self) {
        let (urls, stream) = (self.urls.clone(), self.names.stream.clone());
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let deletion = async { outsider(&urls).await.delete_stream(&*stream).await };
                if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(5), deletion).await {
                    eprintln!("{stream} is left behind: {error}");
                }
            });
        });
        if deleting.join().is_err() {
            eprintln!("{} is left behind", self.names.stream);
        }
    }
}

#[async_trait]
impl<K: Kind> Fixture for Fresh<K> {
    async fn start(consumers: &[&str]) -> Self {
        Self::with(servers().expect("asked for by the test"), &[], consumers).await
    }

    async fn restart(mut self) -> Self {
        let nats = self.nats.take().expect("there until it restarts");
        within(nats.shutdown()).await;
        self.nats = Some(open(&self.config, &self.topology).await);
        self
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.nats().publisher()
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.nats().subscriber()
    }

    fn route(&self, key: &str) -> Route {
        self.names.route("work.run", key)
    }

    fn nowhere(&self) -> Route {
        Route { target: "nowhere.run".into(), ..self.route("x") }
    }

    fn durable(&self, name: &str) -> Subscription {
        self.names.queue(name, K::filter(name))
    }

    async fn publish_unreadable(self, _: &str, body: &'static [u8]) -> Self {
        let subject = self.names.subject("work.run").to_string();
        let outsider = outsider(&self.urls).await;
        let sent = within(outsider.publish(subject, body.into())).await.unwrap();
        within(sent.into_future()).await.unwrap();
        self
    }
}

impl Live for Fresh<Log> {
    fn live(&self) -> Subscription {
        let source = Source::Ephemeral { stream: self.names.stream.clone(), filter: self.names.subject("work.>") };
        Subscription { source, ..self.durable("live") }
    }
}

impl<K: Kind> TellsRedelivery for Fresh<K> {}

macro_rules! where_there_are_servers {
    ($fixture:ty: $($more:ident),* $(,)?) => {
        where_there_are_servers! { @each $fixture:
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
            a_repeated_delivery_says_so,
            competing_readers_share_the_work,
            work_not_acknowledged_in_time_goes_to_another,
            acknowledged_work_stays_done_after_a_restart,
            terminated_work_is_not_delivered_again,
            $($more),*
        }
    };
    (@each $fixture:ty: $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if servers().is_some() {
                    crate::suite::$test::<$fixture>().await;
                }
            }
        )*
    };
}

mod work_queue {
    use super::*;

    where_there_are_servers! { Fresh<WorkQueue>: }
}

mod log {
    use super::*;

    where_there_are_servers! { Fresh<Log>:
        each_consumer_gets_everything,
        a_live_reader_starts_now,
        a_live_reader_leaves_nothing_behind,
    }
}
