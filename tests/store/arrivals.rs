//! What a consumer should have got and has nothing of, and who gets it after all.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::consumer::overdue::{self, MODEL, Options, Owed};
use event_gateway::consumer::{ConsumerParts, audit};
use event_gateway::domain::{Broker, Event, Id, Timestamp};
use event_gateway::relay::Handoff;
use event_gateway::service::committer::{Committer, CommitterOptions};
use event_gateway::store::{
    Arrival, ArrivalQuery, Effect, Fold, Handled, LegMark, LegState, Look, Missing, Unit, Verdict,
};
use event_gateway::telemetry::Metrics;
use tokio_util::sync::CancellationToken;

use super::fixture::{Opened, commit, committed, delivery, factory, failed, job, submit};

const AUDIT: &str = "audit";
const SUBMITTED: &[&str] = &["job.submitted"];

async fn submitted(opened: &Opened) -> Arc<Event> {
    let events = committed(opened, submit(&job("ada"))).await;
    events.into_iter().find(|event| &*event.event_type.name == "job.submitted").expect("it is submitted")
}

/// RabbitMQ says so of its message.
async fn marked(opened: &Opened, event: &Event, state: LegState, at: Timestamp) {
    let mark = LegMark {
        position: event.position,
        broker: Broker::Rabbitmq,
        state,
        attempts: 1,
        partition: Some(0),
        offset: None,
        at,
        next_at: None,
        error: None,
        skip: None,
    };
    commit(opened, vec![Unit { marks: vec![mark], ..Unit::default() }]).await;
}

async fn confirmed(opened: &Opened, at: Timestamp) -> Arc<Event> {
    let event = submitted(opened).await;
    marked(opened, &event, LegState::Done, at).await;
    event
}

async fn look(opened: &Opened, types: &[&'static str], events: Look<'_>) -> Vec<Arrival> {
    let query = ArrivalQuery { consumer: AUDIT, broker: Broker::Rabbitmq, types, events };
    opened.store.arrivals(query).await.unwrap()
}

pub async fn what_has_not_arrived_is_found(opened: &Opened) {
    let at = Timestamp(1_700_000_000_000);
    let handled = confirmed(opened, at).await;
    commit(opened, vec![delivery(AUDIT, &handled, Verdict::Done)]).await;
    let waits = confirmed(opened, at).await;
    commit(opened, vec![delivery(AUDIT, &waits, failed(Some(Timestamp::now())))]).await;
    let dead = confirmed(opened, at).await;
    commit(opened, vec![delivery(AUDIT, &dead, failed(None))]).await;
    let of_another = confirmed(opened, at).await;
    commit(opened, vec![delivery("orchestrator", &of_another, Verdict::Done)]).await;
    let not_published = submitted(opened).await;

    let end = Timestamp::now().plus_ms(1).first_id();
    let all = look(opened, SUBMITTED, Look::Between { after: Id::ZERO, before: end, limit: 100 }).await;
    assert!(all.is_sorted_by_key(|arrival| arrival.event_id));
    let missing: Vec<(Id, LegState)> =
        all.iter().filter_map(|a| Some((a.event_id, a.missing.as_ref()?.state))).collect();
    assert_eq!(missing, [(of_another.event_id, LegState::Done), (not_published.event_id, LegState::Pending)]);
    let found = Missing { event_type: "job.submitted".into(), state: LegState::Done, at, partition: Some(0) };
    assert!(all.iter().any(|arrival| arrival.missing.as_ref() == Some(&found)));

    // By pages, whoever misses them.
    let mut pages: Vec<Arrival> = Vec::new();
    loop {
        let after = pages.last().map_or(Id::ZERO, |last| last.event_id);
        let page = look(opened, SUBMITTED, Look::Between { after, before: not_published.event_id, limit: 3 }).await;
        pages.extend(page.iter().cloned());
        match page.len() {
            3 => {}
            fewer => break assert!(fewer < 3),
        }
    }
    assert_eq!(pages, all.iter().filter(|a| a.event_id < not_published.event_id).cloned().collect::<Vec<_>>());
    let these = look(opened, SUBMITTED, Look::These(&[of_another.event_id, Id::new(), handled.event_id])).await;
    let missing: Vec<bool> = these.iter().map(|arrival| arrival.missing.is_some()).collect();
    assert_eq!(missing, [false, true], "in the order of their ids, without what is not there");
    let none = look(opened, &["job.failed"], Look::These(&[of_another.event_id])).await;
    assert!(none[0].missing.is_none(), "not what it handles");

    let last = async |before| opened.store.last_handled(AUDIT, Broker::Rabbitmq, before).await.unwrap();
    assert_eq!(last(end).await, [Handled { event_type: "job.submitted".into(), partition: Some(0), at }]);
    assert!(last(handled.event_id).await.is_empty());
}

/// The search on its own: nobody consumes, nobody publishes.
struct Search<'o> {
    opened: &'o Opened,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: Arc<Metrics>,
}

struct NoRelay;

impl Handoff for NoRelay {
    fn committed(&self, _: &[Arc<Event>]) {}
    fn waited(&self, _: Duration) {}
}

impl<'o> Search<'o> {
    fn start(opened: &'o Opened) -> Self {
        let metrics = Metrics::new();
        let options = CommitterOptions { max_bytes: 1 << 24, batch_rows: 256 };
        let (committer, _) = Committer::spawn(opened.store.clone(), Arc::new(NoRelay), options, metrics.clone());
        let catalogue = factory().catalogue().clone();
        let parts = ConsumerParts { catalogue, committer, store: opened.store.clone(), metrics: metrics.clone() };
        let owed = Owed { declaration: audit::declaration(), retry_soon: Arc::default(), drained: Arc::default() };
        let options = Options { after: Duration::from_millis(1), keep: Duration::from_secs(3600) };
        let stop = CancellationToken::new();
        let task = overdue::spawn(vec![owed], options, &parts, &stop);
        Self { opened, stop, task, metrics }
    }

    /// Waits until it has found everything before `event` to be well, and not this.
    async fn waits_for(&self, event: &Event) {
        let before = Id(uuid::Uuid::from_u128(event.event_id.0.as_u128() - 1)).to_string();
        let reached = async {
            while self.after().await.as_deref() != Some(&*before) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached).await.expect("it gets there");
    }

    async fn after(&self) -> Option<String> {
        let row = self.opened.store.read_model(MODEL, AUDIT).await.unwrap()?;
        Some(row["after"].as_str()?.to_owned())
    }

    async fn handed_over(&self) -> Vec<Id> {
        let (rows, _) = self.opened.store.backlog_due(AUDIT, Timestamp::now().plus_ms(1), 100).await.unwrap();
        rows.iter().map(|row| row.event_id).collect()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// As if it had looked at all there was.
async fn begun_long_ago(opened: &Opened) {
    let mut fold = Fold { model: MODEL, key: AUDIT.to_owned(), ..Fold::default() };
    fold.set.insert("after", Id::ZERO.to_string().into());
    commit(opened, vec![Unit { effects: vec![Effect::Fold(fold)], ..Unit::default() }]).await;
}

pub async fn what_was_overtaken_is_handed_over_and_what_lags_is_not(opened: &Opened) {
    begun_long_ago(opened).await;
    let ago = |seconds: i64| Timestamp::now().plus_ms(-1000 * seconds);
    let lost = confirmed(opened, ago(60)).await;
    let next = confirmed(opened, ago(50)).await;
    let last = confirmed(opened, ago(40)).await;
    let search = Search::start(opened);
    search.waits_for(&lost).await;
    assert!(search.handed_over().await.is_empty(), "a consumer that lags gets what it is owed by itself");

    commit(opened, vec![delivery(AUDIT, &next, Verdict::Done)]).await;
    search.waits_for(&last).await;
    assert_eq!(search.handed_over().await, [lost.event_id]);
    assert_eq!(search.metrics.consumer(AUDIT).overdue.get(), 1);
    let deliveries = opened.store.event_deliveries(lost.event_id).await.unwrap().unwrap();
    assert!(deliveries.effects[0].error.as_ref().is_some_and(|why| why.contains("overdue")), "{deliveries:?}");
    search.stop().await;
}

pub async fn a_leg_that_was_open_for_long_is_not_forgotten(opened: &Opened) {
    begun_long_ago(opened).await;
    let stuck = submitted(opened).await;
    let next = confirmed(opened, Timestamp::now()).await;
    commit(opened, vec![delivery(AUDIT, &next, Verdict::Done)]).await;
    let search = Search::start(opened);
    search.waits_for(&stuck).await;
    assert!(search.handed_over().await.is_empty(), "it was not published yet");
    marked(opened, &stuck, LegState::Done, Timestamp::now()).await;
    let next = confirmed(opened, Timestamp::now().plus_ms(1)).await;
    commit(opened, vec![delivery(AUDIT, &next, Verdict::Done)]).await;
    let handed_over = async {
        while search.handed_over().await != [stuck.event_id] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), handed_over).await.expect("it is handed over");
    search.stop().await;
}

pub async fn history_is_not_owed_to_a_new_consumer(opened: &Opened) {
    let ago = |seconds: i64| Timestamp::now().plus_ms(-1000 * seconds);
    let history = confirmed(opened, ago(60)).await;
    let handled = confirmed(opened, ago(50)).await;
    let search = Search::start(opened);
    let begun = async {
        loop {
            match search.after().await {
                Some(after) => break after,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let first = tokio::time::timeout(Duration::from_secs(30), begun).await.expect("it begins");
    assert!(first.parse::<Id>().unwrap() >= Timestamp(handled.event_id.timestamp_ms().unwrap() as i64).first_id());
    commit(opened, vec![delivery(AUDIT, &handled, Verdict::Done)]).await;
    // It has been through everything up to here.
    let newest = confirmed(opened, Timestamp::now().plus_ms(60_000)).await;
    search.waits_for(&newest).await;
    assert!(search.handed_over().await.is_empty(), "{}", history.event_id);
    search.stop().await;
}
