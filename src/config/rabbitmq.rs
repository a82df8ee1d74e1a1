use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use url::Url;

use super::brokers::BrokerMode;
use super::setting::{Check, Checks, FromSetting, Secret, settings};

settings! {
    /// RabbitMQ, where brokers.mode is external.
    pub struct Rabbitmq in "rabbitmq" {
        /// embedded or external. Empty: as brokers.mode.
        mode: Option<BrokerMode> = "",
        /// A URL for each node: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS. The
        /// virtual host / is written %2f. Tried in this order: name first the node that leads the
        /// queues, which is the one they were declared at.
        urls: AmqpUrls = "amqp://guest:guest@127.0.0.1:5672/%2f",
        /// PEM file with the authorities that may have signed the servers' certificates. Empty:
        /// those of the system.
        ca_file: Option<PathBuf> = "",
        /// PEM file with the client's certificate, where the servers ask for one.
        cert_file: Option<PathBuf> = "",
        /// PEM file with the key of cert_file.
        key_file: Option<PathBuf> = "",
        /// How long connecting to one node may take.
        connect_timeout: Duration = "5s",
        /// A connection without a sign of life for twice this long is given up.
        heartbeat: Duration = "10s",
        /// How long a window of messages may stay unconfirmed.
        confirm_timeout: Duration = "10s",
        /// Largest body that is published.
        max_message: ByteSize = "1MiB",
        /// Messages a queue of an effect may hold; then it refuses more and the relay waits.
        queue_max_length: u32 = "100000",
        /// Messages in an effect's queue older than this go through the dead-letter queue to its
        /// consumer's backlog, and are handled from there. Empty: never.
        queue_ttl: Option<Duration> = "",
        /// Messages an instance's broadcast queue may hold; then its oldest are dropped.
        broadcast_max_length: u32 = "50000",
        /// Messages in a broadcast queue older than this are dropped.
        broadcast_ttl: Duration = "30s",
        /// Exchange that dead letters go through.
        dead_letter_exchange: String = "dlx",
        /// Queue into which RabbitMQ puts what was rejected or has expired in an effect's queue; the
        /// gateway empties it.
        dead_letter_queue: String = "job-dlq",
    }
}

/// The nodes' URLs. They may hold a password, so nothing shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpUrls(pub Vec<Secret>);

impl FromSetting for AmqpUrls {
    const KIND: &'static str = "amqp:// or amqps:// URLs with commas between them";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        let urls: Vec<&str> = text.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
        if urls.is_empty() {
            return Err("names no node".to_owned());
        }
        for (index, url) in urls.iter().enumerate() {
            let parsed = Url::parse(url).map_err(|error| format!("URL {} cannot be read: {error}", index + 1))?;
            if !matches!(parsed.scheme(), "amqp" | "amqps") || parsed.host_str().is_none() {
                return Err(format!("URL {} is not amqp://HOST or amqps://HOST", index + 1));
            }
        }
        Ok(Self(urls.into_iter().map(Secret::new).collect()))
    }
}

impl Check for Rabbitmq {
    fn check(&self, checks: &mut Checks<'_>) {
        let seconds = Duration::from_secs;
        checks.within("rabbitmq.connect_timeout", self.connect_timeout, Duration::from_millis(100)..=seconds(120));
        checks.within("rabbitmq.heartbeat", self.heartbeat, seconds(1)..=seconds(600));
        checks.within("rabbitmq.confirm_timeout", self.confirm_timeout, Duration::from_millis(100)..=seconds(300));
        checks.within("rabbitmq.max_message", self.max_message, ByteSize::kib(512)..=ByteSize::mib(16));
        checks.within("rabbitmq.queue_max_length", self.queue_max_length, 1_000..=100_000_000);
        checks.within("rabbitmq.broadcast_max_length", self.broadcast_max_length, 1_000..=10_000_000);
        checks.within("rabbitmq.broadcast_ttl", self.broadcast_ttl, seconds(1)..=seconds(3600));
        if let Some(ttl) = self.queue_ttl {
            checks.within("rabbitmq.queue_ttl", ttl, seconds(1)..=seconds(30 * 24 * 3600));
        }
        checks.require(
            self.cert_file.is_some() == self.key_file.is_some(),
            "rabbitmq.cert_file",
            "a client certificate needs both its certificate and its key",
            "set rabbitmq.cert_file and rabbitmq.key_file, or neither",
        );
        for (key, name) in [
            ("rabbitmq.dead_letter_exchange", &self.dead_letter_exchange),
            ("rabbitmq.dead_letter_queue", &self.dead_letter_queue),
        ] {
            let good = (1..=255).contains(&name.len()) && !name.starts_with("amq.");
            checks.require(
                good,
                key,
                "is no name that RabbitMQ takes",
                "use 1 to 255 bytes that do not start with amq.",
            );
        }
    }
}
