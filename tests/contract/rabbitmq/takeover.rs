//! Two gateways on one queue with a single active consumer.

use event_gateway::broker::Inbound;
use event_gateway::broker::rabbitmq::RabbitMq;

use super::{Fresh, servers};
use crate::fixture::{
    Fixture, consume, expect_quiet, outgoing, publish, publish_series, receive, sequences, subscribe, tokens, within,
};
use crate::proxy::{Mode, Proxy};

async fn join(gateway: &RabbitMq, fixture: &Fresh) -> Box<dyn Inbound> {
    within(gateway.subscriber().subscribe(&fixture.durable("reader"))).await.expect("subscribed")
}

/// The first is gone without a word: its connections are reset with messages in its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_gateway_takes_over_from_one_that_is_cut_off() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    let fixture = Fresh::with(&proxy.url, &[], &["reader"]).await;
    let other = Fresh::named(fixture.prefix.clone(), &urls, &[], &["reader"]).opened().await;

    let mut first = subscribe(&fixture, &fixture.durable("reader")).await;
    let mut second = join(other.rabbitmq(), &other).await;
    publish_series(&other, "alpha", 1..=6).await;
    let held = receive(&mut *first, 4).await;
    assert_eq!(sequences(&held), [1, 2, 3, 4]);
    within(first.ack(&tokens(&held[..1]))).await.unwrap();
    // The server has it when it answers what was asked after it.
    within(first.lag()).await;
    expect_quiet(&mut *second).await;

    proxy.set(Mode::Cut);
    let got = receive(&mut *second, 5).await;
    assert_eq!(sequences(&got), [2, 3, 4, 5, 6], "what was not acknowledged, in order");
    assert!(got[..3].iter().all(|delivery| delivery.redelivered), "the first had seen these");
    // What it had fetched, then that it is cut off.
    while within(first.receive(100)).await.is_ok() {}
    within(first.ack(&tokens(&held[1..]))).await.expect_err("too late");
    within(second.ack(&tokens(&got))).await.unwrap();
    publish(&*other.publisher(), &[outgoing(&other, "alpha", 7)]).await;
    assert_eq!(sequences(&consume(&mut *second, 1).await), [7]);

    // Back again, it waits for its turn.
    proxy.set(Mode::Open);
    within(fixture.rabbitmq().health().wait_for(|health| health.up)).await.unwrap();
    let mut first = subscribe(&fixture, &fixture.durable("reader")).await;
    publish(&*other.publisher(), &[outgoing(&other, "alpha", 8)]).await;
    assert_eq!(sequences(&consume(&mut *second, 1).await), [8]);
    expect_quiet(&mut *first).await;
    drop(second);
    publish(&*other.publisher(), &[outgoing(&other, "alpha", 9)]).await;
    assert_eq!(sequences(&consume(&mut *first, 1).await), [9]);
}
