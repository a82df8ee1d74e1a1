//! A cluster that a test may hurt: `scripts/brokers` with a directory of its own.

use std::process::Command;
use std::time::Duration;

pub const NODES: [&str; 3] = ["rabbit1", "rabbit2", "rabbit3"];

/// Made whole again when it is dropped, so that one test's damage is not the next one's.
pub struct Cluster {
    pub urls: String,
}

impl Cluster {
    /// `None`, with the reason printed, where no cluster may be hurt (`scripts/test-faults`
    /// starts one).
    pub fn own() -> Option<Self> {
        if std::env::var("EVENT_GATEWAY_TEST_FAULTS").is_ok_and(|value| value == "1") {
            return super::servers().map(|urls| Self { urls });
        }
        eprintln!("SKIPPED: EVENT_GATEWAY_TEST_FAULTS=1 is not set: make test-faults");
        None
    }

    /// SIGKILL.
    pub fn kill(&self, node: &str) {
        brokers(&["kill", node]);
    }

    /// Starts nodes that were killed and waits until they serve.
    pub fn start(&self, nodes: &[&str]) {
        brokers(&[&["start"][..], nodes].concat());
    }

    /// SIGSTOP.
    pub fn pause(&self, node: &str) {
        brokers(&["pause", node]);
    }

    /// SIGCONT.
    pub fn resume(&self, node: &str) {
        brokers(&["resume", node]);
    }

    /// The node that leads a quorum queue.
    pub fn leader(&self, queue: &str) -> &'static str {
        let list = ["rabbitmqctl", "rabbit1", "--quiet", "--formatter", "json", "list_queues", "name", "leader"];
        let queues: Vec<serde_json::Value> = serde_json::from_str(&brokers(&list)).expect("a list of queues");
        let found = queues.iter().find(|entry| entry["name"] == queue).expect("the queue is there");
        let leader = found["leader"].as_str().expect("a quorum queue");
        NODES.into_iter().find(|node| leader.starts_with(node)).expect("a node of the cluster")
    }

    /// Memory above which a node takes no more messages, e.g. `2GB`; one byte is an alarm.
    pub fn memory_limit(&self, limit: &str) {
        for node in NODES {
            brokers(&["rabbitmqctl", node, "--quiet", "set_vm_memory_high_watermark", "absolute", limit]);
        }
    }
}

/// Whether each node serves, with its virtual hosts, and is in touch with all others. After one was frozen
/// for long, nodes may have given each other up, and only the next test shows it.
fn is_whole() -> bool {
    let serves = command(&["status", "rabbitmq"]).output().is_ok_and(|done| done.status.success());
    serves
        && NODES.iter().all(|node| {
            let what = ["rabbitmqctl", node, "--quiet", "--formatter", "json", "cluster_status"];
            let asked = command(&what).output().ok();
            let status = asked.and_then(|done| serde_json::from_slice::<serde_json::Value>(&done.stdout).ok());
            let status = status.unwrap_or_default();
            let running = status["running_nodes"].as_array().map_or(0, Vec::len);
            running == NODES.len() && status["partitions"].as_object().is_some_and(serde_json::Map::is_empty)
        })
}

/// As each node sees them. A frozen one does not answer, and others may wait for it.
fn show_queues() {
    let queues = ["list_queues", "name", "leader", "online", "messages_ready", "messages_unacknowledged"];
    let consumers = ["list_consumers", "queue_name", "channel_pid", "prefetch_count", "active", "activity_status"];
    for node in NODES {
        for columns in [&queues[..], &consumers[..], &["cluster_status"][..]] {
            let asked = command(&[&["rabbitmqctl", node, "--timeout", "10"][..], columns].concat()).output();
            let shown = asked.map(|done| [done.stdout, done.stderr].concat()).unwrap_or_default();
            eprintln!("{node} {}: {}", columns[0], String::from_utf8_lossy(&shown));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            show_queues();
        }
        for node in NODES {
            let _ = command(&["resume", node]).output();
        }
        if !failed {
            let _ = command(&[&["start"][..], &NODES].concat()).output();
        }
        // Nodes that gave each other up stay apart until they start anew, and what each has deleted meanwhile
        // may keep their virtual hosts from starting.
        if failed || !is_whole() {
            let _ = command(&["down", "--wipe", "rabbitmq"]).output();
            let _ = command(&["up", "rabbitmq"]).output();
            assert!(failed || is_whole(), "the next test would find a cluster that is none");
        }
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/brokers"));
    command.args(arguments);
    command
}

/// Its output.
fn brokers(arguments: &[&str]) -> String {
    let done = command(arguments).output().expect("scripts/brokers starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "scripts/brokers {arguments:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

/// Lets something last. Only for faults whose length is the point.
pub async fn lasting(time: Duration) {
    tokio::time::sleep(time).await;
}
