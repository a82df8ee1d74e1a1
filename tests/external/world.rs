//! What these tests do with the brokers themselves.

use std::process::Command;

use async_nats::jetstream::Context;
use rdkafka::ClientConfig;
use serde_json::json;

use crate::environment::variable;
pub use crate::fresh::World;
use crate::runtime::runtime;

/// Jobs of this agent leave their command in the stream: nobody here consumes it.
pub const CLUSTER: &str = "Cluster";

impl World {
    /// With an agent whose commands wait; `None` when there are no brokers and that is fine.
    pub fn fresh() -> Option<Self> {
        let agent = json!([{ "name": CLUSTER, "runner": "external", "claim": "jetstream", "any_dataset": true }]);
        Self::with(&[&format!("runner.agents={agent}")])
    }
}

pub fn address(of: &str) -> Option<String> {
    variable(&format!("EVENT_GATEWAY_TEST_{of}"))
}

/// `scripts/brokers`, which has to succeed.
pub fn brokers(arguments: &[&str]) -> String {
    run(arguments).unwrap_or_else(|why| panic!("scripts/brokers {}: {why}", arguments.join(" ")))
}

fn run(arguments: &[&str]) -> Result<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/brokers");
    let output = Command::new(script).args(arguments).output().map_err(|error| error.to_string())?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(format!("{}: {}{}", output.status, text(output.stdout), text(output.stderr)))
    }
}

/// The node that leads a quorum queue of this world.
pub fn queue_leader(world: &World, queue: &str) -> String {
    let listed = brokers(&["rabbitmqctl", "rabbit1", "-q", "list_queues", "-p", &world.vhost, "name", "leader"]);
    let leader = listed.lines().find_map(|line| line.strip_prefix(queue)?.trim().split('@').next());
    leader.unwrap_or_else(|| panic!("{queue} has no leader: {listed}")).to_owned()
}

/// The node that leads the stream of the commands.
pub fn stream_leader() -> String {
    let info = jetstream(async |jetstream| jetstream.get_stream("COMMANDS_JOB").await.unwrap().cached_info().clone());
    info.cluster.and_then(|cluster| cluster.leader).expect("the stream has a leader")
}

/// A client of Kafka's that is not ours.
pub fn kafka() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address("KAFKA").unwrap());
    config
}

/// As a client of its own.
pub fn jetstream<T>(act: impl AsyncFnOnce(Context) -> T) -> T {
    let servers: Vec<String> = address("NATS").unwrap().split(',').map(str::to_owned).collect();
    let runtime = runtime();
    runtime.block_on(async { act(async_nats::jetstream::new(async_nats::connect(servers).await.unwrap())).await })
}
