//! Messages that no queue takes, or that a queue refuses.

use std::sync::Arc;

use event_gateway::broker::{Outgoing, PublishError};
use event_gateway::domain::catalogue::Route;
use lapin::options::ExchangeDeleteOptions;
use lapin::types::FieldTable;

use super::load::Load;
use super::{Fresh, outsider, servers};
use crate::fixture::{Fixture, PATIENCE, QUIET, consume, event, of, outgoing, publish, subscribe, try_publish, within};

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
    let unbinding = channel.queue_unbind(
        (&*fixture.name("reader")).into(),
        (&*fixture.name("events")).into(),
        "job.#".into(),
        FieldTable::default(),
    );
    within(unbinding).await.unwrap();
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
    let (queue, exchange) = (fixture.name("reader"), fixture.name("events"));
    let unbinding = channel.queue_unbind((&*queue).into(), (&*exchange).into(), "job.#".into(), FieldTable::default());
    within(unbinding).await.unwrap();
    let publisher = fixture.publisher();
    within(async {
        for n in 0.. {
            publish(&*publisher, &[outgoing(&fixture, &format!("key-{n}"), 1)]).await;
            if tokio::time::timeout(QUIET, consume(&mut *inbound, 1)).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_deleted_under_load_loses_nothing() {
    let Some(urls) = servers() else { return };
    let fixture = Arc::new(Fresh::with(&urls, &[], &["reader"]).await);
    let (_connection, channel) = outsider(&urls).await;
    let load = Load::start(&fixture);
    for _ in 0..5 {
        load.progress(100, PATIENCE).await;
        let (queue, exchange) = (fixture.name("reader"), fixture.name("events"));
        let unbinding =
            channel.queue_unbind((&*queue).into(), (&*exchange).into(), "job.#".into(), FieldTable::default());
        within(unbinding).await.unwrap();
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
    let mut refused = None;
    for round in 0..12 {
        for result in try_publish(&*publisher, &window(round * 250)).await {
            match result {
                Ok(_) => accepted += 1,
                Err(error) => refused = Some(error),
            }
        }
    }
    let refused = refused.expect("three times the limit was sent");
    assert!(matches!(&refused, PublishError::Transient(why) if why.contains("full")), "{refused}");
    assert!(accepted >= LIMIT);
    let mut health = fixture.rabbitmq().health();
    let warned = within(health.wait_for(|health| !health.warning.is_empty())).await.unwrap().clone();
    assert!(warned.up && warned.warning.contains(&*fixture.name("reader")), "{warned:?}");

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(consume(&mut *inbound, accepted).await.len(), accepted, "what was confirmed is there");
    within(async {
        while try_publish(&*publisher, &[outgoing(&fixture, "late", 1)]).await[0].is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    within(health.wait_for(|health| health.trouble().is_none())).await.unwrap();
}
