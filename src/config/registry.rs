use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::setting::{Check, Checks, Secret, settings};

settings! {
    /// The schema registry (Confluent's API) that has the Avro schemas of what is in Kafka.
    pub struct Registry in "kafka" {
        /// Where it is; more than one are tried in turn.
        schema_registry_url: Vec<Url> = "http://127.0.0.1:8081",
        /// The user to sign in as (HTTP basic).
        schema_registry_username: Option<String> = "",
        /// The user's password.
        schema_registry_password: Option<Secret> = "",
        /// Certificates (PEM) that sign the registry's, beside those of the system.
        schema_registry_ca_file: Option<PathBuf> = "",
        /// Register schemas that are new. If false, they must be there.
        register_schemas: bool = "true",
        /// Keep every subject at compatibility FULL_TRANSITIVE: any version reads any other,
        /// which replay needs. If false, a subject's own level is left alone.
        full_transitive: bool = "true",
        /// A request that is not answered within this time has failed.
        schema_registry_timeout: Duration = "5s",
    }
}

impl Check for Registry {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.require(
            !self.schema_registry_url.is_empty(),
            "kafka.schema_registry_url",
            "names no registry",
            "name one or more",
        );
        for url in &self.schema_registry_url {
            let good = matches!(url.scheme(), "http" | "https") && url.query().is_none();
            let reason = format!("'{url}' is not the URL of a registry");
            checks.require(good, "kafka.schema_registry_url", reason, "use http:// or https://, without a query");
            let secret = url.username().is_empty() && url.password().is_none();
            checks.require(
                secret,
                "kafka.schema_registry_url",
                "has credentials in it, which logs would show",
                "use kafka.schema_registry_username and kafka.schema_registry_password",
            );
            let local = url.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "[::1]" | "localhost"));
            checks.require(
                self.schema_registry_password.is_none() || url.scheme() == "https" || local,
                "kafka.schema_registry_password",
                "would be sent without TLS",
                "use an https:// URL",
            );
        }
        checks.require(
            self.schema_registry_password.is_none() || self.schema_registry_username.is_some(),
            "kafka.schema_registry_username",
            "is missing beside kafka.schema_registry_password",
            "name the user",
        );
        if let Some(file) = &self.schema_registry_ca_file {
            let reason = format!("'{}' is not a file", file.display());
            checks.require(file.is_file(), "kafka.schema_registry_ca_file", reason, "correct the path");
        }
        let second = Duration::from_secs(1);
        checks.within(
            "kafka.schema_registry_timeout",
            self.schema_registry_timeout,
            Duration::from_millis(100)..=60 * second,
        );
    }
}
