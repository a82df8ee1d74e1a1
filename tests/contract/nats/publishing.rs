//! What only JetStream's publisher and readers promise.

use event_gateway::broker::{Outgoing, PublishError, Source, Subscription};

use super::{Fresh, Log, WorkQueue, outsider, servers};
use crate::fixture::*;

/// A stock client reads what CloudEvents' binding says.
#[tokio::test(flavor = "multi_thread")]
async fn the_envelope_travels_as_cloudevents_headers() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let sent = outgoing(&fixture, "alpha beta", 3);
    let position = publish(&*fixture.publisher(), std::slice::from_ref(&sent)).await.remove(0);
    let stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    let message = stream.get_raw_message(position.offset.unwrap() as u64).await.unwrap();
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    assert_eq!(header("ce-specversion"), "1.0");
    assert_eq!(header("ce-type"), "job.cancelled");
    assert_eq!(header("ce-subject"), "alpha%20beta");
    assert_eq!(header("ce-sequence"), "3");
    assert_eq!(header("ce-datacontenttype"), "application/json");
    assert_eq!(header("ce-id"), sent.event.event_id.to_string());
    assert_eq!(header("Nats-Msg-Id"), sent.event.event_id.to_string());
    assert_eq!(message.payload, sent.event.payload.json);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_publish_is_one_message() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let window = [outgoing(&fixture, "alpha", 1)];
    let first = publish(&*fixture.publisher(), &window).await;
    assert_eq!(publish(&*fixture.publisher(), &window).await, first);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [1]);
    expect_quiet(&mut *inbound).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_stream_takes_is_refused_or_skipped() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &[]).await;
    let to_nowhere = |optional| {
        let mut outgoing = Outgoing { event: event("alpha", 1), route: fixture.nowhere() };
        outgoing.route.optional = optional;
        outgoing
    };
    let results = try_publish(&*fixture.publisher(), &[to_nowhere(false), to_nowhere(true)]).await;
    assert!(matches!(&results[0], Err(PublishError::Permanent(why)) if why.contains("nowhere.run")), "{results:?}");
    assert!(matches!(&results[1], Err(PublishError::NoQueueBound)), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_runner_kind_gets_its_own_work() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader", "other"]).await;
    let to =
        |rest: &str, sequence| Outgoing { event: event("alpha", sequence), route: fixture.names.route(rest, "alpha") };
    publish(&*fixture.publisher(), &[to("work.run", 1), to("other.run", 2), to("work.run", 3)]).await;
    let mut reader = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = consume(&mut *reader, 2).await;
    assert_eq!(sequences(&got), [1, 3]);
    assert_eq!(got[0].key, fixture.names.subject("work.run"));
    let mut other = subscribe(&fixture, &fixture.durable("other")).await;
    assert_eq!(sequences(&consume(&mut *other, 1).await), [2]);
    assert_eq!(within(other.lag()).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_another_broker_is_refused() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let topics = Subscription { source: Source::Topics(vec!["t".into()]), ..fixture.durable("reader") };
    let lost = within(fixture.subscriber().subscribe(&topics)).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("not a source of nats"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_consumer_ends_the_subscription_and_comes_back_with_the_next() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    expect_quiet(&mut *inbound).await;
    let jetstream = outsider(&fixture.urls).await;
    jetstream.delete_consumer_from_stream("reader", &*fixture.names.stream).await.unwrap();
    let lost = within(inbound.receive(1)).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("deleted"), "{lost}");
    publish_series(&fixture, "alpha", 1..=1).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_shutdown_nothing_is_published_or_read() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let (publisher, subscriber) = (fixture.publisher(), fixture.subscriber());
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    within(fixture.nats().shutdown()).await;
    let results = try_publish(&*publisher, &[outgoing(&fixture, "alpha", 1)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(why)) if why == "shut down"), "{results:?}");
    assert!(within(inbound.receive(1)).await.is_err());
    assert!(within(subscriber.subscribe(&fixture.durable("reader"))).await.is_err());
    assert!(!fixture.nats().health().borrow().up);
}
