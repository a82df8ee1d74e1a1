//! What RabbitMQ takes out of a consumer's queue: it comes back late, or is a dead letter.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use event_gateway::broker::dead_letters::DeathReason;
use event_gateway::broker::rabbitmq::Queue;
use event_gateway::broker::{Outgoing, Source};
use event_gateway::consumer::{
    ConsumerParts, Declaration, Effects, Handler, HandlerError, Message, dead_letter, spawn,
};
use event_gateway::domain::catalogue::{Catalogue, Order};
use event_gateway::domain::factory::EventFactory;
use event_gateway::domain::{Event, Id};
use event_gateway::relay::Handoff;
use event_gateway::service::committer::{Committer, CommitterOptions};
use event_gateway::store::sqlite::SqliteStore;
use event_gateway::store::{EffectRow, EffectState, Outcome, Store, Unit};
use event_gateway::telemetry::Metrics;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, BasicNackOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Fresh, outsider, servers};
use crate::fixture::{Fixture, event_with, publish, within};

const READER: &str = "reader";

/// What it got, in order.
struct Recorder {
    source: Source,
    handled: Arc<Mutex<Vec<(i64, Bytes)>>>,
}

#[async_trait]
impl Handler for Recorder {
    fn declaration(&self) -> Declaration {
        let source = self.source.clone();
        Declaration { name: READER, source, consumes: &[("job.cancelled", &[])], order: Order::Aggregate }
    }

    async fn handle(&self, batch: &[Message]) -> Vec<Result<Effects, HandlerError>> {
        let got = batch.iter().map(|message| (message.headers.sequence, message.body.clone()));
        self.handled.lock().extend(got);
        batch.iter().map(|_| Ok(Effects::default())).collect()
    }
}

struct NoRelay;

impl Handoff for NoRelay {
    fn committed(&self, _: &[Arc<Event>]) {}
    fn waited(&self, _: Duration) {}
}

/// A store with what writes to it, and the consumers of a fixture.
struct Gateway {
    parts: ConsumerParts,
    handled: Arc<Mutex<Vec<(i64, Bytes)>>>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Gateway {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::load(&[]).unwrap();
        let factory = Arc::new(EventFactory::new(catalogue.clone(), Default::default(), 1 << 20));
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&directory.path().join("gateway.db"), factory).await.unwrap());
        let metrics = Metrics::new();
        let options = CommitterOptions { max_bytes: 1 << 24, batch_rows: 256 };
        let (committer, _task) = Committer::spawn(store.clone(), Arc::new(NoRelay), options, metrics.clone());
        let parts = ConsumerParts { catalogue, committer, store, metrics };
        Self { parts, handled: Arc::default(), stop: CancellationToken::new(), _directory: directory }
    }

    /// Commits `count` events of one job.
    async fn events(&self, count: i64) -> Vec<Arc<Event>> {
        let job = Id::new().to_string();
        let drafts = (1..=count).map(|n| event_with(&job, n, "as stored").draft.clone());
        let unit = Unit { events: drafts.collect(), ..Unit::default() };
        match self.parts.committer.background(unit).await.unwrap() {
            Outcome::Committed { events, .. } => events,
            other => panic!("{other:?}"),
        }
    }

    fn start(&self, fixture: &Fresh) {
        let recorder = Recorder { source: fixture.durable(READER).source, handled: self.handled.clone() };
        let declaration = recorder.declaration();
        let tasks = spawn(Arc::new(recorder), fixture.subscriber(), &self.parts, &self.stop);
        let owner = dead_letter::Owner { declaration, retry_soon: tasks.retry_soon };
        dead_letter::spawn(fixture.rabbitmq().dead_letters(), vec![owner], &self.parts, &self.stop);
    }

    /// What the reader's row says about an event, once there is one in this state.
    async fn effect(&self, id: Id, state: EffectState) -> EffectRow {
        within(async {
            loop {
                let found = self.parts.store.event_deliveries(id).await.unwrap().expect("stored");
                if let Some(row) = found.effects.into_iter().find(|row| row.state == state) {
                    return row;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.parts.committer.close();
    }
}

/// The event as somebody else might have published it: with other bytes.
fn altered(fixture: &Fresh, event: &Event) -> Outgoing {
    let mut event = event.clone();
    event.draft.payload.json = event_with("x", 1, "as published").draft.payload.json.clone();
    Outgoing { event: Arc::new(event), route: fixture.route("alpha") }
}

async fn until_dead(urls: &str, fixture: &Fresh, count: u32) {
    let (_connection, channel) = outsider(urls).await;
    within(async {
        loop {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = fixture.name("job-dlq");
            let queue = channel.queue_declare((&*queue).into(), options, FieldTable::default()).await.unwrap();
            if queue.message_count() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Takes the next message of the reader's queue and refuses it for good.
async fn reject_one(urls: &str, fixture: &Fresh) {
    let (_connection, channel) = outsider(urls).await;
    let (queue, options) = (fixture.name(READER), BasicConsumeOptions::default());
    let consuming = channel.basic_consume((&*queue).into(), "".into(), options, FieldTable::default());
    let mut consumer = within(consuming).await.unwrap();
    let message = within(consumer.next()).await.expect("it is there").unwrap();
    within(message.nack(BasicNackOptions { requeue: false, ..BasicNackOptions::default() })).await.unwrap();
    until_dead(urls, fixture, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_redelivered_from_the_store_in_order() {
    const EVENTS: i64 = 20;
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[("rabbitmq.queue_ttl", "1s")], &[READER]).await;
    let gateway = Gateway::new().await;
    let events = gateway.events(EVENTS).await;
    for event in &events {
        publish(&*fixture.publisher(), &[altered(&fixture, event)]).await;
    }
    until_dead(&urls, &fixture, EVENTS as u32).await;

    gateway.start(&fixture);
    for event in &events {
        gateway.effect(event.event_id, EffectState::Done).await;
    }
    let handled = gateway.handled.lock().clone();
    assert_eq!(handled.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), (1..=EVENTS).collect::<Vec<_>>());
    for ((_, body), event) in handled.iter().zip(&events) {
        assert_eq!(*body, event.payload.json, "the store is the truth");
    }
}

/// As somebody made it before the gateway came: full, it drops its oldest.
async fn drop_head_queue(channel: &Channel, fixture: &Fresh, limit: i64) {
    let long = |value: &str| AMQPValue::LongString(value.into());
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", long("quorum")),
        ("x-overflow", long("drop-head")),
        ("x-max-length", AMQPValue::LongLongInt(limit)),
        ("x-dead-letter-exchange", long(&fixture.name("dlx"))),
        ("x-dead-letter-routing-key", long(&fixture.name("job-dlq"))),
    ] {
        arguments.insert(name.into(), value);
    }
    let (queue, exchange) = (fixture.name(READER), fixture.name("events"));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within(channel.queue_declare((&*queue).into(), options, arguments)).await.unwrap();
    let all = QueueBindOptions::default();
    let binding = channel.queue_bind((&*queue).into(), (&*exchange).into(), "job.#".into(), all, FieldTable::default());
    within(binding).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_over_length_is_redelivered_from_the_store_in_order() {
    const EVENTS: i64 = 20;
    const LIMIT: i64 = 5;
    let Some(urls) = servers() else { return };
    let mut fixture = Fresh::with(&urls, &[], &[]).await;
    let (_connection, channel) = outsider(&urls).await;
    drop_head_queue(&channel, &fixture, LIMIT).await;
    let gateway = Gateway::new().await;
    let events = gateway.events(EVENTS).await;
    for event in &events {
        publish(&*fixture.publisher(), &[altered(&fixture, event)]).await;
    }
    let pushed_out = (EVENTS - LIMIT) as usize;
    until_dead(&urls, &fixture, pushed_out as u32).await;
    let mut letters = within(fixture.rabbitmq().dead_letters().dead_letters("test", 256)).await.unwrap();
    let mut deaths = Vec::new();
    while deaths.len() < pushed_out {
        deaths.extend(within(letters.receive(256)).await.unwrap().into_iter().map(|letter| letter.deaths[0].clone()));
    }
    // They go back, unacknowledged.
    drop(letters);
    for death in deaths {
        assert_eq!((death.reason, death.queue), (DeathReason::OverLength, fixture.name(READER)));
    }

    // The last ones wait in the queue, which the gateway does not take as it is.
    gateway.start(&fixture);
    for event in &events[..pushed_out] {
        gateway.effect(event.event_id, EffectState::Done).await;
    }
    let handled = gateway.handled.lock().clone();
    let expected: Vec<i64> = (1..=pushed_out as i64).collect();
    assert_eq!(handled.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), expected);
    for ((_, body), event) in handled.iter().zip(&events) {
        assert_eq!(*body, event.payload.json, "the store is the truth");
    }
    // To be deleted with the others.
    fixture.topology.queues.push(Queue { name: fixture.name(READER), bindings: Vec::new() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_consumer_refused_is_its_dead_letter() {
    let Some(urls) = servers() else { return };
    let fixture = Fresh::with(&urls, &[], &[READER]).await;
    let gateway = Gateway::new().await;
    let events = gateway.events(2).await;
    for event in &events {
        publish(&*fixture.publisher(), &[altered(&fixture, event)]).await;
    }
    reject_one(&urls, &fixture).await;

    gateway.start(&fixture);
    let dead = gateway.effect(events[0].event_id, EffectState::Dead).await;
    let error = dead.error.expect("the history of its death");
    let history = format!("rejected in queue {}", fixture.name(READER));
    assert!(error.starts_with(&history) && error.contains("job.alpha.status"), "{error}");
    assert_eq!(&*dead.consumer, READER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_kept() {
    let Some(urls) = servers() else { return };
    let mut fixture = Fresh::with(&urls, &[], &[READER]).await;
    fixture = fixture.publish_unreadable("alpha", b"{\"raw\":true}").await;
    reject_one(&urls, &fixture).await;

    let gateway = Gateway::new().await;
    gateway.start(&fixture);
    within(async {
        loop {
            let backlog = gateway.parts.store.figures().await.unwrap().backlog;
            if !backlog.is_empty() {
                assert_eq!(backlog, vec![(Arc::<str>::from(READER), "dead", 1)]);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
