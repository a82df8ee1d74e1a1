//! What happens to RabbitMQ while all its nodes are up.

use std::time::Duration;

use event_gateway::domain::Broker;
use lapin::options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};

use super::{FROZEN, MEMORY, RABBITS, limit_memory, survives, survives_a_minute, survives_and};
use crate::aftermath::nothing_is_missing;
use crate::readiness::scraped;
use crate::runtime::runtime_beside;
use crate::world::{World, address, brokers};

#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_memory_alarm_for_a_minute() {
    survives_a_minute(Broker::Rabbitmq, "rabbitmq", |_| {
        RABBITS.iter().for_each(|node| limit_memory(node, "1"));
        || RABBITS.iter().for_each(|node| limit_memory(node, MEMORY))
    });
}

/// As a client of its own.
fn rabbitmq<T>(world: &World, act: impl AsyncFnOnce(&Channel) -> Result<T, lapin::Error>) -> T {
    let urls = address("RABBITMQ").unwrap();
    let url = urls.split(',').next().unwrap().replace("/%2f", &format!("/{}", world.vhost));
    let runtime = runtime_beside();
    runtime.block_on(async {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let done = act(&channel).await.unwrap();
        connection.close(0, "done".into()).await.unwrap();
        done
    })
}

/// Somebody's queue takes a hundred messages and no more: all publishers of its exchange wait.
#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_queue_is_at_its_limit() {
    survives(&[], FROZEN, Some("rabbitmq"), |world| {
        rabbitmq(world, async |channel| {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(100));
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare("full".into(), durable, arguments).await?;
            let (exchange, key): (ShortString, ShortString) = ("job.events".into(), "job.#".into());
            channel.queue_bind("full".into(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await
        });
        let vhost = world.vhost.clone();
        move || drop(brokers(&["rabbitmqctl", "rabbit1", "delete_queue", "-p", &vhost, "full"]))
    });
}

/// All its bindings go with it.
#[test]
#[ignore = "deletes an exchange: make test-faults"]
fn an_exchange_is_deleted_under_load() {
    survives(&[], Duration::ZERO, None, |world| {
        for _ in 0..5 {
            rabbitmq(world, async |channel| {
                channel.exchange_delete("job.events".into(), ExchangeDeleteOptions::default()).await
            });
            std::thread::sleep(Duration::from_secs(2));
        }
        || {}
    });
}

/// What other queues of the exchange take is confirmed all the same. Nobody knows of a message that
/// was lost before it is overdue: later ones of its job are handled before it.
#[test]
#[ignore = "deletes bindings and a queue: make test-faults"]
fn a_binding_and_a_queue_are_deleted_under_load() {
    let fault = |world: &World| {
        for _ in 0..5 {
            rabbitmq(world, async |channel| {
                let [queue, exchange, key]: [ShortString; 3] =
                    ["job-events-audit", "job.events", "job.#"].map(Into::into);
                channel.queue_unbind(queue, exchange, key, FieldTable::default()).await
            });
            std::thread::sleep(Duration::from_secs(2));
        }
        rabbitmq(world, async |channel| {
            channel.queue_delete("job-events-api".into(), QueueDeleteOptions::default()).await
        });
        || {}
    };
    survives_and(&["consumer.overdue_after=5s"], Duration::ZERO, None, fault, |gateway, world| {
        nothing_is_missing(gateway, world);
        let metrics = scraped(gateway);
        let overdue = |line: &&str| line.starts_with("event_gateway_overdue_total{consumer=\"audit\"}");
        let line = metrics.lines().find(overdue).unwrap_or_else(|| panic!("{metrics}"));
        assert!(!line.ends_with(" 0"), "nothing was lost: {line}");
    });
}

/// The queues of single instances go with them.
#[test]
#[ignore = "closes connections: make test-faults"]
fn every_connection_to_rabbitmq_is_closed_again_and_again() {
    survives(&[], Duration::ZERO, None, |world| {
        for _ in 0..5 {
            brokers(&["rabbitmqctl", "rabbit1", "close_all_connections", "--vhost", &world.vhost, "by a test"]);
            std::thread::sleep(Duration::from_secs(3));
        }
        || {}
    });
}
