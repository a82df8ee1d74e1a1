//! What happens to RabbitMQ while all its nodes are up.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use event_gateway::domain::Broker;
use futures_util::{StreamExt, TryStreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};

use super::{
    AROUND, FROZEN, IMPATIENT, MEMORY, RABBITS, SOME, frozen, lasts, limit_memory, outlives, survives,
    survives_a_minute, survives_and, world,
};
use crate::aftermath::{all_is_well, nothing_is_missing};
use crate::gateway::Gateway;
use crate::intruder::Intruder;
use crate::readiness::metric;
use crate::reconcile::QUEUE;
use crate::runtime::runtime_beside;
use crate::world::{World, brokers, queue_leader};

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
    let runtime = runtime_beside();
    runtime.block_on(async {
        let connection = Connection::connect(&world.amqp(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let done = act(&channel).await.unwrap();
        connection.close(0, "done".into()).await.unwrap();
        done
    })
}

/// Somebody's queue, which has all events of jobs from now on.
fn queue_beside(world: &World, name: &str, more: &[(&str, AMQPValue)]) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    rabbitmq(world, async |channel| {
        channel.queue_declare(name.into(), durable, arguments).await?;
        let (exchange, key): (ShortString, ShortString) = ("job.events".into(), "job.#".into());
        channel.queue_bind(name.into(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await
    });
}

/// What these headers say in each message of a queue, which then is empty.
fn header_of_all(world: &World, queue: &str, headers: [&str; 3]) -> Vec<[String; 3]> {
    let of = |message: Delivery| {
        let table = message.properties.headers().clone().expect("an event has headers");
        headers.map(|name| match &table.inner()[&*format!("cloudEvents_{name}")] {
            AMQPValue::LongString(text) => text.to_string(),
            other => panic!("{name} is {other:?}"),
        })
    };
    rabbitmq(world, async |channel| {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let there = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.message_count();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let messages = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        messages.take(there as usize).map_ok(of).try_collect().await
    })
}

/// Whoever reads the queue beside ours, and forgets what it has had before, has each job's events in order.
fn first_occurrences_are_in_order(world: &World, queue: &str) {
    let messages = header_of_all(world, queue, ["subject", "sequence", "id"]);
    assert!(messages.len() > SOME, "{} messages", messages.len());
    let (mut had, mut last) = (HashSet::new(), HashMap::new());
    for [job, sequence, id] in messages {
        let sequence: u64 = sequence.parse().unwrap();
        if had.insert(id) {
            let before = last.insert(job.clone(), sequence);
            assert!(before < Some(sequence), "{job}: {sequence} is behind {before:?}");
        }
    }
}

/// Others than our consumers see the order, too.
#[test]
#[ignore = "freezes nodes: make test-faults"]
fn the_node_that_leads_a_queue_is_frozen() {
    let fault = |world: &World| {
        queue_beside(world, "witness", &[]);
        frozen(&queue_leader(world, QUEUE))
    };
    survives_and(&IMPATIENT, FROZEN, Some("rabbitmq"), fault, |gateway, world| {
        all_is_well(gateway, world);
        first_occurrences_are_in_order(world, "witness");
    });
}

/// Somebody's queue takes a hundred messages and no more: all publishers of its exchange wait.
#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_queue_is_at_its_limit() {
    survives(&[], FROZEN, Some("rabbitmq"), |world| {
        let overflow = AMQPValue::LongString("reject-publish".into());
        queue_beside(world, "full", &[("x-overflow", overflow), ("x-max-length", AMQPValue::LongInt(100))]);
        let vhost = world.vhost.clone();
        move || drop(brokers(&["rabbitmqctl", "rabbit1", "delete_queue", "-p", &vhost, "full"]))
    });
}

/// One of ours takes a thousand messages and no more, and its consumer has to wait for its turn.
#[test]
#[ignore = "blocks publishers: make test-faults"]
fn a_queue_whose_consumer_waits_is_at_its_limit() {
    const FEW: &str = "rabbitmq.queue_max_length=1000";
    let Some(world) = world() else { return };
    // The first declares the queue.
    assert!(Gateway::start(&[&world.settings()[..], &[FEW]].concat()).stop().success());
    let intruder = Intruder::next_in(&world, QUEUE);
    let meanwhile = |gateway: &Gateway| lasts(gateway, FROZEN, Some("rabbitmq"), || intruder.leave());
    outlives(&world, &[FEW], FROZEN + AROUND, meanwhile, all_is_well);
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
        assert!(metric(gateway, "overdue_total", "audit") > 0.0, "nothing was lost");
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
