//! What a broker under test provides, and the events the suite publishes.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use event_gateway::broker::{
    AckToken, Delivery, Inbound, Outgoing, Position, PublishError, Publisher, Subscriber, Subscription,
};
use event_gateway::domain::catalogue::{Catalogue, EventType, Route};
use event_gateway::domain::event::Origin;
use event_gateway::domain::{EncodedPayload, Event, EventDraft, Id, Timestamp};

/// Nothing a test waits for may take longer than this.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing has to happen before a test believes that nothing will.
pub const QUIET: Duration = Duration::from_millis(200);

/// One broker with one destination of its own and some durable consumers of it. Names
/// are unique to each fixture, so that tests can share a real broker.
#[async_trait]
pub trait Fixture: Sized + Send + Sync {
    /// Starts with a durable consumer for each of these names, declared but not subscribed.
    async fn start(consumers: &[&str]) -> Self;

    /// Stops the broker in an orderly way and starts it on what it has kept.
    async fn restart(self) -> Self;

    fn publisher(&self) -> Arc<dyn Publisher>;

    fn subscriber(&self) -> Arc<dyn Subscriber>;

    /// Where an event of this key goes.
    fn route(&self, key: &str) -> Route;

    /// A place that the broker does not have.
    fn nowhere(&self) -> Route;

    /// One of the durable consumers; it gets everything published to `route`.
    fn durable(&self, name: &str) -> Subscription;

    /// Publishes a message to `route(key)` whose headers cannot be read. Returns the
    /// fixture to go on with.
    async fn publish_unreadable(self, key: &str, body: &'static [u8]) -> Self;
}

/// Brokers that a reader can join for what comes from now on.
pub trait Live: Fixture {
    fn live(&self) -> Subscription;
}

/// Whether a delivery says that it is not the first.
pub trait TellsRedelivery: Fixture {}

fn job_cancelled() -> Arc<EventType> {
    static TYPE: LazyLock<Arc<EventType>> = LazyLock::new(|| {
        let catalogue = Catalogue::load(&[]).expect("the built-in catalogue is sound");
        catalogue.get("job.cancelled").expect("job.cancelled is built in").clone()
    });
    TYPE.clone()
}

/// An event of the aggregate `key`, which is a name: the job's id is random.
pub fn event_with(key: &str, sequence: i64, reason: &str) -> Arc<Event> {
    let json = serde_json::json!({ "job_id": Id::new(), "cancelled_by": "user", "reason": reason });
    let payload = EncodedPayload { json: Bytes::from(json.to_string()), avro: None };
    Arc::new(Event {
        position: 0,
        sequence,
        user_offset: Some(7),
        origin: Origin::default(),
        draft: EventDraft {
            event_id: Id::new(),
            event_type: job_cancelled(),
            aggregate_id: key.into(),
            user_id: "ada".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: Some(Id::new()),
            tags: vec!["contract".into()],
            payload,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            skip: Vec::new(),
        },
    })
}

pub fn event(key: &str, sequence: i64) -> Arc<Event> {
    event_with(key, sequence, &format!("{key} {sequence}"))
}

pub fn outgoing<F: Fixture>(fixture: &F, key: &str, sequence: i64) -> Outgoing {
    Outgoing { event: event(key, sequence), route: fixture.route(key) }
}

/// Publishes and expects every message to be confirmed.
pub async fn publish(publisher: &dyn Publisher, window: &[Outgoing]) -> Vec<Position> {
    let results = publish_settled(publisher, window).await;
    results.into_iter().map(|result| result.expect("confirmed")).collect()
}

/// Publishes, and asks again for what takes longer than a window waits, as a lane does.
pub async fn publish_settled(publisher: &dyn Publisher, window: &[Outgoing]) -> Vec<Result<Position, PublishError>> {
    let mut results = try_publish(publisher, window).await;
    let settled = async {
        loop {
            let is_open = |result: &Result<_, _>| matches!(result, Err(PublishError::Unsettled { .. }));
            let open: Vec<usize> = (0..window.len()).filter(|index| is_open(&results[*index])).collect();
            if open.is_empty() {
                return;
            }
            let again: Vec<Outgoing> = open.iter().map(|index| window[*index].clone()).collect();
            for (index, result) in open.into_iter().zip(try_publish(publisher, &again).await) {
                results[index] = result;
            }
        }
    };
    within(settled).await;
    results
}

pub async fn try_publish(publisher: &dyn Publisher, window: &[Outgoing]) -> Vec<Result<Position, PublishError>> {
    let results = within(publisher.publish(window)).await;
    assert_eq!(results.len(), window.len(), "one result per message");
    results
}

/// Publishes `1..=last` of one key, a window for each.
pub async fn publish_series<F: Fixture>(fixture: &F, key: &str, sequences: std::ops::RangeInclusive<i64>) {
    let publisher = fixture.publisher();
    for sequence in sequences {
        publish(&*publisher, &[outgoing(fixture, key, sequence)]).await;
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took longer than any test may wait")
}

pub async fn subscribe<F: Fixture>(fixture: &F, subscription: &Subscription) -> Box<dyn Inbound> {
    within(fixture.subscriber().subscribe(subscription)).await.expect("subscribed")
}

/// Receives until there are `count`, without acknowledging.
pub async fn receive(inbound: &mut dyn Inbound, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let more = within(inbound.receive(count - deliveries.len())).await.expect("received");
        assert!(!more.is_empty(), "receive waits for at least one");
        deliveries.extend(more);
        assert!(deliveries.len() <= count, "receive keeps to its maximum");
    }
    deliveries
}

/// Receives `count` and acknowledges each batch.
pub async fn consume(inbound: &mut dyn Inbound, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let more = within(inbound.receive(count - deliveries.len())).await.expect("received");
        within(inbound.ack(&tokens(&more))).await.expect("acknowledged");
        deliveries.extend(more);
    }
    deliveries
}

/// Expects that nothing is delivered for a while.
pub async fn expect_quiet(inbound: &mut dyn Inbound) {
    if let Ok(got) = tokio::time::timeout(QUIET, inbound.receive(100)).await {
        let got: Vec<String> = got.expect("received").iter().map(describe).collect();
        panic!("nothing was expected, but there came {got:?}");
    }
}

pub fn tokens(deliveries: &[Delivery]) -> Vec<AckToken> {
    deliveries.iter().map(|delivery| delivery.token).collect()
}

pub fn describe(delivery: &Delivery) -> String {
    let (key, sequence) = of(delivery);
    format!("{key} {sequence}")
}

/// The aggregate and its sequence.
pub fn of(delivery: &Delivery) -> (Arc<str>, i64) {
    let headers = delivery.headers.as_ref().expect("the headers are readable");
    (headers.aggregate_id.clone(), headers.sequence)
}

pub fn sequences(deliveries: &[Delivery]) -> Vec<i64> {
    deliveries.iter().map(|delivery| of(delivery).1).collect()
}

/// The sequences of each key in the order they came.
pub fn by_key(deliveries: &[Delivery]) -> BTreeMap<Arc<str>, Vec<i64>> {
    let mut keys: BTreeMap<Arc<str>, Vec<i64>> = BTreeMap::new();
    for delivery in deliveries {
        let (key, sequence) = of(delivery);
        keys.entry(key).or_default().push(sequence);
    }
    keys
}
