//! Configuration: defaults < `config/*.toml` < environment < `--set`, read and checked once.
//!
//! Each section file owns its keys, their defaults, meanings and checks. Everything wrong
//! is reported at once ([`Problems`]); unknown keys are wrong, too.

pub mod agents;
mod auth;
mod brokers;
mod catalogue;
mod consumer;
mod data;
mod example;
mod health;
mod http;
mod idempotency;
mod instance;
mod intake;
mod jobs;
mod kafka;
mod layers;
mod live;
mod log;
mod nats;
mod rabbitmq;
mod registry;
mod relay;
mod retention;
mod runner;
pub mod setting;
mod shutdown;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use config::Value;

use crate::domain::Broker;

pub use agents::{Agent, Agents, Claim};
pub use auth::Auth;
pub use brokers::{BrokerMode, Brokers};
pub use bytesize::ByteSize;
pub use catalogue::Catalogue;
pub use consumer::Consumer;
pub use data::Data;
pub use example::{Shown, example};
pub use health::Health;
pub use http::Http;
pub use idempotency::Idempotency;
pub use instance::{Instance, InstanceId};
pub use intake::Intake;
pub use jobs::Jobs;
pub use kafka::{Compression, Kafka, KafkaSecurity, SaslMechanism, TopicPartitions, TopicRetention};
pub use layers::{Files, Sources};
pub use live::Live;
pub use log::{Log, LogFormat};
pub use nats::Nats;
pub use rabbitmq::{AmqpUrls, Rabbitmq};
pub use registry::Registry;
pub use relay::Relay;
pub use retention::Retention;
pub use runner::Runner;
pub use setting::{Parallelism, Secret, Setting};
pub use shutdown::Shutdown;
pub use store::{Store, StoreUrl};

use setting::{Check, Checks, Reader, Section};

macro_rules! sections {
    ($($field:ident: $section:ident),+ $(,)?) => {
        /// All settings, checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $(pub $field: $section,)+
        }

        impl Config {
            fn read(reader: &mut Reader<'_>) -> Self {
                Self { $($field: $section::read(reader),)+ }
            }

            fn check(&self, checks: &mut Checks<'_>) {
                $(self.$field.check(checks);)+
                self.check_together(checks);
            }
        }

        /// Every section: what it is about and its settings.
        pub fn sections() -> Vec<(&'static str, &'static [Setting])> {
            vec![$(($section::DOC, $section::SETTINGS)),+]
        }
    };
}
sections! {
    http: Http,
    data: Data,
    instance: Instance,
    store: Store,
    intake: Intake,
    jobs: Jobs,
    idempotency: Idempotency,
    retention: Retention,
    health: Health,
    brokers: Brokers,
    rabbitmq: Rabbitmq,
    kafka: Kafka,
    registry: Registry,
    nats: Nats,
    relay: Relay,
    consumer: Consumer,
    catalogue: Catalogue,
    auth: Auth,
    live: Live,
    runner: Runner,
    log: Log,
    shutdown: Shutdown,
}

/// Every setting there is.
pub fn settings() -> Vec<&'static Setting> {
    sections().into_iter().flat_map(|(_, settings)| settings).collect()
}

fn setting(key: &str) -> Option<&'static Setting> {
    settings().into_iter().find(|setting| setting.key == key)
}

/// A configuration and where its values came from.
#[derive(Clone)]
pub struct Loaded {
    pub config: Config,
    given: BTreeMap<&'static str, Value>,
}

impl Config {
    /// Reads and checks all layers.
    pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let given = layers::collect(sources, &settings(), &mut problems);
        let data_dir = data_dir(&given);
        let config = Config::read(&mut Reader { given: &given, data_dir, problems: &mut problems });
        config.check(&mut Checks { given: &given, problems: &mut problems });
        if problems.is_empty() { Ok(Loaded { config, given }) } else { Err(Problems(problems)) }
    }

    /// The defaults with `data.dir` at `data_dir`, a free port and `set` on top; neither
    /// files nor environment. For tests and benches.
    pub fn defaults_in(data_dir: &Path, set: &[(&str, &str)]) -> Result<Config, Problems> {
        let own = [("http.listen", "127.0.0.1:0".to_owned()), ("data.dir", data_dir.display().to_string())];
        let set = own.into_iter().chain(set.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let environment = set.map(|(key, value)| (setting::env_name(key), value)).collect();
        let sources = Sources { files: Files::None, environment, set: Vec::new() };
        Self::load(&sources).map(|loaded| loaded.config)
    }

    /// The agents jobs can ask for: built-in and configured.
    pub fn agents(&self) -> Vec<Agent> {
        self.runner.agents.all(self.runner.builtin_agents)
    }

    /// Sign-in by one click, because there is neither a secret nor a JWKS URL.
    pub fn is_development(&self) -> bool {
        self.auth.is_development()
    }

    /// Where `broker` is: its own mode, or that of all.
    pub fn broker_mode(&self, broker: Broker) -> BrokerMode {
        let own = match broker {
            Broker::Rabbitmq => self.rabbitmq.mode,
            Broker::Kafka => self.kafka.mode,
            Broker::Nats => self.nats.mode,
        };
        own.unwrap_or(self.brokers.mode)
    }

    fn check_together(&self, checks: &mut Checks<'_>) {
        let loopback = self.http.listen.ip().is_loopback();
        checks.require(
            loopback || !self.is_development(),
            "http.listen",
            "without auth.jwt_secret or auth.jwks_url anybody who reaches this address could sign in",
            "listen on 127.0.0.1, or set auth.jwt_secret or auth.jwks_url",
        );
        // RFC 7518, 3.2: an HS256 key has at least 256 bits.
        let long_enough = self.auth.jwt_secret.as_ref().is_none_or(|secret| secret.expose().len() >= 32);
        checks.require(
            loopback || long_enough,
            "auth.jwt_secret",
            "is shorter than 32 bytes and could be guessed",
            "use the output of `openssl rand -hex 32`",
        );
        checks.require(
            self.http.batch_body_limit >= self.http.body_limit,
            "http.batch_body_limit",
            "is smaller than http.body_limit",
            "make it at least as large",
        );
        checks.require(
            self.consumer.overdue_after < self.retention.keep,
            "consumer.overdue_after",
            "is not shorter than retention.keep: what is overdue would be deleted",
            "make it shorter",
        );
        checks.require(
            self.intake.max_bytes >= self.http.batch_body_limit,
            "intake.max_bytes",
            "is smaller than http.batch_body_limit: a full batch could never be accepted",
            "make it at least as large",
        );
    }
}

/// What `{data.dir}` stands for in other settings.
fn data_dir(given: &BTreeMap<&'static str, Value>) -> String {
    let default = || setting("data.dir").map_or_else(String::new, |setting| setting.default.to_owned());
    given.get("data.dir").map_or_else(default, setting::shown)
}

/// Without the raw values: some are secrets.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Something wrong in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The setting's key, or the file or flag.
    pub field: String,
    /// What was given; absent for secrets.
    pub value: Option<String>,
    /// The file, environment variable or flag it came from; absent for defaults.
    pub origin: Option<String>,
    pub reason: String,
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.field)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " (from {origin})")?;
        }
        write!(f, ": {}; {}", self.reason, self.fix)
    }
}

/// Everything that is wrong in the configuration; the process ends with exit code 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has a problem:")?,
            count => write!(f, "the configuration has {count} problems:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for Problems {}
