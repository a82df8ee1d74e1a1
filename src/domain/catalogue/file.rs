//! The catalogue's files as they are written, and where they come from.

use std::path::PathBuf;

use serde::Deserialize;

use super::CatalogueError;
use crate::domain::payload::BUILT_IN;

/// Where a catalogue file and its schemas come from.
pub(super) enum Source {
    BuiltIn,
    Dir(PathBuf),
}

impl Source {
    /// What errors call one of its files.
    pub(super) fn name(&self, file: &str) -> String {
        match self {
            Source::BuiltIn => format!("schemas/{file}"),
            Source::Dir(dir) => dir.join(file).display().to_string(),
        }
    }

    pub(super) fn text(&self, file: &str) -> Result<String, String> {
        match self {
            Source::BuiltIn if file == CATALOGUE_FILE => Ok(CATALOGUE.to_owned()),
            Source::BuiltIn => BUILT_IN
                .iter()
                .find(|built_in| file.strip_suffix(".avsc") == Some(built_in.name))
                .map(|built_in| built_in.schema.to_owned())
                .ok_or_else(|| "is not compiled in; list its payload in src/domain/payload".to_owned()),
            Source::Dir(dir) => std::fs::read_to_string(dir.join(file)).map_err(|e| format!("cannot be read: {e}")),
        }
    }
}

pub(super) const CATALOGUE_FILE: &str = "catalogue.toml";
const CATALOGUE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/catalogue.toml"));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExchange {
    pub name: String,
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTopic {
    pub name: String,
    pub partitions: u32,
    pub retention_days: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStream {
    pub name: String,
    pub subjects: Vec<String>,
    pub kind: String,
    pub max_age_minutes: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawType {
    pub name: String,
    pub schema: String,
    pub version: u32,
    pub aggregate: String,
    pub aggregate_id: String,
    pub order: String,
    #[serde(default)]
    pub audience: Vec<String>,
    #[serde(default)]
    pub socket_event: String,
    #[serde(default)]
    pub command: bool,
    #[serde(default)]
    pub ingest: Vec<String>,
    pub rabbitmq: Option<RawRabbitmq>,
    pub kafka: Option<RawKafka>,
    pub nats: Option<RawNats>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRabbitmq {
    pub exchange: String,
    pub key: String,
    #[serde(default)]
    pub optional: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKafka {
    pub topic: String,
    pub key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNats {
    pub subject: String,
}

/// Collects the contradictions of one entry.
pub(super) struct Report<'a> {
    pub file: &'a str,
    pub entry: String,
    pub errors: &'a mut Vec<CatalogueError>,
}

impl Report<'_> {
    pub(super) fn error(&mut self, field: &str, reason: impl Into<String>) {
        let field = if field.is_empty() { self.entry.clone() } else { format!("{}.{field}", self.entry) };
        self.errors.push(CatalogueError { file: self.file.to_owned(), field, reason: reason.into() });
    }

    /// The value, or its error reported.
    pub(super) fn ok<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|reason| self.error(field, reason)).ok()
    }
}
