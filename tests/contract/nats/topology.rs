//! What is declared, and what is said when the cluster has something else.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull, push};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use event_gateway::broker::nats::{Nats, NatsError, NatsTopology};
use event_gateway::domain::catalogue::StreamKind;

use super::{Fresh, Log, Names, WorkQueue, config, open, outsider, servers};
use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_consumers_are_declared_as_the_topology_says() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let jetstream = outsider(&fixture.urls).await;
    let stream = jetstream.get_stream(&*fixture.names.stream).await.unwrap();
    let found = &stream.cached_info().config;
    assert_eq!((found.retention, found.num_replicas), (RetentionPolicy::WorkQueue, 3));
    assert_eq!(found.duplicate_window, Duration::from_secs(120));
    let consumer: PullConsumer = stream.get_consumer("reader").await.unwrap();
    let found = &consumer.cached_info().config;
    assert_eq!((found.max_deliver, found.ack_wait), (-1, Duration::from_secs(30)));
    assert_eq!(found.filter_subject, *fixture.names.subject("work.>"));

    // Again: idempotent; a consumer's times follow the configuration.
    let mut topology = fixture.topology.clone();
    topology.consumers[0].ack_wait = Duration::from_secs(60);
    open(&fixture.config, &topology).await.shutdown().await;
    let consumer: PullConsumer = stream.get_consumer("reader").await.unwrap();
    assert_eq!(consumer.cached_info().config.ack_wait, Duration::from_secs(60));
}

async fn refused(config: &event_gateway::config::Config, topology: NatsTopology) -> Vec<String> {
    match within(Nats::open(&config.nats, topology)).await {
        Err(NatsError::Mismatch(all)) => all.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_differs_is_refused_field_by_field() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let topology = NatsTopology { streams: vec![fixture.names.stream(StreamKind::WorkQueue)], consumers: vec![] };
    let config = config(&fixture.urls, &[("nats.replicas", "1"), ("nats.duplicate_window", "1m")]);
    let lines = refused(&config, topology).await;
    for (line, expected) in lines.iter().zip([
        "Retention is limits, must be workqueue; it cannot be changed",
        "Replicas is 3, must be 1",
        "Maximum Age is 1h, must be unlimited",
        "Duplicate Window is 2m, must be 1m; `nats stream edit",
    ]) {
        assert!(line.contains(expected) && line.contains(&*fixture.names.stream), "{expected}: {line}");
    }
    assert_eq!(lines.len(), 4, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_of_another_stream_is_named() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let mut stream = fixture.names.stream(StreamKind::WorkQueue);
    stream.name = Names::unique().stream;
    let lines = refused(&fixture.config, NatsTopology { streams: vec![stream], consumers: vec![] }).await;
    assert!(lines[0].contains("Subjects is taken by another stream"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_differ_are_refused() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    let pull = pull::Config {
        durable_name: Some("pulled".into()),
        filter_subject: fixture.names.subject("other.>").to_string(),
        max_deliver: 5,
        ..pull::Config::default()
    };
    stream.create_consumer(pull).await.unwrap();
    let push = push::Config {
        durable_name: Some("pushed".into()),
        deliver_subject: fixture.names.prefix.replace('.', "-"),
        ..push::Config::default()
    };
    stream.create_consumer(push).await.unwrap();
    let consumers = ["pulled", "pushed"].map(|name| fixture.names.queue(name, "work.>")).to_vec();
    let lines = refused(&fixture.config, NatsTopology { consumers, ..fixture.topology.clone() }).await;
    for (line, expected) in lines.iter().zip(["Filter Subject", "Maximum Deliveries is 5, must be -1", "Pull Mode"]) {
        assert!(line.contains(expected) && line.contains("nats consumer rm"), "{expected}: {line}");
    }
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_declared_again() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let jetstream = outsider(&fixture.urls).await;
    jetstream.delete_stream(&*fixture.names.stream).await.unwrap();
    let again = async {
        while jetstream.get_stream(&*fixture.names.stream).await.is_err() {
            let missed = try_publish(&*fixture.publisher(), &[outgoing(&fixture, "alpha", 1)]).await;
            let down = |why: &_| matches!(why, event_gateway::broker::PublishError::Down(_));
            assert!(missed[0].as_ref().err().is_none_or(down), "{missed:?}");
        }
    };
    within(again).await;
}

/// Written empty: the type that a stream has without our settings is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_that_would_drop_work_is_refused() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &[]).await;
    let jetstream = outsider(&fixture.urls).await;
    let found = jetstream.get_stream(&*fixture.names.stream).await.unwrap().cached_info().config.clone();
    jetstream.update_stream(Config { max_messages: 10, ..found }).await.unwrap();
    let lines = refused(&fixture.config, fixture.topology.clone()).await;
    assert!(lines[0].contains("Discard Policy is old: it drops work"), "{lines:?}");
}
