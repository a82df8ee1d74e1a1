use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::setting::{Check, Checks, Secret, settings};

settings! {
    /// The schema registry (Confluent's API) that has the Avro schemas of what is in Kafka.
    pub struct Registry in "registry" {
        /// Where it is; more than one are tried in turn.
        url: Vec<Url> = "http://127.0.0.1:8081",
        /// The user to sign in as (HTTP basic).
        username: Option<String> = "",
        /// The user's password.
        password: Option<Secret> = "",
        /// Certificates (PEM) that sign the registry's, beside those of the system.
        ca_file: Option<PathBuf> = "",
        /// Register schemas that are new. If false, they must be there.
        register: bool = "true",
        /// Keep every subject at compatibility FULL_TRANSITIVE: any version reads any other,
        /// which replay needs. If false, a subject's own level is left alone.
        full_transitive: bool = "true",
        /// A request that is not answered within this time has failed.
        timeout: Duration = "5s",
    }
}

impl Check for Registry {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.require(!self.url.is_empty(), "registry.url", "names no registry", "name one or more");
        for url in &self.url {
            let good = matches!(url.scheme(), "http" | "https") && url.query().is_none();
            let reason = format!("'{url}' is not the URL of a registry");
            checks.require(good, "registry.url", reason, "use http:// or https://, without a query");
            let secret = url.username().is_empty() && url.password().is_none();
            checks.require(
                secret,
                "registry.url",
                "has credentials in it, which logs would show",
                "use registry.username and registry.password",
            );
            let local = url.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "[::1]" | "localhost"));
            checks.require(
                self.password.is_none() || url.scheme() == "https" || local,
                "registry.password",
                "would be sent without TLS",
                "use an https:// URL",
            );
        }
        checks.require(
            self.password.is_none() || self.username.is_some(),
            "registry.username",
            "is missing beside registry.password",
            "name the user",
        );
        if let Some(file) = &self.ca_file {
            let reason = format!("'{}' is not a file", file.display());
            checks.require(file.is_file(), "registry.ca_file", reason, "correct the path");
        }
        let second = Duration::from_secs(1);
        checks.within("registry.timeout", self.timeout, Duration::from_millis(100)..=60 * second);
    }
}
