//! Lost, silent and absent servers.

use std::time::Duration;

use event_gateway::broker::rabbitmq::RabbitMq;
use event_gateway::broker::{PublishError, Publisher};

use super::{Fresh, servers};
use crate::fixture::{Fixture, consume, outgoing, publish, receive, sequences, subscribe, try_publish, within};
use crate::proxy::{Mode, Proxy};

async fn until_up(rabbitmq: &RabbitMq) {
    within(rabbitmq.health().wait_for(|health| health.up)).await.unwrap();
}

/// Publishes until it is confirmed, as a lane does.
async fn publish_until_confirmed(fixture: &Fresh, publisher: &dyn Publisher, sequence: i64) {
    let window = [outgoing(fixture, "alpha", sequence)];
    within(async {
        while let Err(error) = try_publish(publisher, &window).await.remove(0) {
            assert!(matches!(error, PublishError::Down(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_comes_back_by_itself() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    let fixture = Fresh::with(&proxy.url, &[], &["reader"]).await;
    let publisher = fixture.publisher();
    publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&receive(&mut *inbound, 1).await), [1]);

    proxy.set(Mode::Cut);
    within(inbound.receive(1)).await.expect_err("the subscription is lost");
    let mut health = fixture.rabbitmq().health();
    within(health.wait_for(|health| !health.up && !health.why.is_empty())).await.unwrap();
    let error = try_publish(&*publisher, &[outgoing(&fixture, "alpha", 2)]).await.remove(0).unwrap_err();
    assert!(matches!(error, PublishError::Down(_)), "{error}");
    assert!(within(fixture.subscriber().subscribe(&fixture.durable("reader"))).await.is_err());

    proxy.set(Mode::Open);
    until_up(fixture.rabbitmq()).await;
    publish_until_confirmed(&fixture, &*publisher, 2).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 2).await), [1, 2], "what was not acknowledged comes again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_left_for_another() {
    let Some(urls) = servers() else { return };
    let nodes: Vec<&str> = urls.split(',').collect();
    let proxy = Proxy::before(nodes[0]).await;
    // Only the proxy is there at first, so that the connections go through it.
    let other = Proxy::before(nodes[1 % nodes.len()]).await;
    other.set(Mode::Cut);
    let both = format!("{},{}", proxy.url, other.url);
    let set = [("rabbitmq.confirm_timeout", "500ms"), ("rabbitmq.connect_timeout", "500ms")];
    let fixture = Fresh::with(&both, &set, &["reader"]).await;
    until_up(fixture.rabbitmq()).await;
    let publisher = fixture.publisher();
    publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;

    proxy.set(Mode::Silent);
    other.set(Mode::Open);
    let started = tokio::time::Instant::now();
    let error = try_publish(&*publisher, &[outgoing(&fixture, "alpha", 2)]).await.remove(0).unwrap_err();
    assert!(matches!(&error, PublishError::Down(why) if why.contains("no confirm within")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "its own timeout, not the server's");
    publish_until_confirmed(&fixture, &*publisher, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_away_at_the_start_is_no_error() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    proxy.set(Mode::Cut);
    let fixture = Fresh::with(&proxy.url, &[], &["reader"]).await;
    let health = fixture.rabbitmq().health().borrow().clone();
    assert!(!health.up && !health.why.is_empty(), "{health:?}");
    assert!(!health.why.contains("guest"), "no credentials: {}", health.why);

    proxy.set(Mode::Open);
    until_up(fixture.rabbitmq()).await;
    publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_reader_subscribes_again_while_its_old_queue_is_locked() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    let fixture = Fresh::with(&proxy.url, &[], &[]).await;
    let subscription = fixture.subscription(fixture.name("websocket-broadcast.one-1"), true);
    let first = subscribe(&fixture, &subscription).await;
    let mut second = subscribe(&fixture, &subscription).await;
    publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
    assert_eq!(sequences(&consume(&mut *second, 1).await), [1]);
    drop(first);
}

/// A queue hands its messages to one consumer: one that nobody reads would keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_given_up_at_any_step_leaves_no_consumer_behind() {
    let Some(urls) = servers() else { return };
    let proxy = Proxy::before(urls.split(',').next().unwrap()).await;
    let fixture = Fresh::with(&proxy.url, &[], &["reader"]).await;
    let (publisher, subscriber, reader) = (fixture.publisher(), fixture.subscriber(), fixture.durable("reader"));
    let way = Duration::from_millis(50);
    for step in 1.. {
        proxy.set(Mode::Late(way));
        // Each of its commands goes there and back; this ends while the answer to one is under way.
        let given_up = tokio::time::timeout(way * 2 * step - way / 2, subscriber.subscribe(&reader)).await;
        let whole = given_up.is_ok();
        drop(given_up);
        proxy.set(Mode::Open);
        let mut inbound = subscribe(&fixture, &reader).await;
        publish(&*publisher, &[outgoing(&fixture, "alpha", i64::from(step))]).await;
        assert_eq!(sequences(&consume(&mut *inbound, 1).await), [i64::from(step)]);
        // There was time for all steps.
        if whole {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_shutdown_everything_fails_at_once() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let (publisher, subscriber) = (fixture.publisher(), fixture.subscriber());
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    within(fixture.rabbitmq().shutdown()).await;
    within(inbound.receive(1)).await.expect_err("closed");
    let error = try_publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await.remove(0).unwrap_err();
    assert!(matches!(&error, PublishError::Down(why) if why == "closed"), "{error}");
    assert!(within(subscriber.subscribe(&fixture.durable("reader"))).await.is_err());
}
