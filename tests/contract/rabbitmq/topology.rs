//! What is declared, and what is found there.

use event_gateway::broker::rabbitmq::{RabbitMq, RabbitMqError, Topology};
use event_gateway::domain::catalogue::{Catalogue, ExchangeKind};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::{Fresh, config, outsider, servers};
use crate::fixture::{Fixture, outgoing, publish, within};

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
    for part in [&*fixture.name("reader"), "x-max-length", "PRECONDITION_FAILED", "[rabbitmq]"] {
        assert!(why.contains(part), "{part} in {why}");
    }
}
