use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use super::brokers::BrokerMode;
use super::setting::{Check, Checks, FromSetting, Secret, settings};

settings! {
    /// Kafka: the log. Used when brokers.mode is external.
    pub struct Kafka in "kafka" {
        /// embedded or external. Empty: as brokers.mode.
        mode: Option<BrokerMode> = "",
        /// The brokers to begin with, as host:port; the others are found through them.
        brokers: Vec<String> = "127.0.0.1:9092",
        /// How connections are secured.
        security: KafkaSecurity = "plaintext",
        /// Certificates (PEM) that sign the brokers'. Empty: those of the system.
        ca_file: Option<PathBuf> = "",
        /// This client's certificate (PEM), where brokers ask for one.
        cert_file: Option<PathBuf> = "",
        /// The private key (PEM) of the certificate.
        key_file: Option<PathBuf> = "",
        /// How a user signs in (sasl-plaintext and sasl-ssl).
        sasl_mechanism: SaslMechanism = "scram-sha-512",
        /// The user to sign in as.
        username: Option<String> = "",
        /// The user's password.
        password: Option<Secret> = "",
        /// Put before the name of every topic, subject and consumer group, so that several
        /// deployments share a cluster.
        topic_prefix: String = "",
        /// Create topics that are missing. If false, they must be there.
        create_topics: bool = "true",
        /// Replicas of each topic.
        replication: u32 = "3",
        /// Replicas that must have a record before it is confirmed.
        min_insync: u32 = "2",
        /// Topics with another number of partitions than the catalogue's: job-metrics=40,...
        partitions: Vec<TopicPartitions> = "",
        /// Topics with another retention than the catalogue's: audit-trail=365d,...
        retention: Vec<TopicRetention> = "",
        /// How records are compressed on their way and in the log.
        compression: Compression = "lz4",
        /// How long a record may wait for others to be sent with.
        linger: Duration = "1ms",
        /// Largest record body. Topics are created so that they take it.
        max_message: ByteSize = "1MiB",
        /// A record that is not confirmed within this time has failed. Short losses of a broker
        /// are outlasted within it.
        delivery_timeout: Duration = "30s",
        /// A request that is not answered within this time is given up, and its connection.
        request_timeout: Duration = "10s",
        /// A consumer that is silent for so long loses its partitions to others.
        session_timeout: Duration = "10s",
        /// How often consumers' positions are committed.
        commit_interval: Duration = "1s",
        /// How long a partition that moves to another consumer waits for what is being handled.
        handover: Duration = "5s",
    }
}

/// How connections to the brokers are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaSecurity {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

impl KafkaSecurity {
    /// The brokers' name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    /// Does a user sign in?
    pub fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    /// Are connections encrypted?
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

impl FromSetting for KafkaSecurity {
    const KIND: &'static str = "plaintext, ssl, sasl-plaintext or sasl-ssl";

    fn from_text(text: &str) -> Result<Self, String> {
        match &*text.to_ascii_lowercase().replace('_', "-") {
            "plaintext" => Ok(Self::Plaintext),
            "ssl" => Ok(Self::Ssl),
            "sasl-plaintext" => Ok(Self::SaslPlaintext),
            "sasl-ssl" => Ok(Self::SaslSsl),
            _ => Err("is no security protocol that is known".to_owned()),
        }
    }
}

/// How a user proves who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl SaslMechanism {
    /// The brokers' name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl FromSetting for SaslMechanism {
    const KIND: &'static str = "plain, scram-sha-256 or scram-sha-512";

    fn from_text(text: &str) -> Result<Self, String> {
        match &*text.to_ascii_lowercase() {
            "plain" => Ok(Self::Plain),
            "scram-sha-256" => Ok(Self::ScramSha256),
            "scram-sha-512" => Ok(Self::ScramSha512),
            _ => Err("is no mechanism that is known".to_owned()),
        }
    }
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd,
}

impl Compression {
    /// The brokers' name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl FromSetting for Compression {
    const KIND: &'static str = "lz4, zstd or none";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err("is no compression that is known".to_owned()),
        }
    }
}

/// `topic=number`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPartitions {
    pub topic: String,
    pub partitions: u32,
}

impl FromSetting for TopicPartitions {
    const KIND: &'static str = "topics with a number, such as job-metrics=40";

    fn from_text(text: &str) -> Result<Self, String> {
        let (topic, number) = of_topic(text)?;
        match number.parse() {
            Ok(partitions) if partitions > 0 => Ok(Self { topic, partitions }),
            _ => Err(format!("'{number}' is no number of partitions")),
        }
    }
}

/// `topic=duration`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRetention {
    pub topic: String,
    pub retention: Duration,
}

impl FromSetting for TopicRetention {
    const KIND: &'static str = "topics with a duration, such as audit-trail=365d";

    fn from_text(text: &str) -> Result<Self, String> {
        let (topic, duration) = of_topic(text)?;
        Ok(Self { topic, retention: Duration::from_text(duration)? })
    }
}

fn of_topic(text: &str) -> Result<(String, &str), String> {
    match text.split_once('=') {
        Some((topic, value)) if !topic.trim().is_empty() => Ok((topic.trim().to_owned(), value.trim())),
        _ => Err(format!("'{text}' is not topic=value")),
    }
}

impl Check for Kafka {
    fn check(&self, checks: &mut Checks<'_>) {
        let second = Duration::from_secs(1);
        checks.require(!self.brokers.is_empty(), "kafka.brokers", "names no broker", "name one or more, host:port");
        for broker in &self.brokers {
            let good =
                broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            checks.require(good, "kafka.brokers", format!("'{broker}' is not host:port"), "write host:port");
        }
        self.check_credentials(checks);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        checks.require(
            self.topic_prefix.len() <= 100 && self.topic_prefix.chars().all(legal),
            "kafka.topic_prefix",
            "is no part of a topic's name",
            "use at most 100 letters, digits, '.', '_' or '-'",
        );
        checks.within("kafka.replication", self.replication, 1..=15);
        checks.require(
            (1..=self.replication).contains(&self.min_insync),
            "kafka.min_insync",
            "must be between 1 and kafka.replication",
            "use one less than kafka.replication, so that one broker may be away",
        );
        checks.within("kafka.linger", self.linger, Duration::ZERO..=second);
        checks.within("kafka.max_message", self.max_message, ByteSize::kib(16)..=ByteSize::mib(64));
        checks.within("kafka.delivery_timeout", self.delivery_timeout, 2 * second..=600 * second);
        checks.within("kafka.request_timeout", self.request_timeout, second..=60 * second);
        checks.require(
            self.request_timeout <= self.delivery_timeout,
            "kafka.request_timeout",
            "is longer than kafka.delivery_timeout, so nothing would ever be tried twice",
            "make it a third of kafka.delivery_timeout",
        );
        checks.within("kafka.session_timeout", self.session_timeout, 6 * second..=300 * second);
        checks.within("kafka.commit_interval", self.commit_interval, Duration::from_millis(10)..=60 * second);
        checks.within("kafka.handover", self.handover, Duration::ZERO..=60 * second);
    }
}

impl Kafka {
    fn check_credentials(&self, checks: &mut Checks<'_>) {
        let signs_in = self.security.is_sasl();
        let reason = "is needed to sign in (kafka.security is sasl-...)";
        checks.require(!signs_in || self.username.is_some(), "kafka.username", reason, "name the user");
        checks.require(!signs_in || self.password.is_some(), "kafka.password", reason, "give the user's password");
        checks.require(
            self.cert_file.is_some() == self.key_file.is_some(),
            "kafka.key_file",
            "a certificate and its key go together",
            "set both kafka.cert_file and kafka.key_file, or neither",
        );
        for (key, file) in
            [("kafka.ca_file", &self.ca_file), ("kafka.cert_file", &self.cert_file), ("kafka.key_file", &self.key_file)]
        {
            if let Some(file) = file {
                let reason = format!("'{}' is not a file", file.display());
                checks.require(file.is_file(), key, reason, "correct the path");
                let unused = "is set, but connections are not encrypted";
                checks.require(self.security.is_tls(), key, unused, "set kafka.security to ssl or sasl-ssl");
            }
        }
    }
}
