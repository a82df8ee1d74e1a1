//! Members of a group that come and go, and how far behind they are.

use std::collections::BTreeSet;
use std::time::Duration;

use event_gateway::broker::{Inbound, Outgoing, Subscription};
use rdkafka::producer::FutureRecord;

use super::{Fresh, PARTITIONS, Site, TOPIC, consumer, route_to, window};
use crate::fixture::*;

/// Enough to be in every partition.
const KEYS: usize = 40;

/// Waits until the members of this process have so many partitions each.
async fn partitions(fresh: &Fresh, each: &[usize]) {
    let settled = async {
        loop {
            let mut now: Vec<usize> = fresh.kafka.partitions();
            now.sort_unstable();
            if now == each {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(settled).await;
}

async fn join(fresh: &Fresh) -> Box<dyn Inbound> {
    within(fresh.kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_takes_half_and_disturbs_nothing_else() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[("kafka.handover", "200ms")]).await;
    let first_window = window(KEYS, 1);
    let used: BTreeSet<i32> =
        publish(&*fresh.kafka.publisher(), &first_window).await.iter().map(|at| at.partition).collect();
    assert_eq!(used.len(), PARTITIONS as usize);

    let mut first = join(&fresh).await;
    let held = receive(&mut *first, first_window.len()).await;
    let mut second = join(&fresh).await;
    partitions(&fresh, &[2, 2]).await;

    // The second gets what moved: it was not acknowledged within the handover.
    let mut moved = BTreeSet::new();
    while moved.len() < 2 {
        moved.extend(within(second.receive(100)).await.unwrap().iter().map(|got| got.position.partition));
    }
    // All of it is acknowledged late: what has gone is tolerated, what has stayed counts.
    within(first.ack(&tokens(&held))).await.unwrap();
    publish(&*fresh.kafka.publisher(), &window(KEYS, 2)).await;
    let stayed: Vec<_> = held.iter().filter(|got| !moved.contains(&got.position.partition)).collect();
    drop(second);
    partitions(&fresh, &[4]).await;
    let mut again = Vec::new();
    while again.len() < 2 * first_window.len() - stayed.len() {
        again.extend(consume(&mut *first, 1).await);
    }
    for (key, sequences) in by_key(&again) {
        let has_stayed = stayed.iter().any(|got| of(got).0 == key);
        let expected: &[i64] = if has_stayed { &[2] } else { &[1, 2] };
        assert_eq!(sequences, expected, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_told_in_messages() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let topic = fresh.topic();
    for _ in 0..3 {
        fresh.write(FutureRecord::to(&topic).key("old").payload(&b"old"[..])).await;
    }
    let full = Subscription { prefetch: 3, ..consumer("reader") };
    let mut inbound = within(fresh.kafka.subscriber().subscribe(&full)).await.unwrap();
    let got = receive(&mut *inbound, 3).await;
    // It is not known before the brokers have said how far the partition goes.
    lag_becomes(&mut *inbound, 3).await;

    // Nothing more is fetched, but counted.
    publish(&*fresh.kafka.publisher(), &[Outgoing { event: event("old", 1), route: route_to(TOPIC, "old") }]).await;
    lag_becomes(&mut *inbound, 4).await;
    within(inbound.ack(&tokens(&got))).await.unwrap();
    consume(&mut *inbound, 1).await;
    lag_becomes(&mut *inbound, 0).await;
}

async fn lag_becomes(inbound: &mut dyn Inbound, messages: u64) {
    let settled = async {
        while inbound.lag().await != Some(messages) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(settled).await;
}
