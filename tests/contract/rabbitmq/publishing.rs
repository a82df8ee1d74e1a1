//! Messages that no queue takes, or that a queue refuses.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::{Outgoing, PublishError, Publisher};
use event_gateway::domain::catalogue::Route;
use event_gateway::task;
use lapin::options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::load::Load;
use super::{Fresh, outsider, servers, unbind, until_heard_again};
use crate::fixture::{Fixture, PATIENCE, consume, event, of, outgoing, publish, subscribe, try_publish, within};

fn elsewhere(fixture: &Fresh, key: &str, optional: bool) -> Outgoing {
    let route = Route { key: "metrics.job".into(), optional, ..fixture.route(key) };
    Outgoing { event: event(key, 1), route }
}

/// Pipelined with others, so that a return comes with somebody else's confirm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_message_is_told_from_its_neighbours() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let window: Vec<Outgoing> = (0..200)
        .map(|n| match n % 4 {
            1 => elsewhere(&fixture, &format!("optional-{n}"), true),
            3 => elsewhere(&fixture, &format!("needed-{n}"), false),
            _ => outgoing(&fixture, &format!("key-{n}"), 1),
        })
        .collect();
    let results = try_publish(&*fixture.publisher(), &window).await;
    for (n, result) in results.iter().enumerate() {
        match n % 4 {
            1 => assert!(matches!(result, Err(PublishError::NoQueueBound)), "{n}: {result:?}"),
            3 => assert!(matches!(result, Err(PublishError::Permanent(why)) if why.contains("metrics.job")), "{n}"),
            _ => assert!(result.is_ok(), "{n}: {result:?}"),
        }
    }
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = consume(&mut *inbound, 100).await;
    assert!(got.iter().all(|delivery| of(delivery).0.starts_with("key-")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_binding_is_made_again() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let (_connection, channel) = outsider(&urls).await;
    unbind(&channel, &fixture, "reader").await;
    publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 1).await;
}

/// The message is not returned: another queue takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_unbound_beside_others_is_bound_again() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader", "other"]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let (_connection, channel) = outsider(&urls).await;
    unbind(&channel, &fixture, "reader").await;
    until_heard_again(&fixture, &mut *inbound).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_deleted_under_load_loses_nothing() {
    let Some(urls) = servers() else { return };
    let fixture = Arc::new(Fresh::with(&urls, &[], &["reader"]).await);
    let (_connection, channel) = outsider(&urls).await;
    let load = Load::start(&fixture);
    for _ in 0..5 {
        load.progress(100, PATIENCE).await;
        unbind(&channel, &fixture, "reader").await;
    }
    load.progress(100, PATIENCE).await;
    load.finish(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_exchange_is_made_again() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let publisher = fixture.publisher();
    let (_connection, channel) = outsider(&urls).await;
    let deleting = channel.exchange_delete((&*fixture.name("events")).into(), ExchangeDeleteOptions::default());
    within(deleting).await.unwrap();
    let window = [outgoing(&fixture, "alpha", 1)];
    // The server closes the channel: nothing is known about the window, which comes again.
    let error = try_publish(&*publisher, &window).await.remove(0).unwrap_err();
    assert!(matches!(error, PublishError::Down(_)), "{error}");
    publish(&*publisher, &window).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_takes_again_when_it_has_room() {
    const LIMIT: usize = 1_000;
    let Some(urls) = servers() else { return };
    let limit = LIMIT.to_string();
    let fixture = Fresh::with(&urls, &[("rabbitmq.queue_max_length", &limit)], &["reader"]).await;
    let publisher = fixture.publisher();
    let window = |from: usize| -> Vec<Outgoing> {
        (from..from + 250).map(|n| outgoing(&fixture, &format!("key-{n}"), 1)).collect()
    };
    let mut accepted = 0;
    let mut waiting = Vec::new();
    for round in 0..12 {
        let (confirmed, refused) = split(&*publisher, window(round * 250)).await;
        accepted += confirmed;
        waiting.extend(refused);
    }
    assert!(!waiting.is_empty(), "three times the limit was sent");
    assert!(accepted >= LIMIT);
    let mut health = fixture.rabbitmq().health();
    let warned = within(health.wait_for(|health| health.warning.contains(&*fixture.name("reader")))).await;
    assert!(warned.unwrap().up);

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(consume(&mut *inbound, accepted).await.len(), accepted, "what was confirmed is there");
    let refused = waiting.len();
    within(async { tokio::join!(until_taken(&*publisher, waiting), consume(&mut *inbound, refused)) }).await;
    within(health.wait_for(|health| health.trouble().is_none())).await.unwrap();
}

/// How many are confirmed, and those that a full queue has refused.
async fn split(publisher: &dyn Publisher, window: Vec<Outgoing>) -> (usize, Vec<Outgoing>) {
    let results = try_publish(publisher, &window).await;
    let sent = window.len();
    let mut refused = Vec::new();
    for (outgoing, result) in window.into_iter().zip(results) {
        if let Err(error) = result {
            assert!(matches!(&error, PublishError::Transient(why) if why.contains("full")), "{error}");
            refused.push(outgoing);
        }
    }
    (sent - refused.len(), refused)
}

/// Sends what was refused again, as the relay does.
async fn until_taken(publisher: &dyn Publisher, mut waiting: Vec<Outgoing>) {
    while !waiting.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waiting = split(publisher, waiting).await.1;
    }
}

/// Its limit is not ours to know: only that it refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_somebody_else_that_refuses_is_shown_until_it_takes() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &["reader"]).await;
    let (_connection, channel) = outsider(&urls).await;
    let full = fixture.name("full");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(10));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within(channel.queue_declare((&*full).into(), durable, arguments)).await.unwrap();
    let (exchange, all) = (fixture.name("events"), QueueBindOptions::default());
    let binding = channel.queue_bind((&*full).into(), (&*exchange).into(), "job.#".into(), all, FieldTable::default());
    within(binding).await.unwrap();

    let publisher = fixture.publisher();
    let mut waiting = Vec::new();
    for n in 0..40 {
        waiting.extend(split(&*publisher, vec![outgoing(&fixture, &format!("key-{n}"), 1)]).await.1);
    }
    assert!(!waiting.is_empty(), "four times the limit was sent");
    let key = waiting[0].route.key.clone();
    let lane = task::spawn("lane", async move { until_taken(&*publisher, waiting).await });
    let mut health = fixture.rabbitmq().health();
    let shown = within(health.wait_for(|health| !health.warning.is_empty())).await.unwrap().clone();
    assert!(shown.up, "what others take goes on: {shown:?}");
    for part in [&*exchange, &*key, "refuses"] {
        assert!(shown.warning.contains(part), "{part} in {}", shown.warning);
    }

    within(channel.queue_delete((&*full).into(), QueueDeleteOptions::default())).await.unwrap();
    within(lane).await.unwrap();
    within(health.wait_for(|health| health.trouble().is_none())).await.unwrap();
}
