//! Nodes that are killed and frozen under load, on a cluster of a test's own. What must hold:
//! nothing confirmed is lost, first occurrences of a key come in order, health names the fault,
//! and everything goes on by itself.

use std::time::{Duration, Instant};

use event_gateway::broker::kafka::{Health, KafkaHealth};
use nix::sys::signal::Signal;
use rdkafka::ClientConfig;

use super::load::{Load, RECOVERY};
use super::server::{Cluster, Shape, jars};
use super::{Fresh, Site};

/// One cluster at a time: three virtual machines are enough for a small machine.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Nodes are given up sooner than by default, so that tests are.
const QUICK: &str = "broker.session.timeout.ms=5000\nbroker.heartbeat.interval.ms=1000\n";

struct Faulty {
    load: Load,
    fresh: Fresh,
    cluster: Cluster,
    _one: tokio::sync::MutexGuard<'static, ()>,
}

impl Faulty {
    /// A cluster with a load that moves on; `None` where there are no brokers.
    async fn start(set: &[(&str, &str)]) -> Option<Self> {
        let (site, jars) = (Site::find()?, jars()?);
        let one = ONE.lock().await;
        let shape = Shape { nodes: 3, properties: QUICK.to_owned(), ..Shape::default() };
        let starting = move || {
            let cluster = Cluster::start(&jars, &shape);
            cluster.wait(ClientConfig::new());
            cluster
        };
        let cluster = tokio::task::spawn_blocking(starting).await.unwrap();
        let fresh = Fresh::with(Site { bootstrap: cluster.bootstrap(), ..site }, set).await;
        let load = Load::start(fresh.kafka.publisher(), fresh.kafka.subscriber());
        load.moves_on().await;
        Some(Self { load, fresh, cluster, _one: one })
    }

    fn leader(&self) -> i32 {
        tokio::task::block_in_place(|| self.cluster.leader(&self.fresh.topic(), 0))
    }

    /// Starts what was killed.
    async fn heal(&mut self) {
        self.cluster.nodes.iter_mut().filter(|node| !node.is_running()).for_each(super::server::Node::start);
        tokio::task::block_in_place(|| self.cluster.wait(ClientConfig::new()));
    }

    async fn health(&self, what: &str, is_so: impl FnMut(&KafkaHealth) -> bool) -> KafkaHealth {
        let mut health = self.fresh.kafka.watch();
        match tokio::time::timeout(RECOVERY, health.wait_for(is_so)).await {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("health is not {what}: {:?}", self.fresh.kafka.health()),
        }
    }

    async fn is_up(&self) {
        self.health("up", |health| health.cluster == Health::Up).await;
    }

    async fn end(self) {
        self.load.end().await;
        self.fresh.kafka.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_nodes_cost_neither_events_nor_order() {
    let set = [("kafka.delivery_timeout", "10s"), ("kafka.request_timeout", "3s"), ("kafka.session_timeout", "6s")];
    let Some(mut faulty) = Faulty::start(&set).await else { return };
    let first = faulty.leader();
    faulty.cluster.node(first).kill();
    faulty.load.moves_on().await;

    // The second: neither enough replicas nor a majority of controllers.
    let second = faulty.leader();
    assert_ne!(first, second, "a killed node still leads");
    faulty.cluster.node(second).kill();
    let down = faulty.health("down", |health| matches!(health.cluster, Health::Down(_))).await;
    println!("with two of three nodes killed: {:?}", down.cluster);

    faulty.heal().await;
    faulty.load.moves_on().await;
    faulty.is_up().await;
    faulty.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_costs_neither_events_nor_order() {
    // Confirmations time out, so that the producer gives records up that may still arrive.
    let set = [("kafka.delivery_timeout", "3s"), ("kafka.request_timeout", "2s"), ("kafka.session_timeout", "6s")];
    let Some(mut faulty) = Faulty::start(&set).await else { return };
    let leader = faulty.leader();
    faulty.cluster.node(leader).signal(Signal::SIGSTOP);
    // What was under way may still be confirmed.
    faulty.load.fails().await;
    faulty.load.moves_on().await;
    faulty.cluster.node(leader).signal(Signal::SIGCONT);
    faulty.load.moves_on().await;
    faulty.is_up().await;
    faulty.end().await;
}

/// The nodes in turn, each time the one that leads: killed and started, frozen and continued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make test-faults"]
async fn minutes_of_kills_and_freezes_cost_neither_events_nor_order() {
    const LENGTH: Duration = Duration::from_secs(180);
    let set = [("kafka.delivery_timeout", "5s"), ("kafka.request_timeout", "2s"), ("kafka.session_timeout", "6s")];
    let Some(mut faulty) = Faulty::start(&set).await else { return };
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < LENGTH {
        let leader = faulty.leader();
        if rounds % 2 == 0 {
            faulty.cluster.node(leader).kill();
            faulty.load.moves_on().await;
            faulty.heal().await;
        } else {
            faulty.cluster.node(leader).signal(Signal::SIGSTOP);
            faulty.load.moves_on().await;
            faulty.cluster.node(leader).signal(Signal::SIGCONT);
        }
        faulty.load.moves_on().await;
        faulty.is_up().await;
        rounds += 1;
    }
    println!("{rounds} rounds");
    faulty.end().await;
}
