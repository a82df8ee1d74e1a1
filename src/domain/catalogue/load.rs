//! Reads the catalogue's files and reports everything in them that cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use apache_avro::Schema;
use apache_avro::schema::UuidSchema;
use serde::de::DeserializeOwned;

use super::check::{check_aggregate_id, check_command, check_name, check_placeholders, read_audience, read_ingest};
use super::file::{CATALOGUE_FILE, RawExchange, RawStream, RawTopic, RawType, Report, Source};
use super::route::{RouteTemplate, Routes, Template};
use super::schema::TypeSchema;
use super::topology::is_subject_filter;
use super::{
    Catalogue, CatalogueError, EventType, Exchange, ExchangeKind, Order, Stream, StreamKind, Topic, covers, overlaps,
};
use crate::domain::Broker;
use crate::domain::payload::BUILT_IN;

/// The most an undecodable record can make the Avro reader allocate at once. Events are
/// refused at intake above 512 kB.
const MAX_ALLOCATION_BYTES: usize = 4 << 20;

pub(super) fn load(dirs: &[PathBuf]) -> Result<Catalogue, Vec<CatalogueError>> {
    apache_avro::util::max_allocation_bytes(MAX_ALLOCATION_BYTES);
    let mut loader = Loader::default();
    loader.read(Source::BuiltIn);
    for dir in dirs {
        loader.read(Source::Dir(dir.clone()));
    }
    loader.finish()
}

/// Everything read so far. Types wait until all topology is known.
#[derive(Default)]
struct Loader {
    exchanges: Vec<Exchange>,
    topics: Vec<Topic>,
    streams: Vec<Stream>,
    types: BTreeMap<Arc<str>, Arc<EventType>>,
    raw_types: Vec<(Arc<Origin>, RawType)>,
    /// Named Avro types and the file that defined each first.
    named: BTreeMap<String, (String, Schema)>,
    records: BTreeSet<String>,
    errors: Vec<CatalogueError>,
}

/// The file that an entry is from.
struct Origin {
    source: Source,
    file: String,
}

impl Loader {
    fn read(&mut self, source: Source) {
        let file = source.name(CATALOGUE_FILE);
        let fail = |field: &str, reason: String| CatalogueError { file: file.clone(), field: field.to_owned(), reason };
        let table = match source.text(CATALOGUE_FILE).map(|text| toml::Table::from_str(&text)) {
            Ok(Ok(table)) => table,
            Ok(Err(error)) => {
                return self.errors.push(fail("syntax", error.to_string().trim_end().replace('\n', " | ")));
            }
            Err(reason) => return self.errors.push(fail("file", reason)),
        };
        let origin = Arc::new(Origin { source, file: file.clone() });
        for (section, entries) in table {
            let toml::Value::Array(entries) = entries else {
                self.errors.push(fail(&section, format!("must be a list: write [[{section}]]")));
                continue;
            };
            for (index, entry) in entries.into_iter().enumerate() {
                let name = entry.get("name").and_then(|name| name.as_str());
                let label = name.map_or_else(|| format!("{section}[{index}]"), |name| format!("{section}[{name}]"));
                self.read_entry(&origin, &section, label, entry);
            }
        }
    }

    fn read_entry(&mut self, origin: &Arc<Origin>, section: &str, entry: String, value: toml::Value) {
        let mut errors = std::mem::take(&mut self.errors);
        let mut report = Report { file: &origin.file, entry, errors: &mut errors };
        match section {
            "exchange" => {
                if let Some(raw) = read_as::<RawExchange>(value, &mut report) {
                    self.add_exchange(raw, &mut report);
                }
            }
            "topic" => {
                if let Some(raw) = read_as::<RawTopic>(value, &mut report) {
                    self.add_topic(raw, &mut report);
                }
            }
            "stream" => {
                if let Some(raw) = read_as::<RawStream>(value, &mut report) {
                    self.add_stream(raw, &mut report);
                }
            }
            "type" => {
                if let Some(raw) = read_as::<RawType>(value, &mut report) {
                    self.raw_types.push((origin.clone(), raw));
                }
            }
            _ => report.error("", "is not known; sections are exchange, topic, stream and type"),
        }
        self.errors = errors;
    }

    fn add_exchange(&mut self, raw: RawExchange, report: &mut Report<'_>) {
        let kind = match &*raw.kind {
            "topic" => Some(ExchangeKind::Topic),
            "direct" => Some(ExchangeKind::Direct),
            other => report.ok("kind", Err(format!("'{other}' is not one of topic, direct"))),
        };
        check_name(&raw.name, report);
        if self.exchanges.iter().any(|exchange| *exchange.name == *raw.name) {
            report.error("name", "this exchange is declared twice");
        } else if let Some(kind) = kind {
            self.exchanges.push(Exchange { name: raw.name.into(), kind });
        }
    }

    fn add_topic(&mut self, raw: RawTopic, report: &mut Report<'_>) {
        check_name(&raw.name, report);
        if raw.partitions == 0 {
            report.error("partitions", "must be at least 1");
        }
        if raw.retention_days == 0 {
            report.error("retention_days", "must be at least 1");
        }
        if self.topics.iter().any(|topic| *topic.name == *raw.name) {
            return report.error("name", "this topic is declared twice");
        }
        self.topics.push(Topic {
            name: raw.name.into(),
            partitions: raw.partitions,
            retention: Duration::from_secs(u64::from(raw.retention_days) * 86_400),
        });
    }

    fn add_stream(&mut self, raw: RawStream, report: &mut Report<'_>) {
        let kind = match (&*raw.kind, raw.max_age_minutes) {
            ("workqueue", None) => Ok(StreamKind::WorkQueue),
            ("workqueue", Some(_)) => {
                Err(("max_age_minutes", "a work queue keeps messages until they are acknowledged"))
            }
            ("limits", Some(minutes @ 1..)) => {
                Ok(StreamKind::Limits { max_age: Duration::from_secs(u64::from(minutes) * 60) })
            }
            ("limits", _) => Err(("max_age_minutes", "must be given, at least 1: or the stream grows for ever")),
            _ => Err(("kind", "must be workqueue or limits")),
        };
        check_name(&raw.name, report);
        if raw.name.contains('.') {
            report.error("name", "JetStream allows no dot in it");
        }
        if raw.subjects.is_empty() {
            report.error("subjects", "must name at least one subject");
        }
        let mut subjects: Vec<Arc<str>> = Vec::new();
        for subject in &raw.subjects {
            let taken_by =
                self.streams.iter().find(|other| other.subjects.iter().any(|taken| overlaps(taken, subject)));
            if !is_subject_filter(subject) {
                report.error("subjects", format!("'{subject}' is not a NATS subject"));
            } else if let Some(other) = taken_by {
                report.error("subjects", format!("'{subject}' overlaps a subject of stream {}", other.name));
            } else if subjects.iter().any(|other| overlaps(other, subject)) {
                report.error("subjects", format!("'{subject}' overlaps another subject of this stream"));
            } else {
                subjects.push(subject.as_str().into());
            }
        }
        if self.streams.iter().any(|stream| *stream.name == *raw.name) {
            return report.error("name", "this stream is declared twice");
        }
        match kind {
            Ok(kind) => self.streams.push(Stream { name: raw.name.into(), subjects, kind }),
            Err((field, reason)) => report.error(field, reason),
        }
    }

    fn finish(mut self) -> Result<Catalogue, Vec<CatalogueError>> {
        for (origin, raw) in std::mem::take(&mut self.raw_types) {
            self.add_type(&origin, raw);
        }
        for built_in in BUILT_IN {
            let reason = match self.types.get(built_in.name).map(|event_type| built_in.conforms(event_type)) {
                Some(Ok(())) => continue,
                Some(Err(error)) => format!("its Rust type does not fit the schema: {error}"),
                // Its own error is already there.
                None if !self.errors.is_empty() => continue,
                None => "has a Rust type, but no entry in the catalogue".to_owned(),
            };
            let field = format!("type[{}]", built_in.name);
            self.errors.push(CatalogueError { file: format!("schemas/{}.avsc", built_in.name), field, reason });
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        let Self { types, exchanges, topics, streams, .. } = self;
        Ok(Catalogue { types, exchanges, topics, streams })
    }

    fn add_type(&mut self, origin: &Origin, raw: RawType) {
        let mut errors = std::mem::take(&mut self.errors);
        let before = errors.len();
        let mut report = Report { file: &origin.file, entry: format!("type[{}]", raw.name), errors: &mut errors };
        check_name(&raw.name, &mut report);
        if let Some(first) = self.types.get(&*raw.name) {
            let built_in = BUILT_IN.iter().any(|built_in| built_in.name == &*first.name);
            let reason =
                if built_in { "is a built-in type; choose another name" } else { "this type is declared twice" };
            report.error("name", reason);
        }
        if !(1..=i32::MAX as u32).contains(&raw.version) {
            report.error("version", format!("must be 1 to {}", i32::MAX));
        }
        if raw.aggregate.is_empty() {
            report.error("aggregate", "must not be empty");
        }
        let order = match &*raw.order {
            "aggregate" => Some(Order::Aggregate),
            "none" => Some(Order::None),
            other => report.ok("order", Err(format!("'{other}' is not one of aggregate, none"))),
        };
        let audience = read_audience(&raw, &mut report);
        let ingest = read_ingest(&raw, &origin.source, &mut report);
        let schema = self.read_schema(origin, &raw, &mut report);
        if let Some(schema) = schema {
            let order = order.unwrap_or(Order::None);
            check_aggregate_id(&raw, audience, &schema, &mut report);
            let templates = self.read_routes(&raw, order, &schema, &mut report);
            let routes = Routes::new(&raw.aggregate_id, &templates);
            if report.errors.len() == before {
                let name: Arc<str> = raw.name.into();
                let event_type = EventType {
                    name: name.clone(),
                    version: raw.version,
                    aggregate: raw.aggregate.into(),
                    order,
                    audience,
                    socket_event: raw.socket_event.into(),
                    command: raw.command,
                    ingest,
                    aggregate_id_field: raw.aggregate_id.into(),
                    schema,
                    templates,
                    routes,
                };
                self.types.insert(name, Arc::new(event_type));
            }
        }
        self.errors = errors;
    }

    fn read_schema(&mut self, origin: &Origin, raw: &RawType, report: &mut Report<'_>) -> Option<TypeSchema> {
        let plain = Path::new(&raw.schema).file_name().and_then(|name| name.to_str()) == Some(&raw.schema);
        if !plain || !raw.schema.ends_with(".avsc") {
            report.error("schema", format!("'{}' must be the name of an .avsc file in the same directory", raw.schema));
            return None;
        }
        let text = report.ok("schema", origin.source.text(&raw.schema).map_err(|e| format!("{} {e}", raw.schema)))?;
        let file = origin.source.name(&raw.schema);
        let mut report = Report { file: &file, entry: report.entry.clone(), errors: report.errors };
        let schema = match TypeSchema::parse(&text) {
            Ok(schema) => schema,
            Err(flaws) => {
                flaws.into_iter().for_each(|(field, reason)| report.error(&field, reason));
                return None;
            }
        };
        if !self.records.insert(schema.full_name.clone()) {
            report.error("name", format!("the record {} belongs to another type", schema.full_name));
        }
        for (name, definition) in &schema.named {
            match self.named.get(name) {
                Some((first, other)) if other != definition => {
                    report.error(name, format!("is defined differently in {first}"));
                }
                Some(_) => {}
                None => drop(self.named.insert(name.clone(), (file.clone(), definition.clone()))),
            }
        }
        Some(schema)
    }

    fn read_routes(
        &self,
        raw: &RawType,
        order: Order,
        schema: &TypeSchema,
        report: &mut Report<'_>,
    ) -> Vec<RouteTemplate> {
        let mut routes = Vec::new();
        let literal = |text: &str| Template::parse(text);
        if let Some(rabbitmq) = &raw.rabbitmq {
            if !self.exchanges.iter().any(|exchange| *exchange.name == *rabbitmq.exchange) {
                report.error("rabbitmq.exchange", format!("no exchange '{}' is declared", rabbitmq.exchange));
            }
            if let Some(key) = report.ok("rabbitmq.key", literal(&rabbitmq.key)) {
                check_placeholders("rabbitmq.key", &key, schema, report);
                if let Ok(exchange) = literal(&rabbitmq.exchange) {
                    routes.push((Broker::Rabbitmq, exchange, key, rabbitmq.optional));
                }
            }
        }
        if let Some(kafka) = &raw.kafka {
            if !self.topics.iter().any(|topic| *topic.name == *kafka.topic) {
                report.error("kafka.topic", format!("no topic '{}' is declared", kafka.topic));
            }
            if order == Order::Aggregate && kafka.key != raw.aggregate_id {
                let reason = format!("must be {}, the aggregate's id: the type has order aggregate", raw.aggregate_id);
                report.error("kafka.key", reason);
            }
            match schema.payload_field(&kafka.key) {
                Some(Schema::String | Schema::Uuid(UuidSchema::String) | Schema::Enum(_)) => {}
                Some(_) => {
                    report.error("kafka.key", format!("'{}' must be a required string, uuid or enum", kafka.key))
                }
                None => report.error("kafka.key", format!("the payload has no field '{}'", kafka.key)),
            }
            if let Ok(topic) = literal(&kafka.topic) {
                routes.push((Broker::Kafka, topic, Template::field(&kafka.key), false));
            }
        }
        if let Some(nats) = &raw.nats
            && let Some(subject) = report.ok("nats.subject", literal(&nats.subject))
        {
            check_placeholders("nats.subject", &subject, schema, report);
            self.check_subject(&subject.subject_pattern(), report);
            routes.push((Broker::Nats, subject, Template::field(&raw.aggregate_id), false));
        }
        check_command(raw, report);
        if raw.rabbitmq.is_none() && raw.kafka.is_none() && raw.nats.is_none() {
            report.error("", "has no route: give it rabbitmq, kafka or nats");
        }
        routes
    }

    fn check_subject(&self, pattern: &str, report: &mut Report<'_>) {
        if !is_subject_filter(pattern) || pattern.contains('>') {
            return report.error("nats.subject", "is not a NATS subject");
        }
        let taking = |stream: &&Stream| stream.subjects.iter().any(|filter| overlaps(filter, pattern));
        let streams: Vec<_> = self.streams.iter().filter(taking).collect();
        match streams.as_slice() {
            [stream] if stream.subjects.iter().any(|filter| covers(filter, pattern)) => {}
            [] => report.error("nats.subject", format!("no stream takes '{pattern}'; add it to the subjects of one")),
            [stream] => {
                report.error("nats.subject", format!("stream {} takes only a part of '{pattern}'", stream.name));
            }
            several => {
                let names: Vec<_> = several.iter().map(|stream| &*stream.name).collect();
                report.error("nats.subject", format!("'{pattern}' must go to one stream, not to {}", names.join(", ")));
            }
        }
    }
}

fn read_as<T: DeserializeOwned>(value: toml::Value, report: &mut Report<'_>) -> Option<T> {
    let value = value.try_into().map_err(|e: toml::de::Error| e.to_string().trim_end().replace('\n', " "));
    report.ok("", value)
}
