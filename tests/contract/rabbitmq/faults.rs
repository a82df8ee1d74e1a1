//! Faults of whole nodes, under load, on a cluster of the test's own: `make test-faults`.
//!
//! After each: what was confirmed was seen, first occurrences in order per key.

use std::sync::Arc;
use std::time::Duration;

use super::Fresh;
use super::cluster::{Cluster, NODES, lasting};
use super::load::Load;
use crate::fixture::within;

/// Messages that show that things go on.
const SOME: usize = 200;
/// A leader is elected, a silent node found out, a node started again.
const RECOVERY: Duration = Duration::from_secs(120);
/// Longer than our timeouts.
const FROZEN: Duration = Duration::from_secs(15);
/// Longer than the other nodes wait for one of theirs (`net_ticktime`, a minute).
const GIVEN_UP: Duration = Duration::from_secs(80);
/// A minute's outage, as operators see it.
const MINUTE: Duration = Duration::from_secs(60);

async fn loaded(cluster: &Cluster, set: &[(&str, &str)]) -> (Arc<Fresh>, Load) {
    let fixture = Arc::new(Fresh::with(&cluster.urls, set, &["reader"]).await);
    let load = Load::start(&fixture);
    load.progress(SOME, RECOVERY).await;
    (fixture, load)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills nodes: make test-faults"]
async fn the_queue_goes_on_when_its_leader_is_killed() {
    let Some(cluster) = Cluster::own() else { return };
    let (fixture, load) = loaded(&cluster, &[]).await;
    let leader = cluster.leader(&fixture.name("reader"));
    cluster.kill(leader);
    load.progress(SOME, RECOVERY).await;
    cluster.start(&[leader]);
    load.progress(SOME, RECOVERY).await;
    load.finish(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stops nodes: make test-faults"]
async fn every_node_may_freeze_for_longer_than_all_timeouts() {
    let Some(cluster) = Cluster::own() else { return };
    let set = [("rabbitmq.heartbeat", "2s"), ("rabbitmq.confirm_timeout", "3s"), ("rabbitmq.connect_timeout", "2s")];
    let (fixture, load) = loaded(&cluster, &set).await;
    // One of them has the connections.
    let leader = cluster.leader(&fixture.name("reader"));
    for node in NODES {
        cluster.pause(node);
        load.progress(SOME, RECOVERY).await;
        lasting(if node == leader { GIVEN_UP } else { FROZEN }).await;
        cluster.resume(node);
        load.progress(SOME, RECOVERY).await;
    }
    load.finish(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills nodes: make test-faults"]
async fn without_a_majority_everything_waits_and_then_goes_on() {
    let Some(cluster) = Cluster::own() else { return };
    let (fixture, load) = loaded(&cluster, &[]).await;
    cluster.kill("rabbit2");
    cluster.kill("rabbit3");
    let mut health = fixture.rabbitmq().health();
    let down = tokio::time::timeout(RECOVERY, health.wait_for(|health| !health.up && !health.why.is_empty())).await;
    down.expect("readiness names it").unwrap();
    lasting(MINUTE).await;
    cluster.start(&["rabbit2", "rabbit3"]);
    load.progress(SOME, RECOVERY).await;
    let up = tokio::time::timeout(RECOVERY, health.wait_for(|health| health.up)).await;
    up.expect("and says when it is over").unwrap();
    load.finish(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "blocks every publisher: make test-faults"]
async fn a_memory_alarm_is_seen_and_outlived() {
    let Some(cluster) = Cluster::own() else { return };
    let (fixture, load) = loaded(&cluster, &[]).await;
    let mut health = fixture.rabbitmq().health();
    cluster.memory_limit("1");
    let blocked = within(health.wait_for(|health| !health.up && health.why.contains("takes no messages"))).await;
    assert!(blocked.unwrap().why.contains("memory"), "with the server's reason");
    lasting(MINUTE).await;
    assert!(!fixture.rabbitmq().health().borrow().up, "it is not tried elsewhere: every node is blocked");
    cluster.memory_limit("2GB");
    within(health.wait_for(|health| health.up)).await.unwrap();
    load.progress(SOME, RECOVERY).await;
    load.finish(RECOVERY).await;
}
