//! Publishing and consuming at once while something goes wrong, and the proof that nothing
//! was lost or overtaken.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::{Outgoing, Publisher};
use event_gateway::task;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Fresh;
use crate::fixture::{Fixture, of, outgoing, tokens};

const READER: &str = "reader";
const KEYS: usize = 20;
/// Between the tries of what was not confirmed.
const AGAIN: Duration = Duration::from_millis(50);

/// First occurrences of a key, in the order they came.
#[derive(Default)]
struct Seen {
    order: Vec<i64>,
    known: HashSet<i64>,
}

impl Seen {
    fn note(&mut self, sequence: i64) {
        if self.known.insert(sequence) {
            self.order.push(sequence);
        }
    }
}

type AllSeen = Arc<Mutex<BTreeMap<Arc<str>, Seen>>>;

/// One lane of keys and one reader of everything.
pub struct Load {
    /// The last sequence of each key that the broker confirmed.
    confirmed: Arc<Mutex<BTreeMap<Arc<str>, i64>>>,
    seen: AllSeen,
    /// Why something was not confirmed at last.
    refused: Arc<Mutex<String>>,
    stop_publishing: CancellationToken,
    stop_reading: CancellationToken,
    publishing: JoinHandle<()>,
    reading: JoinHandle<()>,
}

impl Load {
    /// Starts on a fixture with a durable consumer [`READER`].
    pub fn start(fixture: &Arc<Fresh>) -> Self {
        let (confirmed, seen, refused) = (Arc::default(), AllSeen::default(), Arc::default());
        let (stop_publishing, stop_reading) = (CancellationToken::new(), CancellationToken::new());
        let publishing =
            publish(fixture.clone(), Arc::clone(&confirmed), Arc::clone(&refused), stop_publishing.clone());
        let reading = read(fixture.clone(), Arc::clone(&seen), stop_reading.clone());
        Self {
            confirmed,
            seen,
            refused,
            stop_publishing,
            stop_reading,
            publishing: task::spawn("load-publisher", publishing),
            reading: task::spawn("load-reader", reading),
        }
    }

    /// Messages confirmed, messages seen.
    fn counts(&self) -> (i64, usize) {
        (self.confirmed.lock().values().sum(), self.seen.lock().values().map(|seen| seen.order.len()).sum())
    }

    /// Waits until at least `more` messages more were confirmed, and that many seen.
    pub async fn progress(&self, more: usize, limit: Duration) {
        let (confirmed, seen) = self.counts();
        let going_on = async {
            loop {
                let now = self.counts();
                if now.0 >= confirmed + more as i64 && now.1 >= seen + more {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let done = tokio::time::timeout(limit, going_on).await;
        let (now, refused) = (self.counts(), self.refused.lock().clone());
        assert!(done.is_ok(), "from {:?} only to {now:?} within {limit:?}; {refused}", (confirmed, seen));
    }

    /// Stops publishing, waits for what was confirmed, and checks: every message of every
    /// key was seen, first occurrences in order.
    pub async fn finish(self, limit: Duration) {
        self.stop_publishing.cancel();
        tokio::time::timeout(limit, self.publishing).await.expect("the window in hand is settled").unwrap();
        let confirmed = self.confirmed.lock().clone();
        let complete = async {
            let seen = |(key, last): (&Arc<str>, &i64)| {
                self.seen.lock().get(key).is_some_and(|seen| seen.known.contains(last))
            };
            while !confirmed.iter().all(seen) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let done = tokio::time::timeout(limit, complete).await;
        self.stop_reading.cancel();
        self.reading.await.unwrap();
        assert!(done.is_ok(), "not everything confirmed was seen within {limit:?}");
        for (key, seen) in &*self.seen.lock() {
            let expected: Vec<i64> = (1..=seen.order.len() as i64).collect();
            assert_eq!(seen.order, expected, "{key}: complete and in order");
        }
    }
}

/// As a lane does: the next event of a key goes when the one before is confirmed.
async fn publish(
    fixture: Arc<Fresh>,
    confirmed: Arc<Mutex<BTreeMap<Arc<str>, i64>>>,
    refused: Arc<Mutex<String>>,
    stop: CancellationToken,
) {
    let publisher: Arc<dyn Publisher> = fixture.publisher();
    let keys: Vec<Arc<str>> = (0..KEYS).map(|n| format!("key-{n}").into()).collect();
    let next = |key: &Arc<str>| confirmed.lock().get(key).copied().unwrap_or(0) + 1;
    let mut waiting: BTreeMap<Arc<str>, Outgoing> = BTreeMap::new();
    while !stop.is_cancelled() {
        for key in &keys {
            waiting.entry(key.clone()).or_insert_with(|| outgoing(&*fixture, key, next(key)));
        }
        let window: Vec<Outgoing> = waiting.values().cloned().collect();
        let results = publisher.publish(&window).await;
        let all = results.iter().all(Result::is_ok);
        for (outgoing, result) in window.iter().zip(results) {
            match result {
                Ok(_) => {
                    let key = &outgoing.event.aggregate_id;
                    confirmed.lock().insert(key.clone(), outgoing.event.sequence);
                    waiting.remove(key);
                }
                Err(error) => *refused.lock() = error.to_string(),
            }
        }
        if !all {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// As a consumer does: notes a batch, then acknowledges it; subscribes again when lost.
async fn read(fixture: Arc<Fresh>, seen: AllSeen, stop: CancellationToken) {
    let subscriber = fixture.subscriber();
    let reading = async {
        loop {
            let Ok(mut inbound) = subscriber.subscribe(&fixture.durable(READER)).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            while let Ok(got) = inbound.receive(64).await {
                for delivery in &got {
                    let (key, sequence) = of(delivery);
                    seen.lock().entry(key).or_default().note(sequence);
                }
                if inbound.ack(&tokens(&got)).await.is_err() {
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reading => {}
    }
}
