//! Brokers and a database as a gateway finds them on its first day.
//!
//! `EVENT_GATEWAY_TEST_ON=brokers` has the tests of the gateway run on them too, each in a world of
//! its own, instead of on the embedded default. `scripts/brokers env tests` says where they are.

use std::future::Future;
use std::time::Duration;

use event_gateway::domain::Id;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use url::Url;

use crate::environment::{given, variable};

/// NATS has the names of the streams once: whose gateways use them waits for the one before.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The longest that anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether the gateways of this run are to be on the real brokers.
pub fn is_chosen() -> bool {
    match given("EVENT_GATEWAY_TEST_ON").as_deref() {
        None | Some("embedded") => false,
        Some("brokers") => true,
        Some(other) => panic!("EVENT_GATEWAY_TEST_ON is {other:?}; it may be embedded or brokers"),
    }
}

/// Whether a test that is about the embedded default has to be left out of this run, and why.
pub fn left_out(why: &str) -> bool {
    let left_out = is_chosen();
    if left_out {
        eprintln!("EMBEDDED ONLY: {why}");
    }
    left_out
}

/// Names of a test's own on the brokers, and the settings that say so.
pub struct World {
    settings: Vec<String>,
    /// Before the names in Kafka and the registry.
    pub prefix: String,
    pub vhost: String,
    pub database: String,
    servers: Servers,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// Addresses, as the environment gives them.
struct Servers {
    rabbitmq: String,
    management: Url,
    kafka: String,
    nats: String,
    registry: String,
    postgres: Url,
}

impl World {
    /// With these settings besides those that name it, for one test at a time; `None` when there are
    /// no brokers and that is fine.
    pub fn with(more: &[&str]) -> Option<Self> {
        let servers = Servers::given()?;
        // A thread of its own may wait for it: this one may belong to a runtime.
        let turn = std::thread::spawn(|| ONE_AT_A_TIME.blocking_lock()).join().expect("a turn");
        let nats = servers.nats.clone();
        finish(async move { forget_streams(&nats).await }).expect("NATS forgets");
        Some(Self::make(servers, more, Some(turn)))
    }

    /// If this run is on the brokers, which then have to be there.
    pub fn chosen() -> Option<Self> {
        is_chosen().then(|| {
            let partitions = format!("kafka.partitions={}", partitions());
            Self::with(&[&partitions]).expect("EVENT_GATEWAY_TEST_ON=brokers, but there are none")
        })
    }

    /// As [`World::chosen`], for tests that keep away from NATS: they run side by side.
    pub fn chosen_without_nats() -> Option<Self> {
        is_chosen().then(|| {
            let servers = Servers::given().expect("EVENT_GATEWAY_TEST_ON=brokers, but there are none");
            Self::make(servers, &[], None)
        })
    }

    fn make(servers: Servers, more: &[&str], turn: Option<MutexGuard<'static, ()>>) -> Self {
        let name = format!("t{}", Id::new().to_string().replace('-', ""));
        let mut database_url = servers.postgres.clone();
        database_url.set_path(&name);
        let mut settings = vec![
            "brokers.mode=external".to_owned(),
            format!("rabbitmq.urls={}", servers.rabbitmq.replace("/%2f", &format!("/{name}"))),
            format!("kafka.brokers={}", servers.kafka),
            format!("kafka.topic_prefix={name}-"),
            format!("nats.urls={}", servers.nats),
            format!("kafka.schema_registry_url={}", servers.registry),
            format!("store.url={database_url}"),
        ];
        settings.extend(more.iter().map(|setting| (*setting).to_owned()));
        let world = Self {
            settings,
            prefix: format!("{name}-"),
            vhost: name.clone(),
            database: name.clone(),
            servers,
            _turn: turn,
        };
        let (management, postgres) = (world.servers.management.clone(), world.servers.postgres.clone());
        let made = finish(async move {
            tokio::join!(make_vhost(&management, &name), async {
                execute(&postgres, format!("CREATE DATABASE {name}")).await.expect("a database");
            });
        });
        made.expect("a virtual host and a database");
        world
    }

    /// From now on the gateways of this world use another database, which is there or comes.
    pub fn use_database(&mut self, name: &str) {
        let setting = self.settings.iter_mut().find(|setting| setting.starts_with("store.url=")).unwrap();
        *setting = setting.replace(&format!("/{}", self.database), &format!("/{name}"));
        self.database = name.to_owned();
    }

    /// The virtual host on one of RabbitMQ's nodes, as a URL.
    pub fn amqp(&self) -> String {
        let urls = self.settings.iter().find_map(|setting| setting.strip_prefix("rabbitmq.urls=")).unwrap();
        urls.split(',').next().unwrap().to_owned()
    }

    /// For `--set`.
    pub fn settings(&self) -> Vec<&str> {
        self.settings.iter().map(String::as_str).collect()
    }

    /// The same: key and value.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        self.settings.iter().filter_map(|setting| setting.split_once('=')).collect()
    }
}

impl Drop for World {
    /// Topics go with the directory of the brokers. What goes now only keeps it small.
    fn drop(&mut self) {
        let (management, postgres) = (self.servers.management.clone(), self.servers.postgres.clone());
        let (vhost, database) = (self.vhost.clone(), self.database.clone());
        let removed = finish(async move {
            let path = format!("vhosts/{vhost}");
            let dropping = execute(&postgres, format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"));
            let (dropped, deleted) = tokio::join!(dropping, ask(&management, Method::DELETE, &path, None));
            if let Err(error) = dropped {
                eprintln!("database {database} stays: {error}");
            }
            if let Err(error) = deleted {
                eprintln!("virtual host {vhost} stays: {error}");
            }
        });
        // It has said why.
        removed.ok();
    }
}

impl Servers {
    fn given() -> Option<Self> {
        let of = |name: &str| variable(&format!("EVENT_GATEWAY_TEST_{name}"));
        let url = |name: &str| Some(Url::parse(&of(name)?).expect("an address is a URL"));
        Some(Self {
            rabbitmq: of("RABBITMQ")?,
            management: url("RABBITMQ_MANAGEMENT")?,
            kafka: of("KAFKA")?,
            nats: of("NATS")?,
            registry: of("REGISTRY")?,
            postgres: url("POSTGRES")?,
        })
    }
}

/// As many as `make run-brokers` uses on one machine.
fn partitions() -> &'static str {
    let mut lines = include_str!("../../deploy/brokers/brokers.env").lines();
    lines.find_map(|line| line.strip_prefix("KAFKA_PARTITIONS=")).expect("brokers.env says how many")
}

/// Runs it to its end, wherever this is called: a test's own runtime may be gone or unwinding.
fn finish(act: impl Future<Output = ()> + Send + 'static) -> std::thread::Result<()> {
    let running = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { tokio::time::timeout(LIMIT, act).await }).expect("the brokers answer in time");
    });
    running.join()
}

async fn execute(server: &Url, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(server.as_str()).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}

/// RabbitMQ's management API; its command line starts an Erlang machine for each call.
async fn ask(management: &Url, method: Method, path: &str, body: Option<Value>) -> Result<Value, reqwest::Error> {
    let url = management.join(&format!("/api/{path}")).expect("a path");
    let request = reqwest::Client::new().request(method, url).timeout(LIMIT);
    let request = if let Some(body) = body { request.json(&body) } else { request };
    let text = request.send().await?.error_for_status()?.text().await?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

/// Returns when it runs on every node.
async fn make_vhost(management: &Url, name: &str) {
    let path = format!("vhosts/{name}");
    ask(management, Method::PUT, &path, Some(json!({}))).await.expect("a virtual host");
    let rights = json!({ "configure": ".*", "write": ".*", "read": ".*" });
    let user = format!("permissions/{name}/{}", management.username());
    ask(management, Method::PUT, &user, Some(rights)).await.expect("its user");
    loop {
        let host = ask(management, Method::GET, &path, None).await.expect("the virtual host");
        let states = host["cluster_state"].as_object();
        if states.is_some_and(|states| states.len() == 3 && states.values().all(|state| state == "running")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Streams of earlier tests hold commands of jobs that no database knows any more.
async fn forget_streams(nats: &str) {
    let servers: Vec<&str> = nats.split(',').collect();
    let client = async_nats::connect(servers).await.expect("NATS answers");
    let jetstream = async_nats::jetstream::new(client);
    for stream in ["COMMANDS_JOB", "COMMANDS_JOB_CANCEL"] {
        // Mostly it is not there.
        jetstream.delete_stream(stream).await.ok();
    }
}
