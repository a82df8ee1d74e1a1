//! `schema check`: may this catalogue follow what was released?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, print, print_json, table};
use crate::broker::kafka::KafkaTopology;
use crate::config::Config;
use crate::domain::catalogue::{Catalogue, EventType};
use crate::schema_registry::{RegistryError, SchemaRegistry, Verdict, compare, subject};

#[derive(Subcommand)]
pub enum Schema {
    /// Compare the catalogue's Avro schemas with every released version.
    #[command(after_help = CHECK_HELP)]
    Check(Check),
}

const CHECK_HELP: &str = "\
Every version must read every other (FULL_TRANSITIVE): replay crosses many versions.

Examples:
  event-gateway schema check                          against the registry of kafka.schema_registry_url
  event-gateway schema check --against released/      against *.avsc files, in any directories below

Exit codes: 0 every schema may be released, 1 some may not, 64 wrong configuration or
catalogue, 69 the registry does not answer.";

#[derive(Args)]
pub struct Check {
    /// Directory with the released schemas (*.avsc, also in directories below) instead of the registry.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
}

/// What became of one schema.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Never released.
    New,
    /// As the newest released version.
    Unchanged,
    /// Another version that every released one reads, and that reads every released one.
    Compatible,
    Incompatible,
    /// Released, but no longer in the catalogue.
    Removed,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Unchanged => "unchanged",
            Self::Compatible => "compatible",
            Self::Incompatible => "INCOMPATIBLE",
            Self::Removed => "REMOVED",
        }
    }

    fn is_good(self) -> bool {
        !matches!(self, Self::Incompatible | Self::Removed)
    }
}

#[derive(Serialize)]
struct Row {
    /// The subject, or the record's name where there is no registry.
    schema: String,
    status: Status,
    /// Versions compared with.
    released: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

pub async fn run(command: &Schema, global: &Global) -> Outcome {
    let Schema::Check(check) = command;
    let config = global.load()?.config;
    let catalogue = Catalogue::load(&config.catalogue.dirs).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::configuration(format!("the catalogue contradicts itself:\n  {}", lines.join("\n  ")))
    })?;
    let rows = match &check.against {
        Some(directory) => against_directory(&catalogue, directory)?,
        None => against_registry(&catalogue, &config).await?,
    };
    report(&rows, global.output)
}

fn report(rows: &[Row], format: Format) -> Outcome {
    let bad = rows.iter().filter(|row| !row.status.is_good()).count();
    match format {
        Format::Json => print_json(&json!({ "ok": bad == 0, "schemas": rows }))?,
        Format::Text => {
            let cells = |row: &Row| vec![row.schema.clone(), row.released.to_string(), row.status.as_str().to_owned()];
            let mut text = table(&["SCHEMA", "RELEASED", "STATUS"], &rows.iter().map(cells).collect::<Vec<_>>());
            for row in rows {
                text.extend(row.reasons.iter().map(|reason| format!("{}: {reason}\n", row.schema)));
            }
            print(&text)?;
        }
    }
    if bad == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{bad} of {} schemas may not be released: add fields with defaults only, or make it a new type of event",
        rows.len()
    )))
}

/// Compares with released versions, oldest first.
fn judge(schema: String, event_type: &EventType, released: &[(String, String)]) -> Row {
    let mut status = Status::New;
    let mut reasons = Vec::new();
    for (version, text) in released {
        match compare(event_type.schema_text(), text) {
            Verdict::Same => status = Status::Unchanged,
            Verdict::Compatible => status = Status::Compatible,
            Verdict::Incompatible(why) => reasons.push(format!("{version}: {why}")),
        }
    }
    if !reasons.is_empty() {
        status = Status::Incompatible;
    }
    Row { schema, status, released: released.len(), reasons }
}

async fn against_registry(catalogue: &Catalogue, config: &Config) -> Result<Vec<Row>, Failure> {
    let topology = KafkaTopology::from_catalogue(catalogue, &config.kafka, &[])
        .map_err(|e| Failure::configuration(e.to_string()))?;
    let registry = SchemaRegistry::new(&config.registry).map_err(failure)?;
    let mut rows = Vec::new();
    for (topic, event_type) in &topology.types {
        let subject = subject(&format!("{}{topic}", config.kafka.topic_prefix), event_type.record_name());
        let versions = registry.versions(&subject).await.map_err(failure)?;
        let versions: Vec<_> = versions.into_iter().map(|(n, text)| (format!("version {n}"), text)).collect();
        rows.push(judge(subject, event_type, &versions));
    }
    Ok(rows)
}

fn failure(error: RegistryError) -> Failure {
    match error {
        RegistryError::Unavailable(_) => Failure::unreachable(error.to_string()),
        RegistryError::Settings(_) => Failure::configuration(error.to_string()),
        RegistryError::NotFound(_) | RegistryError::Refused(_) => Failure::failed(error.to_string()),
    }
}

fn against_directory(catalogue: &Catalogue, directory: &Path) -> Result<Vec<Row>, Failure> {
    let mut released = BTreeMap::new();
    collect(directory, &mut released)?;
    if released.is_empty() {
        return Err(Failure::usage(format!("{}: there is no .avsc file in it", directory.display())));
    }
    let mut rows = Vec::new();
    for event_type in catalogue.types() {
        let versions = released.remove(event_type.record_name()).unwrap_or_default();
        rows.push(judge(event_type.record_name().to_owned(), event_type, &versions));
    }
    rows.extend(released.into_iter().map(|(schema, versions)| Row {
        schema,
        status: Status::Removed,
        released: versions.len(),
        reasons: vec!["the catalogue no longer has it, but the log has records of it".to_owned()],
    }));
    Ok(rows)
}

/// Every schema below `directory` by the name of its record, in the order of the files' names.
fn collect(directory: &Path, released: &mut BTreeMap<String, Vec<(String, String)>>) -> Result<(), Failure> {
    let unreadable = |path: &Path, why: String| Failure::usage(format!("{}: {why}", path.display()));
    let entries = std::fs::read_dir(directory).map_err(|error| unreadable(directory, error.to_string()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(directory, error.to_string()))?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, released)?;
        } else if path.extension().is_some_and(|extension| extension == "avsc") {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error.to_string()))?;
            let schema = apache_avro::Schema::parse_str(&text)
                .map_err(|error| unreadable(&path, format!("is no Avro schema: {error}")))?;
            let name = schema.name().map(|name| name.fullname(None));
            let name = name.ok_or_else(|| unreadable(&path, "is not a record".to_owned()))?;
            released.entry(name).or_default().push((path.display().to_string(), text));
        }
    }
    Ok(())
}
