//! Keeps the tables of `docs/events.md` equal to the catalogue.
//!
//! `UPDATE_DOCS=1 cargo test --lib docs_events` writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");

#[test]
fn docs_events_has_the_tables_of_the_catalogue() {
    let mut text = std::fs::read_to_string(FILE).unwrap();
    let written = text.clone();
    for (name, table) in [("types", types()), ("payloads", payloads()), ("enums", enums()), ("topology", topology())] {
        let (open, close) = (format!("<!-- {name}: generated -->\n"), format!("<!-- end of {name} -->"));
        let start = text.find(&open).unwrap_or_else(|| panic!("{FILE} has no section {name}")) + open.len();
        let end = start + text[start..].find(&close).unwrap_or_else(|| panic!("{FILE}: {name} does not end"));
        text.replace_range(start..end, &format!("\n{table}\n"));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(FILE, &text).unwrap();
    } else {
        assert!(text == written, "docs/events.md is stale: UPDATE_DOCS=1 cargo test --lib docs_events");
    }
}

fn types() -> String {
    let mut out = String::from(
        "| type | aggregate | RabbitMQ exchange, key | Kafka topic, key | NATS subject | seen by | order |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for event_type in CATALOGUE.types() {
        let mut route = [const { String::new() }; 3];
        for (broker, target, key, optional) in &event_type.templates {
            let (slot, text) = match broker {
                Broker::Rabbitmq => (0, format!("`{target}`, `{key}`{}", if *optional { " (optional)" } else { "" })),
                Broker::Kafka => (1, format!("`{target}`, {}", key.to_string().trim_matches(['{', '}']))),
                Broker::Nats => (2, format!("`{target}`")),
            };
            route[slot] = text;
        }
        let [rabbitmq, kafka, nats] = route.map(|text| if text.is_empty() { "-".to_owned() } else { text });
        let Audience { job, user, operator } = event_type.audience;
        let seen = [(job, "job"), (user, "user"), (operator, "role:operator")];
        let seen: Vec<_> = seen.into_iter().filter_map(|(yes, name)| yes.then_some(name)).collect();
        let seen = match seen.is_empty() {
            true => "-".to_owned(),
            false => format!("{} as `{}`", seen.join(", "), event_type.socket_event),
        };
        let (name, aggregate, id) = (&event_type.name, &event_type.aggregate, event_type.aggregate_id_field());
        let order = event_type.order.as_str();
        let _ = writeln!(out, "| `{name}` | {aggregate}:{id} | {rabbitmq} | {kafka} | {nats} | {seen} | {order} |");
    }
    out
}

fn payloads() -> String {
    let mut out = String::new();
    for event_type in CATALOGUE.types() {
        let parsed = Schema::parse_str(event_type.schema_text()).unwrap();
        let doc = parsed.doc().map_or("", |doc| doc);
        let _ = write!(out, "### {}\n{doc}\n\n| field | type | |\n|---|---|---|\n", event_type.name);
        rows(event_type.payload_schema(), "", &mut out);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

fn rows(schema: &Schema, prefix: &str, out: &mut String) {
    let Schema::Record(record) = schema else { return };
    for field in &record.fields {
        let (schema, mark) = match &field.schema {
            Schema::Union(union) => (schema::optional(union).unwrap(), "?"),
            other => (other, ""),
        };
        let path = format!("{prefix}{}", field.name);
        let described = schema::describe(schema);
        let doc = field.doc.as_deref().unwrap_or_default();
        let _ = writeln!(out, "| {path}{mark} | `{described}` | {doc} |");
        rows(schema, &format!("{path}."), out);
    }
}

fn enums() -> String {
    let mut lines = BTreeSet::new();
    for event_type in CATALOGUE.types() {
        for (name, schema) in &event_type.schema.named {
            if let Schema::Enum(schema) = schema {
                let name = name.rsplit('.').next().unwrap();
                lines.insert(format!("| {name} | {} |", json::known_symbols(schema).join(", ")));
            }
        }
    }
    format!("| enum | symbols |\n|---|---|\n{}\n", lines.into_iter().collect::<Vec<_>>().join("\n"))
}

fn topology() -> String {
    let mut out = String::from("| broker | name | |\n|---|---|---|\n");
    for exchange in CATALOGUE.exchanges() {
        let kind = match exchange.kind {
            ExchangeKind::Topic => "topic",
            ExchangeKind::Direct => "direct",
        };
        let _ = writeln!(out, "| RabbitMQ | `{}` | {kind} exchange, durable |", exchange.name);
    }
    for topic in CATALOGUE.topics() {
        let days = topic.retention.as_secs() / 86_400;
        let _ = writeln!(out, "| Kafka | `{}` | {} partitions, kept {days} days |", topic.name, topic.partitions);
    }
    for stream in CATALOGUE.streams() {
        let kind = match stream.kind {
            StreamKind::WorkQueue => "work queue".to_owned(),
            StreamKind::Limits { max_age } => format!("kept {} minutes", max_age.as_secs() / 60),
        };
        let subjects: Vec<_> = stream.subjects.iter().map(|subject| format!("`{subject}`")).collect();
        let _ = writeln!(out, "| NATS | `{}` | {}, {kind} |", stream.name, subjects.join(", "));
    }
    out
}
