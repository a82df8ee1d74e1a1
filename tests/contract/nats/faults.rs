//! A cluster of the test's own loses nodes while events are published as the relay does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use event_gateway::broker::{Outgoing, PublishError, Publisher};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::server::{Cluster, program};
use super::{Fresh, Log, outsider};
use crate::fixture::*;

const KEYS: usize = 16;
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// Elections take some seconds; nothing here may take longer.
const LIMIT: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("took longer than a cluster needs to recover")
}

async fn start(cluster: &Cluster) -> Fresh<Log> {
    let timeout = humantime::format_duration(PUBLISH_TIMEOUT).to_string();
    let set = [("nats.publish_timeout", &*timeout), ("nats.request_timeout", "2s"), ("nats.ping_interval", "500ms")];
    let fixture = Fresh::<Log>::with(cluster.urls(), &set, &["reader"]).await;
    soon(fixture.nats().health().wait_for(|health| health.up)).await.unwrap();
    fixture
}

/// What the relay's lane does: a key's next event goes out when this one is confirmed.
struct Lane {
    next: Vec<(i64, Outgoing)>,
    failures: usize,
    confirmed: watch::Sender<usize>,
}

impl Lane {
    fn new(fixture: &Fresh<Log>) -> Self {
        let next = (0..KEYS).map(|key| (1, outgoing(fixture, &format!("key-{key}"), 1))).collect();
        Self { next, failures: 0, confirmed: watch::Sender::new(0) }
    }

    /// Publishes until every key's event `last` is confirmed.
    async fn run(&mut self, fixture: &Fresh<Log>, publisher: &dyn Publisher, last: i64) {
        while self.next.iter().any(|(sequence, _)| *sequence <= last) {
            let open: Vec<usize> = (0..KEYS).filter(|key| self.next[*key].0 <= last).collect();
            let window: Vec<Outgoing> = open.iter().map(|key| self.next[*key].1.clone()).collect();
            let mut down = false;
            for (key, result) in open.into_iter().zip(try_publish(publisher, &window).await) {
                let (sequence, waiting) = &mut self.next[key];
                match result {
                    Ok(_) => {
                        *sequence += 1;
                        self.confirmed.send_modify(|confirmed| *confirmed += 1);
                        *waiting = outgoing(fixture, &format!("key-{key}"), *sequence);
                    }
                    Err(PublishError::Down(_) | PublishError::Transient(_)) => {
                        self.failures += 1;
                        down = true;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            if down {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Reads until every key's event `last` was seen, over as many subscriptions as it takes.
async fn first_occurrences(fixture: &Fresh<Log>, last: i64) -> BTreeMap<std::sync::Arc<str>, Vec<i64>> {
    let mut seen: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    while seen.len() < KEYS || seen.values().any(|sequences| sequences.last() != Some(&last)) {
        let Ok(mut inbound) = fixture.subscriber().subscribe(&fixture.durable("reader")).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while seen.len() < KEYS || seen.values().any(|sequences| sequences.last() != Some(&last)) {
            let Ok(batch) = inbound.receive(64).await else { break };
            for delivery in &batch {
                let (key, sequence) = of(delivery);
                let sequences = seen.entry(key).or_default();
                if !sequences.contains(&sequence) {
                    sequences.push(sequence);
                }
            }
            if inbound.ack(&tokens(&batch)).await.is_err() {
                break;
            }
        }
    }
    seen
}

async fn expect_all_in_order(fixture: &Fresh<Log>, last: i64) {
    for (key, sequences) in soon(first_occurrences(fixture, last)).await {
        assert_eq!(sequences, (1..=last).collect::<Vec<_>>(), "{key}");
    }
}

async fn leader(fixture: &Fresh<Log>) -> String {
    let mut stream = outsider(&fixture.urls).await.get_stream(&*fixture.names.stream).await.unwrap();
    stream.info().await.unwrap().cluster.as_ref().unwrap().leader.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_stream_leader_costs_time_but_neither_events_nor_order() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(&program);
    let fixture = start(&cluster).await;
    let publisher = fixture.publisher();
    let mut lane = Lane::new(&fixture);
    lane.run(&fixture, &*publisher, 20).await;
    let leader = leader(&fixture).await;
    let mut confirmed = lane.confirmed.subscribe();
    let publishing = lane.run(&fixture, &*publisher, 400);
    let killing = async {
        confirmed.wait_for(|confirmed| *confirmed > 50 * KEYS).await.unwrap();
        cluster.node(&leader).kill();
    };
    soon(async { tokio::join!(publishing, killing) }).await;
    cluster.node(&leader).run();
    lane.run(&fixture, &*publisher, 420).await;
    expect_all_in_order(&fixture, 420).await;
}

/// Frozen longer than its timeouts: the connection to it, if it is ours, is given up, its
/// streams get other leaders, and what it still has in hand when it thaws does no harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_left_and_does_no_harm_when_it_thaws() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(&program);
    let fixture = start(&cluster).await;
    let publisher = fixture.publisher();
    let mut lane = Lane::new(&fixture);
    lane.run(&fixture, &*publisher, 20).await;
    let leader = leader(&fixture).await;
    cluster.node(&leader).signal(Signal::SIGSTOP);
    soon(lane.run(&fixture, &*publisher, 40)).await;
    cluster.node(&leader).signal(Signal::SIGCONT);
    soon(lane.run(&fixture, &*publisher, 60)).await;
    assert!(lane.failures > 0, "the leader was frozen");
    expect_all_in_order(&fixture, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_servers_publishing_fails_at_once_and_goes_on_when_they_are_back() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(&program);
    let fixture = start(&cluster).await;
    let publisher = fixture.publisher();
    let mut lane = Lane::new(&fixture);
    lane.run(&fixture, &*publisher, 10).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;

    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let mut health = fixture.nats().health();
    let why = soon(health.wait_for(|health| !health.up)).await.unwrap().why.clone();
    assert!(!why.is_empty());
    let reading = async { while inbound.receive(1).await.is_ok() {} };
    soon(reading).await;
    drop(inbound);
    let started = Instant::now();
    let results = try_publish(&*publisher, &[outgoing(&fixture, "other", 1)]).await;
    assert!(matches!(&results[0], Err(PublishError::Down(_))), "{results:?}");
    assert!(started.elapsed() < PUBLISH_TIMEOUT, "it waited for a confirm: {:?}", started.elapsed());
    soon(health.wait_for(|health| health.why.contains("refused"))).await.unwrap();

    cluster.nodes.iter_mut().for_each(|node| node.run());
    soon(health.wait_for(|health| health.up)).await.unwrap();
    soon(lane.run(&fixture, &*publisher, 20)).await;
    expect_all_in_order(&fixture, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_servers_and_finds_them_later() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(&program);
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let fixture = Fresh::<Log>::with(cluster.urls(), &[("nats.connect_timeout", "500ms")], &["reader"]).await;
    assert!(!fixture.nats().health().borrow().up);
    cluster.nodes.iter_mut().for_each(|node| node.run());
    soon(fixture.nats().health().wait_for(|health| health.up)).await.unwrap();
    publish_series(&fixture, "alpha", 1..=3).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [1, 2, 3]);
}
