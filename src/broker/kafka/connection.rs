//! Clients of librdkafka from the settings, and what they say.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};

use super::KafkaError;
use crate::config::{Kafka as KafkaConfig, Secret};

/// The settings that all clients share.
pub(super) fn client(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    let millis = |duration: Duration| duration.as_millis().to_string();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", "event-gateway")
        .set("security.protocol", config.security.as_str())
        .set("socket.timeout.ms", millis(config.request_timeout))
        .set("socket.connection.setup.timeout.ms", millis(config.request_timeout.min(Duration::from_secs(5))))
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "2000")
        // How soon a partition's new leader is found when nothing fails.
        .set("topic.metadata.refresh.interval.ms", "60000")
        .set("allow.auto.create.topics", "false")
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (key, file) in [
        ("ssl.ca.location", &config.ca_file),
        ("ssl.certificate.location", &config.cert_file),
        ("ssl.key.location", &config.key_file),
    ] {
        if let Some(file) = file {
            client.set(key, file.display().to_string());
        }
    }
    if config.security.is_sasl() {
        client
            .set("sasl.mechanism", config.sasl_mechanism.as_str())
            .set("sasl.username", config.username.as_deref().unwrap_or_default())
            .set("sasl.password", config.password.as_ref().map_or("", Secret::expose));
    }
    client
}

/// Makes a client without blocking the runtime: certificates are read, threads started.
pub(super) async fn open<T, C>(config: ClientConfig, context: C) -> Result<T, KafkaError>
where
    T: FromClientConfigAndContext<C> + Send + 'static,
    C: ClientContext + 'static,
{
    let created = tokio::task::spawn_blocking(move || config.create_with_context(context)).await;
    created.map_err(|error| KafkaError::Unreachable(error.to_string()))?.map_err(KafkaError::Settings)
}

/// The settings of producers. Acknowledged by all in-sync replicas, idempotent, and where a
/// key goes is where the Java clients send it.
pub(super) fn producer(config: &KafkaConfig) -> ClientConfig {
    let mut client = client(config);
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("compression.type", config.compression.as_str())
        .set("linger.ms", (config.linger.as_secs_f64() * 1000.0).to_string())
        .set("message.timeout.ms", config.delivery_timeout.as_millis().to_string())
        .set("request.timeout.ms", config.request_timeout.as_millis().to_string())
        .set("message.max.bytes", record_limit(config).to_string())
        // More waits in the store.
        .set("queue.buffering.max.kbytes", "131072")
        // A new leader is asked for again so soon.
        .set("retry.backoff.ms", "50");
    client
}

/// The settings of a group's members. Positions are stored by us after the effects, and
/// committed from there.
pub(super) fn consumer(config: &KafkaConfig, group: &str) -> ClientConfig {
    let mut client = client(config);
    client
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", config.commit_interval.as_millis().to_string())
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", config.session_timeout.as_millis().to_string())
        .set("heartbeat.interval.ms", (config.session_timeout / 4).as_millis().to_string())
        .set("fetch.message.max.bytes", record_limit(config).to_string())
        .set("receive.message.max.bytes", (100_000_000 + record_limit(config)).to_string())
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "16384")
        .set("statistics.interval.ms", "1000");
    client
}

/// The most a record may have: its body, and room for key and headers.
pub(super) fn record_limit(config: &KafkaConfig) -> u64 {
    config.max_message.as_u64() + (64 << 10)
}

/// What the clients last complained about.
#[derive(Default)]
pub(super) struct Complaints(Mutex<Option<String>>);

impl Complaints {
    /// The newest, for whoever explains that something does not work.
    pub fn last(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// The newest in brackets, behind a reason; nothing where there is none.
    pub fn in_brackets(&self) -> String {
        self.last().map(|why| format!(" ({why})")).unwrap_or_default()
    }

    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    /// That all brokers are down says less than what the last of them has said.
    pub fn note(&self, error: &ClientError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
        let mut last = self.0.lock();
        if last.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(if reason.is_empty() { error.to_string() } else { reason.to_owned() });
        }
    }
}

/// Logs what a client says and keeps its last complaint.
#[derive(Clone)]
pub(super) struct Context(pub Arc<Complaints>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.0.note(&error, reason);
    }
}

/// librdkafka repeats itself with every attempt: health says once what is down.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, message, "librdkafka");
        }
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What order and durability rest on, and what Java's clients do, too.
    #[test]
    fn producers_are_idempotent_and_partition_as_java_does() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            crate::config::Config::defaults_in(directory.path(), &[]).unwrap_or_else(|wrong| panic!("{wrong}"));
        let producer = producer(&config.kafka);
        let settings = ["acks", "enable.idempotence", "partitioner", "compression.type"].map(|key| producer.get(key));
        assert_eq!(settings, [Some("all"), Some("true"), Some("murmur2_random"), Some("lz4")]);
    }
}
