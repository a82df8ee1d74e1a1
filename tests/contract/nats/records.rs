//! Reading streams beside everybody else.

use event_gateway::broker::nats::NatsLog;
use event_gateway::broker::{BrokerLog, Extent, Keeps, LogRecord, Position};
use event_gateway::domain::Id;
use event_gateway::domain::catalogue::StreamKind;
use futures_util::TryStreamExt;

use super::{Fresh, Kind, Log, Names, WorkQueue, outsider, servers};
use crate::fixture::*;

async fn log<K: Kind>(fixture: &Fresh<K>) -> NatsLog {
    within(NatsLog::open(&fixture.config.nats, &fixture.topology.streams)).await.unwrap()
}

async fn extent(log: &NatsLog) -> Extent {
    within(log.extents()).await.unwrap().unwrap().remove(0)
}

async fn everything(log: &NatsLog) -> Vec<LogRecord> {
    let mut reader = within(log.read(&extent(log).await)).await.unwrap();
    let mut all = Vec::new();
    loop {
        let page = within(reader.next()).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

fn found(records: &[LogRecord]) -> Vec<(Id, Position)> {
    records.iter().map(|record| (record.headers.as_ref().unwrap().event_id, record.position.clone())).collect()
}

/// Publishes `count` events and returns where they are.
async fn published<K: Kind>(fixture: &Fresh<K>, count: i64) -> Vec<(Id, Position)> {
    let window: Vec<_> = (0..count).map(|key| outgoing(fixture, &format!("key-{key}"), 1)).collect();
    let positions = publish(&*fixture.publisher(), &window).await;
    window.iter().map(|outgoing| outgoing.event.event_id).zip(positions).collect()
}

/// More than one page; what was deleted is not there, and nobody notices the reader.
async fn reads_what_is_there<K: Kind>(count: i64) {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<K>::with(urls, &[], &["reader"]).await;
    assert!(everything(&log(&fixture).await).await.is_empty());
    let mut sent = published(&fixture, count).await;
    let log = log(&fixture).await;
    assert_eq!(found(&everything(&log).await), sent);

    let stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    for index in [sent.len() - 1, 5, 0] {
        let (_, position) = sent.remove(index);
        assert!(stream.delete_message(position.offset.unwrap().unsigned_abs()).await.unwrap());
    }
    let now = extent(&log).await;
    assert_eq!((now.start, now.end), (2, count + 1));
    assert_eq!(found(&everything(&log).await), sent);

    let consumers: Vec<_> = stream.consumer_names().try_collect().await.unwrap();
    assert_eq!(consumers, ["reader"]);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(consume(&mut *inbound, sent.len()).await.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_without_a_trace() {
    reads_what_is_there::<Log>(2500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_is_read_without_a_trace() {
    reads_what_is_there::<WorkQueue>(250).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_tells_what_its_consumers_were_given() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<WorkQueue>::with(urls, &[], &["reader"]).await;
    let sent = published(&fixture, 3).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    consume(&mut *inbound, 2).await;
    let log = log(&fixture).await;
    let Extent { start, end, keeps, .. } = extent(&log).await;
    assert_eq!((start, end), (3, 4));
    assert_eq!(keeps, Keeps::UntilConsumed(vec![(fixture.names.subject("work.>"), 3)]));
    assert_eq!(found(&everything(&log).await), sent[2..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_an_envelope_is_told_apart() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let fixture = fixture.publish_unreadable("alpha", b"{}").await;
    let records = everything(&log(&fixture).await).await;
    assert_eq!(records.len(), 1);
    assert!(records[0].headers.is_err() && records[0].position.offset == Some(1), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_missing_has_no_extent_and_is_not_made() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::<Log>::with(urls, &[], &[]).await;
    let names = Names::unique();
    let streams = [names.stream(StreamKind::WorkQueue)];
    let log = within(NatsLog::open(&fixture.config.nats, &streams)).await.unwrap();
    assert_eq!(within(log.extents()).await.unwrap(), Some(Vec::new()));
    assert_eq!(log.log_of(&names.route("work.run", "alpha")), Some(names.stream.clone()));
    assert_eq!(log.log_of(&fixture.names.route("work.run", "alpha")), None);
    assert!(outsider(&fixture.urls).await.get_stream(&*names.stream).await.is_err());
}
