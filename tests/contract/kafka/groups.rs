//! Members of a group that come and go, and how far behind they are.

use std::collections::BTreeSet;
use std::time::Duration;

use event_gateway::broker::{Inbound, Outgoing, Subscription};
use event_gateway::domain::Timestamp;
use rdkafka::producer::FutureRecord;

use super::{Fresh, PARTITIONS, Site, TOPIC, consumer, route_to};
use crate::fixture::*;

/// Keys that between them are in every partition.
fn everywhere(sequence: i64) -> Vec<Outgoing> {
    let keys = (0..40).map(|n| format!("key-{n}"));
    keys.map(|key| Outgoing { event: event(&key, sequence), route: route_to(TOPIC, &key) }).collect()
}

/// Waits until the members of this process have so many partitions each.
async fn partitions(fresh: &Fresh, each: &[usize]) {
    let settled = async {
        loop {
            let mut now: Vec<usize> = fresh.kafka.consumers().iter().map(|consumer| consumer.partitions).collect();
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
    let window = everywhere(1);
    let used: BTreeSet<i32> = publish(&*fresh.kafka.publisher(), &window).await.iter().map(|at| at.partition).collect();
    assert_eq!(used.len(), PARTITIONS as usize);

    let mut first = join(&fresh).await;
    let held = receive(&mut *first, window.len()).await;
    let mut second = join(&fresh).await;
    partitions(&fresh, &[2, 2]).await;

    // The second gets what moved: it was not acknowledged within the handover.
    let mut moved = BTreeSet::new();
    while moved.len() < 2 {
        moved.extend(within(second.receive(100)).await.unwrap().iter().map(|got| got.position.partition));
    }
    // All of it is acknowledged late: what has gone is tolerated, what has stayed counts.
    within(first.ack(&tokens(&held))).await.unwrap();
    publish(&*fresh.kafka.publisher(), &everywhere(2)).await;
    let stayed: Vec<_> = held.iter().filter(|got| !moved.contains(&got.position.partition)).collect();
    drop(second);
    partitions(&fresh, &[4]).await;
    let mut again = Vec::new();
    while again.len() < 2 * window.len() - stayed.len() {
        again.extend(consume(&mut *first, 1).await);
    }
    for (key, sequences) in by_key(&again) {
        let has_stayed = stayed.iter().any(|got| of(got).0 == key);
        let expected: &[i64] = if has_stayed { &[2] } else { &[1, 2] };
        assert_eq!(sequences, expected, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_told_in_messages_and_seconds() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let topic = fresh.topic();
    let hour_ago = Timestamp::now().0 - 3_600_000;
    for _ in 0..3 {
        fresh.write(FutureRecord::to(&topic).key("old").payload(&b"old"[..]).timestamp(hour_ago)).await;
    }
    let full = Subscription { prefetch: 3, ..consumer("reader") };
    let mut inbound = within(fresh.kafka.subscriber().subscribe(&full)).await.unwrap();
    let got = receive(&mut *inbound, 3).await;
    // It is not known before the brokers have said how far the partition goes.
    lag_becomes(&fresh, 3).await;
    assert_eq!(within(inbound.lag()).await, Some(3));
    let behind = fresh.kafka.consumers().remove(0);
    assert_eq!((&*behind.consumer, behind.lag_messages), ("reader", Some(3)));
    assert!((3_600.0..3_700.0).contains(&behind.lag_seconds), "{behind:?}");

    // Nothing more is fetched, but counted.
    publish(&*fresh.kafka.publisher(), &[Outgoing { event: event("old", 1), route: route_to(TOPIC, "old") }]).await;
    lag_becomes(&fresh, 4).await;
    within(inbound.ack(&tokens(&got))).await.unwrap();
    consume(&mut *inbound, 1).await;
    lag_becomes(&fresh, 0).await;
    assert_eq!(fresh.kafka.consumers().remove(0).lag_seconds, 0.0);
}

async fn lag_becomes(fresh: &Fresh, messages: u64) {
    let settled = async {
        while fresh.kafka.consumers()[0].lag_messages != Some(messages) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(settled).await;
}
