//! Brokers and a database as a gateway finds them on its first day.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::Context;
use event_gateway::domain::Id;

use crate::environment::variable;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Jobs of this agent leave their command in the stream: nobody here consumes it.
pub const CLUSTER: &str = "Cluster";

/// Names of a test's own on the brokers, and the settings that say so.
pub struct World {
    settings: Vec<String>,
    pub prefix: String,
    pub vhost: String,
    pub database: String,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// `None` when there are no brokers and that is fine.
    pub fn fresh() -> Option<Self> {
        let [rabbitmq, kafka, nats, registry, postgres] =
            ["RABBITMQ", "KAFKA", "NATS", "REGISTRY", "POSTGRES"].map(address);
        let (rabbitmq, kafka, nats, registry, postgres) = (rabbitmq?, kafka?, nats?, registry?, postgres?);
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let id = Id::new().to_string().replace('-', "");
        let (prefix, vhost, database) = (format!("t{id}-"), format!("t{id}"), format!("t{id}"));
        brokers(&["rabbitmqctl", "rabbit1", "add_vhost", &vhost]);
        let user = url::Url::parse(rabbitmq.split(',').next().unwrap()).unwrap().username().to_owned();
        brokers(&["rabbitmqctl", "rabbit1", "set_permissions", "-p", &vhost, &user, ".*", ".*", ".*"]);
        brokers(&["psql", &format!("CREATE DATABASE {database}")]);
        forget_streams();
        let mut database_url = url::Url::parse(&postgres).unwrap();
        database_url.set_path(&database);
        let settings = vec![
            "brokers.mode=external".to_owned(),
            format!("rabbitmq.urls={}", rabbitmq.replace("/%2f", &format!("/{vhost}"))),
            format!("kafka.brokers={kafka}"),
            format!("kafka.topic_prefix={prefix}"),
            format!("nats.urls={nats}"),
            format!("kafka.schema_registry_url={registry}"),
            format!("store.url={database_url}"),
            format!(
                r#"runner.agents=[{{"name": "{CLUSTER}", "runner": "external", "claim": "jetstream", "any_dataset": true}}]"#
            ),
        ];
        Some(Self { settings, prefix, vhost, database, _turn: turn })
    }

    /// From now on the gateways of this world use another database, which is there or comes.
    pub fn use_database(&mut self, name: &str) {
        let setting = self.settings.iter_mut().find(|setting| setting.starts_with("store.url=")).unwrap();
        *setting = setting.replace(&format!("/{}", self.database), &format!("/{name}"));
        self.database = name.to_owned();
    }

    /// For `--set`.
    pub fn settings(&self) -> Vec<&str> {
        self.settings.iter().map(String::as_str).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The directory of the brokers goes with the test run; this only keeps it small.
        let forced = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database);
        run(&["psql", &forced]).ok();
        run(&["rabbitmqctl", "rabbit1", "delete_vhost", &self.vhost]).ok();
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

/// As a client of its own.
pub fn jetstream<T>(act: impl AsyncFnOnce(Context) -> T) -> T {
    let servers: Vec<String> = address("NATS").unwrap().split(',').map(str::to_owned).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { act(async_nats::jetstream::new(async_nats::connect(servers).await.unwrap())).await })
}

/// Streams of earlier tests hold commands of jobs that no database knows any more.
fn forget_streams() {
    jetstream(async |jetstream| {
        for stream in ["COMMANDS_JOB", "COMMANDS_JOB_CANCEL"] {
            // Mostly it is not there.
            jetstream.delete_stream(stream).await.ok();
        }
    });
}
