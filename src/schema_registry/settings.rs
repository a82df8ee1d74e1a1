//! HTTP clients from the settings.

use std::time::Duration;

use reqwest::{Certificate, ClientBuilder};
use schema_registry_converter::async_impl::schema_registry::SrSettings;

use super::RegistryError;
use crate::config::Registry as RegistryConfig;

const CONNECT: Duration = Duration::from_secs(3);

/// A client that trusts the configured certificates, too, and goes through no proxy.
pub(super) fn client(config: &RegistryConfig) -> Result<ClientBuilder, RegistryError> {
    let mut builder = ClientBuilder::new().no_proxy().connect_timeout(CONNECT.min(config.schema_registry_timeout));
    if let Some(file) = &config.schema_registry_ca_file {
        let wrong = |why: String| RegistryError::Settings(format!("ca_file {}: {why}", file.display()));
        let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("has no certificate in it; give a PEM file".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    Ok(builder)
}

/// The converter's settings, on such a client.
pub(super) fn converter(config: &RegistryConfig) -> Result<SrSettings, RegistryError> {
    let mut urls = config.schema_registry_url.iter().map(|url| url.as_str().trim_end_matches('/').to_owned());
    let first = urls.next().ok_or_else(|| RegistryError::Settings("url names no registry".to_owned()))?;
    let mut builder = SrSettings::new_builder(first);
    for url in urls {
        builder.add_url(url);
    }
    if let Some(user) = &config.schema_registry_username {
        builder
            .set_basic_authorization(user, config.schema_registry_password.as_ref().map(|password| password.expose()));
    }
    builder.set_timeout(config.schema_registry_timeout);
    builder.build_with(client(config)?).map_err(|error| RegistryError::Settings(error.to_string()))
}
