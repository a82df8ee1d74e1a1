//! What is declared, and what is found there.

use std::time::Duration;

use event_gateway::broker::Source;
use event_gateway::broker::rabbitmq::{RabbitMq, RabbitMqError, Topology};
use event_gateway::domain::catalogue::{Catalogue, ExchangeKind};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use super::{Fresh, config, outsider, servers, unbind, until_heard_again};
use crate::environment::variable;
use crate::fixture::{Fixture, Live, consume, outgoing, publish, subscribe, within};
use crate::proxy::{Mode, Proxy};

#[test]
fn the_catalogue_gives_the_exchanges() {
    let config = config("amqp://localhost", &[]);
    let topology = Topology::new(&config.rabbitmq, &Catalogue::load(&[]).unwrap(), &[]);
    let mut exchanges: Vec<(&str, ExchangeKind)> =
        topology.exchanges.iter().map(|(name, kind)| (&**name, *kind)).collect();
    exchanges.sort_by_key(|(name, _)| *name);
    let topic = |name| (name, ExchangeKind::Topic);
    let dead_letters = ("dlx", ExchangeKind::Direct);
    assert_eq!(exchanges, [dead_letters, topic("job.events"), topic("metrics"), topic("notifications")]);
    assert_eq!((&*topology.dead_letter_exchange, &*topology.dead_letter_queue), ("dlx", "job-dlq"));
}

/// The server compares: it refuses to declare a queue again with anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_have_the_properties_that_are_documented() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let text = |value: &str| AMQPValue::LongString(value.into());
    let (dlx, dlq) = (fixture.name("dlx"), fixture.name("job-dlq"));
    let common = [("x-queue-type", text("quorum")), ("x-single-active-consumer", AMQPValue::Boolean(true))];
    let effects = [
        ("x-max-length", AMQPValue::LongLongInt(100_000)),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text(&dlx)),
        ("x-dead-letter-routing-key", text(&dlq)),
        ("x-dead-letter-strategy", text("at-least-once")),
    ];
    let (_connection, channel) = outsider(&urls).await;
    for (queue, more) in [(fixture.name("reader"), &effects[..]), (dlq.clone(), &[][..])] {
        let mut arguments = FieldTable::default();
        for (name, value) in common.iter().chain(more) {
            arguments.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within(channel.queue_declare((&*queue).into(), options, arguments)).await.unwrap();
    }
}

/// As the server's management shows it: nobody else may ask on AMQP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_readers_queue_is_bounded_and_goes_with_it() {
    let (Some(urls), Some(management)) = (servers(), variable("EVENT_GATEWAY_TEST_RABBITMQ_MANAGEMENT")) else {
        return;
    };
    let fixture = Fresh::with(&urls, &[], &[]).await;
    let live = fixture.live();
    let Source::Queue { name, .. } = &live.source else { panic!("{live:?}") };
    // Its name goes on with a number, another one with each subscription.
    let shown = async || {
        let all: Vec<Value> = reqwest::get(format!("{management}/api/queues/%2f")).await.unwrap().json().await.unwrap();
        all.into_iter().find(|queue| queue["name"].as_str().is_some_and(|known| known.starts_with(&**name)))
    };
    let inbound = subscribe(&fixture, &live).await;
    let queue = shown().await.expect("a queue");
    assert_eq!((&queue["exclusive"], &queue["auto_delete"]), (&json!(true), &json!(true)), "{queue}");
    let bounds = json!({ "x-message-ttl": 30_000, "x-max-length": 50_000, "x-overflow": "drop-head" });
    assert_eq!(queue["arguments"], bounds);
    drop(inbound);
    let gone = async {
        while shown().await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declaring_twice_changes_nothing() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
    let again = within(RabbitMq::open(&fixture.config.rabbitmq, fixture.topology.clone())).await.unwrap();
    let (_connection, channel) = outsider(&urls).await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declaring = channel.queue_declare((&*fixture.name("reader")).into(), passive, FieldTable::default());
    assert_eq!(within(declaring).await.unwrap().message_count(), 1);
    within(again.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_properties_is_named_with_the_difference() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let mut other = fixture.topology.clone();
    other.max_length = 5;
    let error = within(RabbitMq::open(&fixture.config.rabbitmq, other)).await.err().expect("refused");
    let RabbitMqError::Topology(why) = &error else { panic!("{error}") };
    for part in [&*fixture.name("reader"), "x-max-length is 100000, wanted is 5", "rabbitmq.queue_max_length"] {
        assert!(why.contains(part), "{part} in {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_of_another_type_is_named_with_the_difference() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &[]).await;
    let mut other = fixture.topology.clone();
    let (name, kind) = other.exchanges.iter_mut().find(|(_, kind)| *kind == ExchangeKind::Topic).expect("a topic");
    *kind = ExchangeKind::Direct;
    let name = name.clone();
    let error = within(RabbitMq::open(&fixture.config.rabbitmq, other)).await.err().expect("refused");
    let RabbitMqError::Topology(why) = &error else { panic!("{error}") };
    for part in [&*name, "type is topic, wanted is direct"] {
        assert!(why.contains(part), "{part} in {why}");
    }
}

/// Somebody deletes a queue and makes it again with a limit of their own, and without bindings.
async fn recreate(urls: &str, fixture: &Fresh, queue: &str) {
    let queue = fixture.name(queue);
    within(async {
        loop {
            let (_connection, channel) = outsider(urls).await;
            channel.queue_delete((&*queue).into(), QueueDeleteOptions::default()).await.unwrap();
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(5));
            // The rest as it was: the server names what it finds first.
            for (name, value) in [
                ("x-overflow", "reject-publish"),
                ("x-dead-letter-exchange", &*fixture.topology.dead_letter_exchange),
                ("x-dead-letter-routing-key", &*fixture.topology.dead_letter_queue),
                ("x-dead-letter-strategy", "at-least-once"),
            ] {
                arguments.insert(name.into(), AMQPValue::LongString(value.into()));
            }
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            // Refused where the gateway was quicker.
            if channel.queue_declare((&*queue).into(), options, arguments).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_recreated_otherwise_while_it_runs_is_shown_until_it_is_mended() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    let fixture = Fresh::with(&proxy.url, &[], &["reader", "other"]).await;
    let (publisher, mut health) = (fixture.publisher(), fixture.rabbitmq().health());
    recreate(&urls, &fixture, "reader").await;
    let shown = within(health.wait_for(|health| !health.warning.is_empty())).await.unwrap().clone();
    assert!(shown.up, "everything else goes on: {shown:?}");
    let name = fixture.name("reader");
    for part in [&*name, "x-max-length is 5, wanted is 100000", "delete it", "rabbitmq.queue_max_length"] {
        assert!(shown.warning.contains(part), "{part} in {}", shown.warning);
    }
    within(fixture.subscriber().subscribe(&fixture.durable("reader"))).await.err().expect("nobody can read it");

    proxy.set(Mode::Cut);
    within(health.wait_for(|health| !health.up)).await.unwrap();
    proxy.set(Mode::Open);
    within(health.wait_for(|health| health.up)).await.expect("a new connection does not mind it more");
    publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;

    let (_connection, channel) = outsider(&urls).await;
    within(channel.queue_delete((&*name).into(), QueueDeleteOptions::default())).await.unwrap();
    within(health.wait_for(|health| health.trouble().is_none())).await.unwrap();
    publish(&*publisher, &[outgoing(&fixture, "alpha", 2)]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_queue_that_differs_is_declared_all_the_same() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["changed", "other", "witness"]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("other")).await;
    recreate(&urls, &fixture, "changed").await;
    let (_connection, channel) = outsider(&urls).await;
    unbind(&channel, &fixture, "other").await;
    // The witness takes them, so that none is returned.
    until_heard_again(&fixture, &mut *inbound).await;
}
