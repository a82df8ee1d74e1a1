//! What is declared, and what is found there.

use event_gateway::broker::rabbitmq::{RabbitMq, RabbitMqError};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::{Fresh, outsider, servers};
use crate::fixture::{Fixture, outgoing, publish, within};

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
