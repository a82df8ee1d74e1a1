//! A small police domain as somebody else would bring it: files, no Rust.

use serde_json::json;

use super::*;

pub(super) const POLICE: &str = r#"
[[exchange]]
name = "police.events"
kind = "topic"

[[topic]]
name = "officers"
partitions = 3
retention_days = 30

[[stream]]
name = "COMMANDS_OFFICER"
subjects = ["commands.officer.>"]
kind = "limits"
max_age_minutes = 1440

[[type]]
name = "ChangeOfficerStatusRequested"
schema = "change-status.avsc"
version = 1
aggregate = "officer"
aggregate_id = "badge_number"
order = "aggregate"
command = true
ingest = ["operator"]
kafka = { topic = "officers", key = "badge_number" }
nats = { subject = "commands.officer.change-status" }

[[type]]
name = "officer.status.changed"
schema = "status-changed.avsc"
version = 3
aggregate = "officer"
aggregate_id = "badge_number"
order = "aggregate"
audience = ["role:operator"]
socket_event = "stats_update"
ingest = ["user", "operator"]
rabbitmq = { exchange = "police.events", key = "officer.{status}.changed" }
kafka = { topic = "officers", key = "badge_number" }
"#;

fn status() -> serde_json::Value {
    json!({"type": "enum", "name": "OfficerStatus", "symbols": ["on_duty", "off_duty", "UNKNOWN"], "default": "UNKNOWN"})
}

pub(super) fn payload_fields() -> serde_json::Value {
    json!([
        {"name": "badge_number", "type": "string"},
        {"name": "status", "type": status()},
        {"name": "remark", "type": ["null", "string"], "default": null},
        {"name": "districts", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "scores", "type": {"type": "map", "values": "double"}, "default": {}},
        {"name": "shift", "type": "int"},
    ])
}

/// A schema with the envelope of the built-in ones.
pub(super) fn schema(record: &str, payload_fields: serde_json::Value) -> serde_json::Value {
    let mut schema: serde_json::Value = serde_json::from_str(get("job.submitted").schema_text()).unwrap();
    schema["name"] = json!(record);
    schema["namespace"] = json!("org.police.events");
    let payload = json!({"type": "record", "name": format!("{record}Payload"), "fields": payload_fields});
    schema["fields"].as_array_mut().unwrap().last_mut().unwrap()["type"] = payload;
    schema
}

pub(super) fn envelope_field<'s>(schema: &'s mut serde_json::Value, name: &str) -> &'s mut serde_json::Value {
    schema["fields"].as_array_mut().unwrap().iter_mut().find(|field| field["name"] == name).unwrap()
}

/// A directory of catalogue files.
pub(super) struct Domain {
    pub catalogue: String,
    pub command: serde_json::Value,
    pub changed: serde_json::Value,
}

impl Domain {
    pub(super) fn police() -> Self {
        Self {
            catalogue: POLICE.to_owned(),
            command: schema("ChangeOfficerStatusRequested", payload_fields()),
            changed: schema("OfficerStatusChanged", payload_fields()),
        }
    }

    /// What `Catalogue::load` says, without the directory's path.
    pub(super) fn load(&self) -> Result<Arc<Catalogue>, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("catalogue.toml"), &self.catalogue).unwrap();
        std::fs::write(dir.path().join("change-status.avsc"), self.command.to_string()).unwrap();
        std::fs::write(dir.path().join("status-changed.avsc"), self.changed.to_string()).unwrap();
        let prefix = format!("{}/", dir.path().display());
        Catalogue::load(&[dir.path().to_owned()])
            .map_err(|errors| errors.iter().map(|error| error.to_string().replace(&prefix, "")).collect())
    }
}
