//! What must hold within one entry of a catalogue file.

use apache_avro::Schema;
use apache_avro::schema::UuidSchema;

use super::Audience;
use super::file::{RawType, Report, Source};
use super::route::Template;
use super::schema::TypeSchema;
use crate::domain::Role;

/// The Socket.IO events a type may name; `/api/asyncapi.json` has their shapes.
const SOCKET_EVENTS: [&str; 5] = ["job_update", "job_notification", "telemetry_update", "stats_update", "alert"];

/// Names end up in headers, file names, metrics and URLs.
pub(super) fn check_name(name: &str, report: &mut Report<'_>) {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 200 || !name.chars().all(legal) {
        report.error("name", "must be 1 to 200 letters, digits, dots, dashes or underscores");
    }
}

pub(super) fn read_audience(raw: &RawType, report: &mut Report<'_>) -> Audience {
    let mut audience = Audience::default();
    for who in &raw.audience {
        match &**who {
            "job" => audience.job = true,
            "user" => audience.user = true,
            "role:operator" => audience.operator = true,
            other => report.error("audience", format!("'{other}' is not one of job, user, role:operator")),
        }
    }
    if audience.job && !raw.aggregate.starts_with("job") {
        report.error("audience", format!("job needs an aggregate job*, not '{}'", raw.aggregate));
    }
    match (raw.audience.is_empty(), &*raw.socket_event) {
        (true, "") => {}
        (true, _) => report.error("socket_event", "nobody sees this type: give it an audience or leave this out"),
        (false, name) if SOCKET_EVENTS.contains(&name) => {}
        (false, name) => {
            report.error("socket_event", format!("'{name}' is not one of {}", SOCKET_EVENTS.join(", ")));
        }
    }
    audience
}

pub(super) fn read_ingest(raw: &RawType, source: &Source, report: &mut Report<'_>) -> Vec<Role> {
    if matches!(source, Source::BuiltIn) && !raw.ingest.is_empty() {
        report.error("ingest", "nobody may post a built-in type");
    }
    raw.ingest.iter().filter_map(|role| report.ok("ingest", role.parse())).collect()
}

pub(super) fn check_aggregate_id(raw: &RawType, audience: Audience, schema: &TypeSchema, report: &mut Report<'_>) {
    match schema.payload_field(&raw.aggregate_id) {
        Some(Schema::Uuid(UuidSchema::String)) => {}
        Some(Schema::String) if !audience.job => {}
        Some(Schema::String) => report.error("aggregate_id", "must be a uuid: the audience is a job"),
        Some(_) => report.error("aggregate_id", format!("'{}' must be a required string or uuid", raw.aggregate_id)),
        None => report.error("aggregate_id", format!("the payload has no field '{}'", raw.aggregate_id)),
    }
}

/// Placeholders must be fields with a closed alphabet: a free text with a dot, a space or a
/// wildcard in it would go somewhere else.
pub(super) fn check_placeholders(field: &str, template: &Template, schema: &TypeSchema, report: &mut Report<'_>) {
    for name in template.fields() {
        match schema.payload_field(name) {
            Some(Schema::Uuid(UuidSchema::String) | Schema::Enum(_)) => {}
            Some(_) => report.error(field, format!("{{{name}}} must be a required uuid or enum")),
            None => report.error(field, format!("the payload has no field '{name}'")),
        }
    }
}

pub(super) fn check_command(raw: &RawType, report: &mut Report<'_>) {
    if raw.name.ends_with("Requested") && !raw.command {
        report.error("command", "a type named *Requested must be a command: set command = true");
    }
    let subject = raw.nats.as_ref().map(|nats| &*nats.subject);
    let is_command_subject = |subject: &str| {
        let tokens: Vec<_> = subject.split('.').collect();
        tokens.len() >= 3 && tokens[0] == "commands" && !tokens[1].contains('{')
    };
    match (raw.command, subject) {
        (true, None) => report.error("nats", "a command needs a NATS subject commands.{domain}.{action}"),
        (true, Some(subject)) if !is_command_subject(subject) => {
            report.error("nats.subject", format!("'{subject}' must be commands.{{domain}}.{{action}}"));
        }
        (false, Some(subject)) if subject.starts_with("commands.") => {
            report.error("nats.subject", "subjects under commands. are for commands: set command = true");
        }
        _ => {}
    }
}
