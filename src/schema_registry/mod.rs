//! The schema registry: ids for what we write, schemas for what we read.
//!
//! Confluent's API, as Confluent's own registry, Apicurio and Redpanda have it. Whatever
//! is not a clear answer (time-outs, 401, 5xx, a proxy's page) is [`RegistryError::Unavailable`]:
//! whoever asked waits and asks again; nothing is ever given up because of it.

mod compatibility;
mod settings;

use std::error::Error;
use std::sync::Arc;

use schema_registry_converter::async_impl::schema_registry as calls;
use schema_registry_converter::async_impl::schema_registry::SrSettings;
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SrCall, SuppliedSchema};
use serde::Deserialize;
use serde_json::json;

pub use compatibility::{Verdict, compare};

use crate::config::Registry as RegistryConfig;

/// Every version of a schema reads what every other has written.
const FULL_TRANSITIVE: &str = "FULL_TRANSITIVE";

/// What a registry did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No clear answer; safe to ask again.
    #[error("the schema registry does not answer: {0}")]
    Unavailable(String),
    /// A reachable registry has no such subject, version or id.
    #[error("the schema registry has no {0}")]
    NotFound(String),
    /// The registry does not take this schema.
    #[error("the schema registry refuses {0}")]
    Refused(String),
    /// Settings that no client can be made of.
    #[error("registry: {0}")]
    Settings(String),
}

/// The subject of a record type in a topic (topic-record name strategy): a topic carries
/// several types, and each has a history of its own.
pub fn subject(topic: &str, record_name: &str) -> String {
    format!("{topic}-{record_name}")
}

/// A registry. Cheap to share; every call is bounded by `kafka.schema_registry_timeout` for each URL.
#[derive(Clone)]
pub struct SchemaRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    calls: SrSettings,
    /// For what the converter has no call for: compatibility levels.
    http: reqwest::Client,
    config: RegistryConfig,
}

impl SchemaRegistry {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`RegistryError::Settings`], e.g. when `kafka.schema_registry_ca_file` holds no certificate.
    pub fn new(config: &RegistryConfig) -> Result<Self, RegistryError> {
        let calls = settings::converter(config)?;
        let http = settings::client(config)?.timeout(config.schema_registry_timeout).build();
        let http = http.map_err(|error| RegistryError::Settings(chain(&error)))?;
        Ok(Self { inner: Arc::new(Inner { calls, http, config: config.clone() }) })
    }

    /// The text of the schema with this id.
    pub async fn schema_by_id(&self, id: u32) -> Result<String, RegistryError> {
        let found = calls::get_schema_by_id(id, &self.inner.calls).await;
        let found = found.map_err(|error| classified(&error, format!("schema with id {id}")))?;
        if found.schema_type != SchemaType::Avro || !found.references.is_empty() {
            return Err(RegistryError::NotFound(format!("self-contained Avro schema with id {id}")));
        }
        Ok(found.schema)
    }

    /// The id of a schema in a subject, registered if it is new.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        let registered = calls::post_schema(&self.inner.calls, subject.to_owned(), supplied).await;
        registered.map(|schema| schema.id).map_err(|error| classified(&error, format!("subject {subject}")))
    }

    /// The id of a schema that must be registered in a subject.
    pub async fn find(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let body = json!({ "schema": schema, "schemaType": "AVRO" }).to_string();
        let found = calls::perform_sr_call(&self.inner.calls, SrCall::PostForVersion(subject, &body)).await;
        let found = found.map_err(|error| classified(&error, format!("such schema in subject {subject}")))?;
        found.id.ok_or_else(|| RegistryError::Unavailable(format!("its answer about {subject} has no id")))
    }

    /// Every version of a subject, oldest first; none if there is no such subject.
    pub async fn versions(&self, subject: &str) -> Result<Vec<(u32, String)>, RegistryError> {
        let what = || format!("subject {subject}");
        let numbers = match calls::get_all_versions(&self.inner.calls, subject.to_owned()).await {
            Ok(numbers) => numbers,
            Err(error) => match classified(&error, what()) {
                RegistryError::NotFound(_) => return Ok(Vec::new()),
                error => return Err(error),
            },
        };
        let mut versions = Vec::with_capacity(numbers.len());
        for number in numbers {
            let found = calls::get_schema_by_subject_and_version(&self.inner.calls, subject, Some(number)).await;
            versions.push((number, found.map_err(|error| classified(&error, what()))?.schema));
        }
        Ok(versions)
    }

    /// Does it answer?
    pub async fn ping(&self) -> Result<(), RegistryError> {
        calls::get_all_subjects(&self.inner.calls)
            .await
            .map(drop)
            .map_err(|error| classified(&error, "list of subjects".to_owned()))
    }

    /// Makes a subject ready to write with `schema`: checks it against every version there
    /// is, keeps the subject at FULL_TRANSITIVE, registers or looks up. Answers the id.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when versions do not read each other, and
    /// [`RegistryError::NotFound`] when it is not there and may not be registered.
    pub async fn prepare(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let versions = self.versions(subject).await?;
        for (number, released) in &versions {
            if let Verdict::Incompatible(why) = compare(schema, released) {
                return Err(RegistryError::Refused(format!(
                    "{subject}: the catalogue's schema and version {number} do not read each other: {why}; \
                     add fields with defaults only, or use a new type of event"
                )));
            }
        }
        if !self.inner.config.register_schemas {
            return self.find(subject, schema).await.map_err(|error| match error {
                RegistryError::NotFound(what) => RegistryError::NotFound(format!(
                    "{what} and kafka.register_schemas is off; register it when releasing, or set kafka.register_schemas=true"
                )),
                error => error,
            });
        }
        // A level can only be set on a subject that is there (Apicurio).
        if !versions.is_empty() {
            self.keep_full_transitive(subject).await?;
        }
        let id = self.register(subject, schema).await?;
        if versions.is_empty() {
            self.keep_full_transitive(subject).await?;
        }
        Ok(id)
    }

    async fn keep_full_transitive(&self, subject: &str) -> Result<(), RegistryError> {
        if !self.inner.config.full_transitive || self.level(subject).await?.as_deref() == Some(FULL_TRANSITIVE) {
            return Ok(());
        }
        let body = json!({ "compatibility": FULL_TRANSITIVE });
        let path = format!("config/{subject}");
        self.send(reqwest::Method::PUT, &path, Some(&body)).await.map(drop)
    }

    /// A subject's own compatibility level, if it has one.
    pub async fn level(&self, subject: &str) -> Result<Option<String>, RegistryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Level {
            compatibility_level: String,
        }
        match self.send(reqwest::Method::GET, &format!("config/{subject}"), None).await {
            Ok(body) => match serde_json::from_slice::<Level>(&body) {
                Ok(level) => Ok(Some(level.compatibility_level)),
                Err(error) => Err(RegistryError::Unavailable(format!("its level of {subject} is unreadable: {error}"))),
            },
            Err(RegistryError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks each URL in turn until one answers.
    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<bytes::Bytes, RegistryError> {
        let mut last = RegistryError::Unavailable("no URL is configured".to_owned());
        for base in &self.inner.config.schema_registry_url {
            let url = format!("{}/{path}", base.as_str().trim_end_matches('/'));
            let mut request = self.inner.http.request(method.clone(), url);
            if let Some(user) = &self.inner.config.schema_registry_username {
                request =
                    request.basic_auth(user, self.inner.config.schema_registry_password.as_ref().map(|p| p.expose()));
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            match answer(request, path).await {
                Err(RegistryError::Unavailable(why)) => last = RegistryError::Unavailable(why),
                clear => return clear,
            }
        }
        Err(last)
    }
}

async fn answer(request: reqwest::RequestBuilder, path: &str) -> Result<bytes::Bytes, RegistryError> {
    let unavailable = |error: reqwest::Error| RegistryError::Unavailable(chain(&error));
    let response = request.send().await.map_err(unavailable)?;
    let status = response.status();
    let body = response.bytes().await.map_err(unavailable)?;
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<RawError>(&body) {
        Ok(raw) => Err(by_code(&raw, path.to_owned())),
        Err(_) => Err(RegistryError::Unavailable(format!("{path}: HTTP status {status}"))),
    }
}

/// What an error of the converter means. Only an error document of the registry itself
/// says that something is not there.
fn classified(error: &SRCError, what: String) -> RegistryError {
    match error.source().and_then(|source| source.downcast_ref::<RawError>()) {
        Some(raw) if raw.error_code > 0 => by_code(raw, what),
        Some(_) => RegistryError::Unavailable(error.error.clone()),
        None => RegistryError::Unavailable(match error.source() {
            Some(source) => format!("{}: {}", error.error, chain(source)),
            None => error.error.clone(),
        }),
    }
}

fn by_code(raw: &RawError, what: String) -> RegistryError {
    match raw.error_code {
        // Subject, version, schema; subject without a level of its own.
        40401 | 40402 | 40403 | 40408 => RegistryError::NotFound(what),
        409 | 42201 | 42203 => RegistryError::Refused(format!("{what}: {}", raw.message)),
        code => RegistryError::Unavailable(format!("{what}: {} (code {code})", raw.message)),
    }
}

/// An error with its causes: reqwest's own text hides them.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
