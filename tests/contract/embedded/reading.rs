//! Readers that are slower than memory is large.

use event_gateway::broker::embedded::{EmbeddedTopology, Limits};
use event_gateway::broker::{Outgoing, Subscription};

use super::{Face, Fresh, Kafka, Nats, Rabbitmq, topology};
use crate::fixture::*;

/// Memory for about 40 messages.
async fn forgetful<F: Face>(consumers: &[&str]) -> Fresh<F> {
    let limits = Limits { memory: 40 << 10, ..Limits::default() };
    Fresh::with(EmbeddedTopology { limits, ..topology::<F>(consumers) }).await
}

async fn publish_many<F: Face>(fixture: &Fresh<F>, keys: usize, sequences: std::ops::RangeInclusive<i64>) {
    for sequence in sequences {
        let window: Vec<Outgoing> = (0..keys).map(|n| outgoing(fixture, &format!("key-{n}"), sequence)).collect();
        publish(&*fixture.publisher(), &window).await;
    }
}

async fn a_slow_reader_gets_everything_in_order<F: Face>() {
    let fixture = forgetful::<F>(&["reader"]).await;
    publish_many(&fixture, 20, 1..=60).await;
    let mut inbound = subscribe(&fixture, &Subscription { prefetch: 50, ..fixture.durable("reader") }).await;
    // It catches up while more comes.
    let (got, ()) = tokio::join!(consume(&mut *inbound, 20 * 100), publish_many(&fixture, 20, 61..=100));
    let got = by_key(&got);
    assert_eq!(got.len(), 20);
    for (key, sequences) in got {
        assert_eq!(sequences, (1..=100).collect::<Vec<_>>(), "{key}");
    }
    expect_quiet(&mut *inbound).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_queue_gets_everything_in_order() {
    a_slow_reader_gets_everything_in_order::<Rabbitmq>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_group_gets_everything_in_order() {
    a_slow_reader_gets_everything_in_order::<Kafka>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_work_queue_gets_everything_in_order() {
    a_slow_reader_gets_everything_in_order::<Nats>().await;
}

/// Its filter takes nothing of a log much longer than memory; then one message matches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_passes_over_what_is_not_for_it() {
    let fixture = forgetful::<Nats>(&["reader", "other"]).await;
    publish_many(&fixture, 20, 1..=80).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("other")).await;
    expect_quiet(&mut *inbound).await;
    assert_eq!(inbound.lag().await, Some(0));
    let mut one = outgoing(&fixture, "alpha", 1);
    one.route.target = "commands.other.run".into();
    publish(&*fixture.publisher(), &[one]).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [1]);
}

/// A broadcast reader that falls behind loses the oldest and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_queue_drops_its_oldest() {
    let fixture = forgetful::<Rabbitmq>(&["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.live()).await;
    publish_series(&fixture, "alpha", 1..=200).await;
    let first = consume(&mut *inbound, 1).await;
    let from = of(&first[0]).1;
    assert!((101..=200).contains(&from), "dropped some, kept the newest: {from}");
    let rest = consume(&mut *inbound, (200 - from) as usize).await;
    assert_eq!(sequences(&rest), (from + 1..=200).collect::<Vec<_>>());
    expect_quiet(&mut *inbound).await;
    assert_eq!(inbound.lag().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_consumer_drops_nothing() {
    let fixture = forgetful::<Nats>(&["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.live()).await;
    publish_series(&fixture, "alpha", 1..=200).await;
    assert_eq!(sequences(&consume(&mut *inbound, 200).await), (1..=200).collect::<Vec<_>>());
}

/// Large messages are read in pages of bounded size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_are_read_in_order_from_the_file() {
    let fixture = forgetful::<Kafka>(&["reader"]).await;
    for sequence in 1..=12 {
        let event = event_with("alpha", sequence, &"x".repeat(400_000));
        publish(&*fixture.publisher(), &[Outgoing { event, route: fixture.route("alpha") }]).await;
    }
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 12).await), (1..=12).collect::<Vec<_>>());
}
