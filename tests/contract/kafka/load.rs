//! A load that keeps to the relay's rules, a reader beside it, and the judge of both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::{Outgoing, PublishError, Publisher, Subscriber};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{TOPIC, consumer, route_to};
use crate::fixture::{event, of, tokens};

/// A cluster that lost nodes may take so long to move on, on a busy machine.
pub const RECOVERY: Duration = Duration::from_secs(120);

/// Between two windows of a lane: the test is about faults and not about megabytes.
const PAUSE: Duration = Duration::from_millis(20);
const LANES: usize = 2;
const KEYS: usize = 24;

/// A lane's keys go out a window at a time; a key's next event only after the one before is
/// confirmed, and what failed goes again.
pub struct Load {
    /// The last confirmed sequence of each key.
    confirmed: Arc<watch::Sender<Vec<i64>>>,
    /// Publications that were not confirmed.
    failed: Arc<watch::Sender<usize>>,
    lanes: Vec<JoinHandle<()>>,
    reader: JoinHandle<()>,
    seen: watch::Receiver<HashMap<Arc<str>, Seen>>,
    stop: CancellationToken,
    stop_reading: CancellationToken,
}

/// What a reader has of one key.
#[derive(Default, Debug)]
struct Seen {
    last: i64,
    repeated: usize,
    /// A first occurrence that did not follow the one before.
    jump: Option<(i64, i64)>,
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

impl Load {
    pub fn start(publisher: Arc<dyn Publisher>, subscriber: Arc<dyn Subscriber>) -> Self {
        let confirmed = Arc::new(watch::Sender::new(vec![0; KEYS]));
        let failed = Arc::new(watch::Sender::new(0));
        let (stop, stop_reading) = (CancellationToken::new(), CancellationToken::new());
        let lanes = (0..LANES)
            .map(|lane| {
                let lane = Lane {
                    publisher: publisher.clone(),
                    keys: (0..KEYS).filter(|key| key % LANES == lane).collect(),
                    confirmed: confirmed.clone(),
                    failed: failed.clone(),
                };
                let stop = stop.clone();
                event_gateway::task::spawn("lane", async move { lane.run(&stop).await })
            })
            .collect();
        let (seen_by, seen) = watch::channel(HashMap::new());
        let reader = event_gateway::task::spawn("reader", read(subscriber, seen_by, stop_reading.clone()));
        Self { confirmed, failed, lanes, reader, seen, stop, stop_reading }
    }

    /// Waits until every key has got further.
    pub async fn moves_on(&self) {
        let before = self.confirmed.borrow().clone();
        let mut now = self.confirmed.subscribe();
        let moved = now.wait_for(|now| now.iter().zip(&before).all(|(now, before)| now > before));
        if tokio::time::timeout(RECOVERY, moved).await.is_err() {
            panic!("not every key moves on within {RECOVERY:?}: {before:?}, {:?}", self.confirmed.borrow());
        }
    }

    /// Waits until something more is not confirmed.
    pub async fn fails(&self) {
        let mut failed = self.failed.subscribe();
        let news = tokio::time::timeout(RECOVERY, failed.changed()).await;
        assert!(news.is_ok(), "everything is confirmed for {RECOVERY:?}");
    }

    /// Ends it and waits until the reader has everything that was confirmed. Panics unless
    /// first occurrences came in order, without a hole.
    pub async fn end(mut self) {
        self.stop.cancel();
        for lane in std::mem::take(&mut self.lanes) {
            lane.await.unwrap();
        }
        let confirmed = self.confirmed.borrow().clone();
        let reached = self.seen.wait_for(|seen| {
            let last = |number: usize| seen.get(&*key(number)).map_or(0, |seen| seen.last);
            confirmed.iter().enumerate().all(|(number, confirmed)| last(number) >= *confirmed)
        });
        let all = tokio::time::timeout(RECOVERY, reached).await.is_ok_and(|seen| seen.is_ok());
        self.stop_reading.cancel();
        (&mut self.reader).await.unwrap();
        let seen = self.seen.borrow();
        for (key, seen) in &*seen {
            assert_eq!(seen.jump, None, "{key} was reordered or has a hole");
        }
        assert!(all, "the reader lacks what was confirmed: {confirmed:?}, {seen:?}");
        let (count, repeated): (i64, usize) =
            seen.values().fold((0, 0), |(count, repeated), seen| (count + seen.last, repeated + seen.repeated));
        println!("{count} events of {} keys in order, {repeated} repeated", seen.len());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_reading.cancel();
    }
}

struct Lane {
    publisher: Arc<dyn Publisher>,
    keys: Vec<usize>,
    confirmed: Arc<watch::Sender<Vec<i64>>>,
    failed: Arc<watch::Sender<usize>>,
}

impl Lane {
    async fn run(&self, stop: &CancellationToken) {
        let mut window: Vec<Outgoing> = self.keys.iter().map(|number| outgoing(*number, 1)).collect();
        while !stop.is_cancelled() {
            let results = self.publisher.publish(&window).await;
            assert_eq!(results.len(), window.len());
            self.confirmed.send_modify(|confirmed| {
                for ((result, number), next) in results.into_iter().zip(&self.keys).zip(&mut window) {
                    match result {
                        Ok(_) => {
                            confirmed[*number] = next.event.sequence;
                            *next = outgoing(*number, next.event.sequence + 1);
                        }
                        Err(PublishError::Down(_) | PublishError::Transient(_)) => {
                            self.failed.send_modify(|failed| *failed += 1);
                        }
                        Err(PublishError::Unsettled { .. }) => {}
                        Err(wrong) => panic!("key {number}: {wrong}"),
                    }
                }
            });
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn outgoing(number: usize, sequence: i64) -> Outgoing {
    let key = key(number);
    Outgoing { event: event(&key, sequence), route: route_to(TOPIC, &key) }
}

/// Reads until it is told to stop, subscribing again whenever that is lost.
async fn read(subscriber: Arc<dyn Subscriber>, seen: watch::Sender<HashMap<Arc<str>, Seen>>, stop: CancellationToken) {
    let reading = async {
        loop {
            if let Ok(mut inbound) = subscriber.subscribe(&consumer("reader")).await {
                while let Ok(got) = inbound.receive(100).await {
                    seen.send_modify(|seen| got.iter().for_each(|delivery| note(seen, of(delivery))));
                    if inbound.ack(&tokens(&got)).await.is_err() {
                        break;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    stop.run_until_cancelled(reading).await;
}

fn note(seen: &mut HashMap<Arc<str>, Seen>, (key, sequence): (Arc<str>, i64)) {
    let seen = seen.entry(key).or_default();
    if sequence <= seen.last {
        seen.repeated += 1;
        return;
    }
    if sequence != seen.last + 1 {
        seen.jump.get_or_insert((seen.last, sequence));
    }
    seen.last = sequence;
}
