//! What a delivery is answered with, and what the server makes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use event_gateway::broker::Subscription;
use futures_util::StreamExt;
use futures_util::stream::select_all;

use super::{Fresh, WorkQueue, outsider, servers};
use crate::fixture::*;

/// As the server sees it.
async fn reader(fixture: &Fresh<WorkQueue>) -> PullConsumer {
    let stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    stream.get_consumer("reader").await.unwrap()
}

async fn stored(fixture: &Fresh<WorkQueue>) -> u64 {
    let stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    stream.cached_info().state.messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_delivery_is_over_and_the_server_says_why() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{}.reader", fixture.names.stream);
    // At every server: the one that tells it knows its own subscribers at once.
    let mut advisories = Vec::new();
    for url in fixture.urls.split(',') {
        let client = within(async_nats::connect(url)).await.unwrap();
        advisories.push(client.subscribe(subject.clone()).await.unwrap());
        within(client.flush()).await.unwrap();
    }
    let mut advisories = select_all(advisories);

    publish_series(&fixture, "alpha", 1..=3).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 3).await;
    let ended = [(got[0].token, "no headers".into()), (got[2].token, "a body of\nnothing".into())];
    within(inbound.terminate(&ended)).await.unwrap();
    within(inbound.ack(&tokens(&got[1..2]))).await.unwrap();

    let mut told = BTreeSet::new();
    while told.len() < 2 {
        let advisory = within(advisories.next()).await.unwrap();
        let advisory: serde_json::Value = serde_json::from_slice(&advisory.payload).unwrap();
        told.insert((advisory["stream_seq"].as_i64(), advisory["reason"].as_str().unwrap().to_owned()));
    }
    let expected = [(&got[0], "no headers"), (&got[2], "a body of\nnothing")];
    assert_eq!(told, expected.map(|(delivery, why)| (delivery.position.offset, why.to_owned())).into());
    let consumer = reader(&fixture).await;
    let info = consumer.cached_info();
    assert_eq!((info.num_pending, info.num_ack_pending), (0, 0), "{info:?}");
    assert_eq!(stored(&fixture).await, 0);
}

/// The server hears that the work goes on; without that it would deliver again after a second.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_outlasts_the_servers_ack_wait_is_not_delivered_again() {
    const ACK_WAIT: Duration = Duration::from_secs(1);
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &[]).await;
    let subscription = Subscription { ack_wait: ACK_WAIT, ..fixture.durable("reader") };
    let mut inbound = subscribe(&fixture, &subscription).await;
    let mut other = subscribe(&fixture, &subscription).await;
    assert_eq!(reader(&fixture).await.cached_info().config.ack_wait, ACK_WAIT);
    publish_series(&fixture, "alpha", 1..=1).await;
    let held = tokio::select! {
        held = receive(&mut *inbound, 1) => held,
        held = receive(&mut *other, 1) => { std::mem::swap(&mut inbound, &mut other); held }
    };

    // Whoever asks would get it.
    let again = tokio::time::timeout(4 * ACK_WAIT, async {
        tokio::select! {
            again = inbound.receive(1) => again,
            again = other.receive(1) => again,
        }
    });
    assert!(again.await.is_err(), "it was delivered again");
    let consumer = reader(&fixture).await;
    let info = consumer.cached_info();
    assert_eq!((info.num_ack_pending, info.num_redelivered), (1, 0), "{info:?}");
    within(inbound.ack(&tokens(&held))).await.unwrap();
    assert_eq!(reader(&fixture).await.cached_info().num_ack_pending, 0);
    assert_eq!(stored(&fixture).await, 0);
}
