use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::brokers::BrokerMode;
use super::setting::{Check, Checks, Secret, settings};

settings! {
    /// NATS JetStream: commands on their way to whoever does the work.
    pub struct Nats in "nats" {
        /// embedded or external. Empty: as brokers.mode.
        mode: Option<BrokerMode> = "",
        /// Servers of one cluster: nats://host:port, or tls://host:port.
        urls: Vec<String> = "nats://127.0.0.1:4222",
        /// Name to sign in with, together with nats.password.
        username: Option<String> = "",
        /// Password of nats.username.
        password: Option<Secret> = "",
        /// Seed of the nkey to sign in with; it begins with SU.
        nkey_seed: Option<Secret> = "",
        /// Text of a credentials file (a JWT and its seed); mostly given as its path in
        /// nats.credentials_file.
        credentials: Option<Secret> = "",
        /// The authority (PEM file) that signed the servers' certificates; connections
        /// then need TLS. Empty: the system's authorities, where a server asks for TLS.
        ca_file: Option<PathBuf> = "",
        /// The certificate (PEM file) to show to servers that want one, with nats.key_file.
        cert_file: Option<PathBuf> = "",
        /// The key (PEM file) of nats.cert_file.
        key_file: Option<PathBuf> = "",
        /// Copies of each stream. 1 on a single server.
        replicas: usize = "3",
        /// How long a stream recognises a message that it already has.
        duplicate_window: Duration = "2m",
        /// The longest one attempt to connect takes.
        connect_timeout: Duration = "5s",
        /// The longest a request to JetStream takes, and an acknowledgement.
        request_timeout: Duration = "5s",
        /// A window of messages must be confirmed within this time.
        publish_timeout: Duration = "10s",
        /// A silent server is asked for a sign of life this often; the third unanswered
        /// question ends the connection.
        ping_interval: Duration = "2s",
    }
}

impl Check for Nats {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.require(!self.urls.is_empty(), "nats.urls", "names no server", "name at least one, nats://host:port");
        for url in &self.urls {
            let reason = match Url::parse(url) {
                Ok(url) if !matches!(url.scheme(), "nats" | "tls") => Some("has another scheme than nats:// or tls://"),
                Ok(url) if url.host_str().is_none_or(str::is_empty) => Some("names no host"),
                Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                    Some("holds credentials, which logs would show; move them to nats.username and nats.password")
                }
                Ok(_) => None,
                Err(_) => Some("is no URL"),
            };
            checks.require(reason.is_none(), "nats.urls", reason.unwrap_or_default(), "write nats://host:port");
        }
        let ways = [self.username.is_some(), self.nkey_seed.is_some(), self.credentials.is_some()];
        checks.require(
            ways.into_iter().filter(|given| *given).count() <= 1,
            "nats.username",
            "is one of several ways to sign in that are given",
            "keep one of nats.username, nats.nkey_seed and nats.credentials",
        );
        checks.require(
            self.username.is_some() == self.password.is_some(),
            "nats.password",
            "nats.username and nats.password go together",
            "give both or neither",
        );
        let seed = self.nkey_seed.as_ref().is_none_or(|seed| seed.expose().starts_with("SU"));
        checks.require(seed, "nats.nkey_seed", "is not the seed of a user's nkey", "give the seed: it begins with SU");
        checks.require(
            self.cert_file.is_some() == self.key_file.is_some(),
            "nats.key_file",
            "nats.cert_file and nats.key_file go together",
            "give both or neither",
        );
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        checks.within("nats.replicas", self.replicas, 1..=5);
        checks.within("nats.duplicate_window", self.duplicate_window, second..=60 * minute);
        checks.within("nats.connect_timeout", self.connect_timeout, second / 10..=minute);
        checks.within("nats.request_timeout", self.request_timeout, second / 10..=minute);
        checks.within("nats.publish_timeout", self.publish_timeout, second / 10..=5 * minute);
        checks.within("nats.ping_interval", self.ping_interval, second / 10..=minute);
    }
}
