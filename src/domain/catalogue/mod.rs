//! The catalogue: what types of event there are, where each goes and who sees it. Data, not code.
//!
//! The built-in types are the files of `schemas/`, compiled in; a deployment adds its own
//! with directories of the same layout. `docs/events.md` lists both the built-in types and
//! the keys of the files.

mod check;
mod conform;
mod file;
mod json;
mod load;
mod record;
mod route;
mod schema;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value;
use bytes::Bytes;

pub(in crate::domain) use conform::{BuiltIn, round_trip};
pub use route::Route;
pub use topology::{Exchange, ExchangeKind, Stream, StreamKind, Topic, covers, is_subject_filter, overlaps};

use super::event::Headers;
use super::payload::Payload;
use super::principal::Role;
use super::{Broker, EncodedPayload, Event};
use json::JsonForm;
use record::{Envelope, EnvelopeRef, Strict, avro_error};

/// Do events of one aggregate have to stay in sequence on their way?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Aggregate,
    None,
}

impl Order {
    pub fn as_str(self) -> &'static str {
        match self {
            Order::Aggregate => "aggregate",
            Order::None => "none",
        }
    }
}

/// Who sees events of a type in the browser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// The `job:` channel.
    pub job: bool,
    /// The owner's `user:` channel.
    pub user: bool,
    /// The `role:operator` room.
    pub operator: bool,
}

impl Audience {
    /// Nobody sees it.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// One type of event.
pub struct EventType {
    pub name: Arc<str>,
    /// Schema version, from 1.
    pub version: u32,
    /// Aggregate type, e.g. `job`.
    pub aggregate: Arc<str>,
    pub order: Order,
    pub audience: Audience,
    /// `job_update`, `telemetry_update`, ...: the Socket.IO event that carries it; empty
    /// for types without an audience.
    pub socket_event: Arc<str>,
    /// Asks for something (`*Requested`) instead of saying that it happened.
    pub command: bool,
    /// Roles that may post it to `/events`; empty: nobody.
    pub ingest: Vec<Role>,
    aggregate_id_field: Box<str>,
    schema: schema::TypeSchema,
    templates: Vec<route::RouteTemplate>,
    routes: route::Routes,
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventType({} v{})", self.name, self.version)
    }
}

/// Every type this gateway knows, and what the brokers must have for their routes.
#[derive(Debug)]
pub struct Catalogue {
    types: BTreeMap<Arc<str>, Arc<EventType>>,
    exchanges: Vec<Exchange>,
    topics: Vec<Topic>,
    streams: Vec<Stream>,
}

/// A contradiction in the catalogue.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {field}: {reason}")]
pub struct CatalogueError {
    pub file: String,
    pub field: String,
    pub reason: String,
}

/// A payload that does not fit its schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PayloadError {
    /// Dotted, e.g. `resource_request.num_nodes`; `payload` or `record` for the whole.
    pub field: String,
    pub reason: String,
}

impl Catalogue {
    /// The built-in types and those of `dirs`, checked; every contradiction is reported.
    pub fn load(dirs: &[PathBuf]) -> Result<Arc<Catalogue>, Vec<CatalogueError>> {
        load::load(dirs).map(Arc::new)
    }

    pub fn get(&self, name: &str) -> Option<&Arc<EventType>> {
        self.types.get(name)
    }

    /// All types, sorted by name.
    pub fn types(&self) -> impl Iterator<Item = &Arc<EventType>> {
        self.types.values()
    }

    /// The RabbitMQ exchanges that routes name.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// The Kafka topics that routes name.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// The JetStream streams that take the subjects of routes.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// The stream that takes a subject.
    pub fn stream_of(&self, subject: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.covers(subject))
    }

    /// The log in which `broker` keeps an event: its exchange, topic, or the stream of its subject.
    pub fn log_of(&self, event: &Event, broker: Broker) -> Option<Arc<str>> {
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let target = routes.into_iter().find(|route| route.broker == broker)?.target;
        match broker {
            Broker::Rabbitmq | Broker::Kafka => Some(target),
            Broker::Nats => self.stream_of(&target).map(|stream| stream.name.clone()),
        }
    }
}

impl EventType {
    /// Where events of this type go, one route a broker. The payload is only looked at when
    /// a route has a placeholder that is not the aggregate's id.
    pub fn routes(&self, aggregate_id: &Arc<str>, payload_json: &[u8]) -> Vec<Route> {
        self.routes.of(aggregate_id, payload_json)
    }

    /// The brokers that events of this type go to.
    pub fn brokers(&self) -> &[Broker] {
        self.routes.brokers()
    }

    /// The routes as the catalogue has them, with their placeholders: broker, target, key.
    pub fn route_templates(&self) -> impl Iterator<Item = (Broker, String, String)> {
        self.templates.iter().map(|(broker, target, key, _)| (*broker, target.to_string(), key.to_string()))
    }

    /// The text of the Avro schema of the whole record, as a registry gets it.
    pub fn schema_text(&self) -> &Arc<str> {
        &self.schema.text
    }

    /// The full name of the record, e.g. `com.cosmic_horizons.events.JobSubmitted`.
    pub fn record_name(&self) -> &str {
        &self.schema.full_name
    }

    /// The schema of the payload, with named types repeated where they are used.
    pub fn payload_schema(&self) -> &Schema {
        &self.schema.payload
    }

    /// The payload field that identifies the aggregate.
    pub fn aggregate_id_field(&self) -> &str {
        &self.aggregate_id_field
    }

    /// The aggregate that a checked JSON payload belongs to.
    pub fn aggregate_id(&self, payload_json: &[u8]) -> Result<Arc<str>, PayloadError> {
        match route::look_up(std::slice::from_ref(&self.aggregate_id_field), payload_json).pop() {
            Some(Some(id)) => Ok(id.into()),
            _ => Err(PayloadError { field: self.aggregate_id_field.to_string(), reason: "is missing".to_owned() }),
        }
    }

    /// Encodes a typed payload, as JSON and as Avro.
    pub fn encode<T: Payload>(&self, payload: &T) -> Result<EncodedPayload, PayloadError> {
        self.expect_type(T::TYPE)?;
        let json = serde_json::to_vec(payload).map_err(|e| payload_error(e.to_string()))?;
        let mut avro = FiniteCheck { bytes: Vec::with_capacity(256), suspicious: false };
        record::write(&self.schema.payload, payload, &mut avro).map_err(|e| avro_error("payload", &e))?;
        if avro.suspicious {
            self.payload_json(Strict::new(&avro.bytes))?;
        }
        Ok(EncodedPayload { json: json.into(), avro: Some(avro.bytes.into()) })
    }

    /// Encodes a payload that is already JSON, checking it against the schema. The JSON of
    /// the result is its one canonical form: the schema's field order, absent optional
    /// fields as null, times in UTC with milliseconds, UUIDs in lower case.
    ///
    /// Answers the first violation; [`violations`](Self::violations) has all of them.
    pub fn encode_json(&self, json: Bytes) -> Result<EncodedPayload, PayloadError> {
        let value = self.check_json(&json).map_err(|mut violations| violations.swap_remove(0))?;
        let avro = self.write_value(&value)?;
        let json = serde_json::to_vec(&JsonForm::payload(&self.schema.payload, &value)).map_err(form_error)?;
        Ok(EncodedPayload { json: json.into(), avro: Some(avro) })
    }

    /// Every way in which a JSON payload does not fit the schema.
    pub fn violations(&self, json: &[u8]) -> Vec<PayloadError> {
        self.check_json(json).err().unwrap_or_default()
    }

    /// The whole record (envelope fields, then payload) as Avro binary, without wire prefix.
    pub fn encode_record(&self, event: &Event) -> Result<Bytes, PayloadError> {
        let mut out = Vec::new();
        self.write_record(event, &mut out)?;
        Ok(out.into())
    }

    /// Appends the whole record; on an error `out` has some of it.
    pub fn write_record(&self, event: &Event, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        let encoded;
        let payload = match &event.payload.avro {
            Some(avro) => avro,
            None => {
                let value = self.check_json(&event.payload.json).map_err(|mut all| all.swap_remove(0))?;
                encoded = self.write_value(&value)?;
                &encoded
            }
        };
        out.reserve(320 + payload.len());
        record::write(&self.schema.envelope, &EnvelopeRef::of(event), out).map_err(|e| avro_error("envelope", &e))?;
        out.extend_from_slice(payload);
        Ok(())
    }

    /// A whole record that another version of this type's schema has written, as this
    /// version would have written it: defaults filled in, `schema_version` ours.
    pub fn resolve_record(&self, writer: &Schema, record: &[u8]) -> Result<Bytes, PayloadError> {
        let mut bytes = Strict::new(record);
        let mut value = bytes.resolve(writer, &self.schema.whole)?;
        bytes.end()?;
        if let Value::Record(fields) = &mut value
            && let Some((_, version)) = fields.iter_mut().find(|(name, _)| name == "schema_version")
        {
            *version = Value::Int(self.version as i32);
        }
        record::write_value(&self.schema.whole, &value).map(Bytes::from).map_err(|e| avro_error("record", &e))
    }

    /// Reads a whole record: the envelope, and the payload in its JSON form.
    pub fn decode_record(&self, record: &[u8]) -> Result<(Headers, serde_json::Value), PayloadError> {
        let mut bytes = Strict::new(record);
        let headers = self.read_envelope(&mut bytes)?;
        let value = bytes.read_value(&self.schema.payload)?;
        bytes.end()?;
        let json = serde_json::to_value(JsonForm::payload(&self.schema.payload, &value)).map_err(form_error)?;
        Ok((headers, json))
    }

    /// Reads the typed payload of a whole record.
    pub fn decode_payload<T: Payload>(&self, record: &[u8]) -> Result<T, PayloadError> {
        self.expect_type(T::TYPE)?;
        let mut bytes = Strict::new(record);
        self.read_envelope(&mut bytes)?;
        self.read_payload(bytes)
    }

    /// Reads a typed payload from its JSON.
    pub fn json_to_payload<T: Payload>(&self, json: &[u8]) -> Result<T, PayloadError> {
        self.expect_type(T::TYPE)?;
        serde_json::from_slice(json).map_err(|_| {
            // Once more with the schema, which says more, then with the type, to name the field.
            self.violations(json).into_iter().next().unwrap_or_else(|| typed_error::<T>(json))
        })
    }

    fn read_envelope(&self, bytes: &mut Strict<'_>) -> Result<Headers, PayloadError> {
        let envelope: Envelope = bytes.read(&self.schema.envelope)?;
        self.expect_type(&envelope.event_type)?;
        if envelope.schema_version.0 != self.version {
            return Err(PayloadError {
                field: "schema_version".to_owned(),
                reason: format!(
                    "the record was written with version {} of {}, this gateway knows version {}",
                    envelope.schema_version.0, self.name, self.version
                ),
            });
        }
        Ok(envelope.into_headers())
    }

    fn read_payload<T: Payload>(&self, mut bytes: Strict<'_>) -> Result<T, PayloadError> {
        let start = bytes;
        let read = bytes.read(&self.schema.payload).and_then(|payload| bytes.end().map(|()| payload));
        // The Avro reader does not say which field is wrong; the way through JSON does.
        read.map_err(|error| match self.payload_json(start).map(|json| self.json_to_payload::<T>(&json)) {
            Ok(Err(named)) => named,
            _ => error,
        })
    }

    fn payload_json(&self, mut bytes: Strict<'_>) -> Result<Vec<u8>, PayloadError> {
        let value = bytes.read_value(&self.schema.payload)?;
        bytes.end()?;
        serde_json::to_vec(&JsonForm::payload(&self.schema.payload, &value)).map_err(form_error)
    }

    fn check_json(&self, json: &[u8]) -> Result<Value, Vec<PayloadError>> {
        let json = serde_json::from_slice(json).map_err(|e| vec![payload_error(format!("is not JSON: {e}"))])?;
        let mut errors = Vec::new();
        let value = json::to_avro(&self.schema.payload, &json, json::Path::Root, &mut errors);
        if errors.is_empty() { Ok(value) } else { Err(errors) }
    }

    fn write_value(&self, value: &Value) -> Result<Bytes, PayloadError> {
        record::write_value(&self.schema.payload, value).map(Bytes::from).map_err(|e| avro_error("payload", &e))
    }

    fn expect_type(&self, name: &str) -> Result<(), PayloadError> {
        if name == &*self.name {
            return Ok(());
        }
        Err(PayloadError { field: "event_type".to_owned(), reason: format!("is {name}, not {}", self.name) })
    }
}

fn payload_error(reason: String) -> PayloadError {
    PayloadError { field: "payload".to_owned(), reason }
}

/// Which field of a JSON payload `T` does not take.
fn typed_error<T: Payload>(json: &[u8]) -> PayloadError {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Ok(_) => payload_error("has something after its end".to_owned()),
        Err(error) => {
            let path = error.path().to_string();
            let reason = error.inner().to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            PayloadError { field: if path == "." { "payload".to_owned() } else { path }, reason }
        }
    }
}

/// [`JsonForm`] says `field: reason`.
fn form_error(error: serde_json::Error) -> PayloadError {
    let text = error.to_string();
    let (field, reason) = text.split_once(": ").unwrap_or(("payload", &text));
    PayloadError { field: field.to_owned(), reason: reason.to_owned() }
}

/// Collects Avro bytes and notices doubles without a JSON form (NaN, infinities): serde_json
/// writes them as `null` without a word, and whoever reads that payload would fail.
///
/// The Avro writer hands over a double as one write of 8 bytes. No UTF-8 text of 8 bytes ends
/// in the exponent of such a double; a few huge integers do, so a hit is only a suspicion.
struct FiniteCheck {
    bytes: Vec<u8>,
    suspicious: bool,
}

impl std::io::Write for FiniteCheck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Ok(double) = bytes.try_into().map(f64::from_le_bytes) {
            self.suspicious |= !double.is_finite();
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
