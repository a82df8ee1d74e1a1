//! The embedded brokers: their fixtures, and what only they promise.

mod durability;
mod failure;
mod kill;
mod reading;
mod retention;
mod routing;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use event_gateway::broker::embedded::{Embedded, EmbeddedTopology, Exchange, Retention, Stream, Topic};
use event_gateway::broker::{Publisher, Source, Subscriber, Subscription};
use event_gateway::domain::Broker;
use event_gateway::domain::catalogue::Route;
use sqlx::{Connection, SqliteConnection};

use crate::fixture::{Fixture, Live, TellsRedelivery, outgoing, publish};
use crate::suite::contract;

const FILE: &str = "brokers.db";

/// What differs from face to face.
pub trait Face: Send + Sync + 'static {
    const BROKER: Broker;
    fn source(consumer: &str) -> Source;
    fn route(key: &str) -> Route;
}

pub struct Rabbitmq;
pub struct Kafka;
pub struct Nats;

pub fn route(broker: Broker, target: &str, key: &str) -> Route {
    Route { broker, target: target.into(), key: key.into(), optional: false }
}

impl Face for Rabbitmq {
    const BROKER: Broker = Broker::Rabbitmq;

    fn source(consumer: &str) -> Source {
        let bindings = vec![("job.events".into(), "job.#".into())];
        Source::Queue { name: consumer.into(), bindings, exclusive: false }
    }

    fn route(key: &str) -> Route {
        route(Broker::Rabbitmq, "job.events", &format!("job.{key}.status"))
    }
}

impl Face for Kafka {
    const BROKER: Broker = Broker::Kafka;

    fn source(_: &str) -> Source {
        Source::Topics(vec!["job-lifecycle".into()])
    }

    fn route(key: &str) -> Route {
        route(Broker::Kafka, "job-lifecycle", key)
    }
}

impl Face for Nats {
    const BROKER: Broker = Broker::Nats;

    fn source(consumer: &str) -> Source {
        // A message of a work queue is one consumer's: only "reader" takes the route's.
        let filter = if consumer == "reader" { "commands.work.>" } else { "commands.other.>" };
        Source::WorkQueue { stream: "COMMANDS".into(), filter: filter.into() }
    }

    fn route(key: &str) -> Route {
        route(Broker::Nats, "commands.work.run", key)
    }
}

pub struct Fresh<F> {
    pub directory: tempfile::TempDir,
    pub topology: EmbeddedTopology,
    pub embedded: Embedded,
    face: PhantomData<F>,
}

pub fn consumer(name: &str, source: Source) -> Subscription {
    Subscription { consumer: name.into(), source, prefetch: 256, ack_wait: Duration::from_secs(30) }
}

pub fn topology<F: Face>(consumers: &[&str]) -> EmbeddedTopology {
    let retention = Retention::default();
    EmbeddedTopology {
        exchanges: vec![
            Exchange { name: "job.events".into(), retention },
            Exchange { name: "metrics".into(), retention },
        ],
        topics: vec![Topic { name: "job-lifecycle".into(), partitions: 4, retention }],
        streams: vec![Stream { name: "COMMANDS".into(), subjects: vec!["commands.>".into()], retention }],
        consumers: consumers.iter().map(|name| consumer(name, F::source(name))).collect(),
        ..EmbeddedTopology::default()
    }
}

impl<F: Face> Fresh<F> {
    pub async fn open(directory: tempfile::TempDir, topology: EmbeddedTopology) -> Self {
        let embedded = Embedded::open(&directory.path().join(FILE), topology.clone()).await.unwrap();
        Self { directory, topology, embedded, face: PhantomData }
    }

    pub async fn with(topology: EmbeddedTopology) -> Self {
        Self::open(tempfile::tempdir().unwrap(), topology).await
    }

    /// A connection of somebody else's to the file.
    pub async fn intruder(&self) -> SqliteConnection {
        SqliteConnection::connect(self.directory.path().join(FILE).to_str().unwrap()).await.unwrap()
    }

    /// What a process killed now would leave behind, opened.
    pub async fn killed(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for file in [FILE, "brokers.db-wal"] {
            std::fs::copy(self.directory.path().join(file), directory.path().join(file)).unwrap();
        }
        Self::open(directory, self.topology.clone()).await
    }
}

#[async_trait]
impl<F: Face> Fixture for Fresh<F> {
    async fn start(consumers: &[&str]) -> Self {
        Self::with(topology::<F>(consumers)).await
    }

    async fn restart(self) -> Self {
        self.embedded.shutdown().await;
        Self::open(self.directory, self.topology).await
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.embedded.publisher(F::BROKER)
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.embedded.subscriber(F::BROKER)
    }

    fn route(&self, key: &str) -> Route {
        F::route(key)
    }

    fn nowhere(&self) -> Route {
        route(F::BROKER, "nowhere", "x")
    }

    fn durable(&self, name: &str) -> Subscription {
        consumer(name, F::source(name))
    }

    /// Damages a record on disk: the publisher cannot write such a thing.
    async fn publish_unreadable(self, key: &str, body: &'static [u8]) -> Self {
        let position = publish(&*self.publisher(), &[outgoing(&self, key, 0)]).await.remove(0);
        self.embedded.shutdown().await;
        let mut connection = self.intruder().await;
        let changed = sqlx::query(
            "UPDATE records SET headers = '{\"event_id\": 3}', body = ? WHERE \"offset\" = ? AND partition_id = \
             (SELECT id FROM partitions WHERE log = ? AND partition = ?)",
        )
        .bind(body)
        .bind(position.offset.unwrap())
        .bind(position.log.to_string())
        .bind(position.partition)
        .execute(&mut connection)
        .await
        .unwrap();
        assert_eq!(changed.rows_affected(), 1);
        connection.close().await.unwrap();
        Self::open(self.directory, self.topology).await
    }
}

impl Live for Fresh<Rabbitmq> {
    fn live(&self) -> Subscription {
        let bindings = vec![("job.events".into(), "#".into())];
        consumer("live", Source::Queue { name: "live-1".into(), bindings, exclusive: true })
    }
}

impl Live for Fresh<Nats> {
    fn live(&self) -> Subscription {
        consumer("live", Source::Ephemeral { stream: "COMMANDS".into(), filter: "commands.*.run".into() })
    }
}

impl TellsRedelivery for Fresh<Rabbitmq> {}
impl TellsRedelivery for Fresh<Kafka> {}
impl TellsRedelivery for Fresh<Nats> {}

macro_rules! every_broker {
    ($fixture:ty; $($more:ident),* $(,)?) => {
        contract! { $fixture:
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
            $($more),*
        }
    };
}

mod rabbitmq {
    use super::*;

    every_broker! { Fresh<Rabbitmq>;
        each_consumer_gets_everything,
        sharing_readers_keep_order_per_key,
        a_second_reader_takes_over,
        a_live_reader_starts_now,
        a_live_reader_leaves_nothing_behind,
    }
}

mod kafka {
    use super::*;

    every_broker! { Fresh<Kafka>;
        each_consumer_gets_everything,
        sharing_readers_keep_order_per_key,
        a_second_reader_takes_over,
    }
}

mod nats {
    use super::*;

    every_broker! { Fresh<Nats>;
        a_live_reader_starts_now,
        a_live_reader_leaves_nothing_behind,
        competing_readers_share_the_work,
        work_not_acknowledged_in_time_goes_to_another,
        acknowledged_work_stays_done_after_a_restart,
        terminated_work_is_not_delivered_again,
    }
}
