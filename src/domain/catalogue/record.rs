//! Whole records, envelope and payload, as Avro binary without a wire prefix.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

use super::PayloadError;
use super::schema::no_names;
use crate::domain::event::Headers;
use crate::domain::{Channel, Event, Id, Timestamp};

/// The envelope in the order of the schemas.
#[derive(Serialize)]
pub(super) struct EnvelopeRef<'a> {
    event_id: Id,
    event_type: &'a str,
    occurred_at: Timestamp,
    correlation_id: Id,
    causation_id: Option<Id>,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    sequence: i64,
    user_id: &'a str,
    schema_version: i32,
    tags: &'a [String],
    offsets: Offsets,
}

/// Channels and offsets, written as a map.
struct Offsets(Vec<(Channel, i64)>);

impl Serialize for Offsets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(channel, offset)| (channel.to_string(), offset)))
    }
}

impl<'a> EnvelopeRef<'a> {
    pub(super) fn of(event: &'a Event) -> Self {
        Self {
            event_id: event.event_id,
            event_type: &event.event_type.name,
            occurred_at: event.occurred_at,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            aggregate_type: &event.event_type.aggregate,
            aggregate_id: &event.aggregate_id,
            sequence: event.sequence,
            user_id: &event.user_id,
            schema_version: event.event_type.version as i32,
            tags: &event.tags,
            offsets: Offsets(event.offsets()),
        }
    }
}

/// The envelope as read.
#[derive(Deserialize)]
pub(super) struct Envelope {
    event_id: Id,
    pub event_type: Arc<str>,
    occurred_at: Timestamp,
    correlation_id: Id,
    causation_id: Option<Id>,
    aggregate_type: Arc<str>,
    aggregate_id: Arc<str>,
    sequence: i64,
    user_id: Arc<str>,
    pub schema_version: SchemaVersion,
    tags: Vec<String>,
    offsets: BTreeMap<String, i64>,
}

/// An Avro int that is a version.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "i32")]
pub(super) struct SchemaVersion(pub u32);

impl TryFrom<i32> for SchemaVersion {
    type Error = String;

    fn try_from(value: i32) -> Result<Self, String> {
        u32::try_from(value).map(Self).map_err(|_| format!("{value} is no schema version"))
    }
}

impl Envelope {
    /// `traceparent` travels beside the record, not in it.
    pub(super) fn into_headers(self) -> Headers {
        let user_offset = self.offsets.get(&format!("user:{}", self.user_id)).copied();
        Headers {
            event_id: self.event_id,
            event_type: self.event_type,
            aggregate_type: self.aggregate_type,
            aggregate_id: self.aggregate_id,
            sequence: self.sequence,
            user_id: self.user_id,
            occurred_at: self.occurred_at,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            schema_version: self.schema_version.0,
            tags: self.tags,
            user_offset,
            traceparent: None,
        }
    }
}

/// Appends the Avro form of `value`.
pub(super) fn write(
    schema: &Schema,
    value: &impl Serialize,
    out: &mut impl io::Write,
) -> Result<(), apache_avro::Error> {
    let writer = GenericDatumWriter::builder(schema).resolved_schemata(no_names()).human_readable(false).build()?;
    writer.write_ser(out, value).map(drop)
}

/// The Avro form of a value that was made for this schema.
pub(super) fn write_value(schema: &Schema, value: &Value) -> Result<Vec<u8>, apache_avro::Error> {
    let writer = GenericDatumWriter::builder(schema)
        .resolved_schemata(no_names())
        .validate(false)
        .human_readable(false)
        .build()?;
    let mut out = Vec::with_capacity(256);
    writer.write_value_ref(&mut out, value)?;
    Ok(out)
}

/// Bytes that remember whether more of them was asked for than there are: the Avro reader
/// takes the end of its input for an empty string or an absent optional field.
#[derive(Clone, Copy)]
pub(super) struct Strict<'a> {
    rest: &'a [u8],
    cut_short: bool,
}

impl<'a> Strict<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, cut_short: false }
    }

    pub(super) fn read<T: DeserializeOwned>(&mut self, schema: &Schema) -> Result<T, PayloadError> {
        let value = reader(schema).and_then(|reader| reader.read_deser(self));
        self.settle(value)
    }

    pub(super) fn read_value(&mut self, schema: &Schema) -> Result<Value, PayloadError> {
        let value = reader(schema).and_then(|reader| reader.read_value(self));
        self.settle(value)
    }

    /// Reads what `writer` has written as `schema`, which has its named types inlined.
    pub(super) fn resolve(&mut self, writer: &Schema, schema: &Schema) -> Result<Value, PayloadError> {
        let reader = GenericDatumReader::builder(writer)
            .reader_schema(schema)
            .resolved_reader_schemata(no_names())
            .human_readable(false)
            .build();
        let value = reader.and_then(|reader| reader.read_value(self));
        self.settle(value)
    }

    /// Everything must have been read.
    pub(super) fn end(&self) -> Result<(), PayloadError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(record_error(format!("{} bytes are left over after its last field", self.rest.len())))
    }

    fn settle<T>(&self, value: Result<T, apache_avro::Error>) -> Result<T, PayloadError> {
        if self.cut_short {
            return Err(record_error("is cut short".to_owned()));
        }
        value.map_err(|error| avro_error("record", &error))
    }
}

impl Read for Strict<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cut_short |= self.rest.len() < buffer.len();
        self.rest.read(buffer)
    }
}

fn reader(schema: &Schema) -> Result<GenericDatumReader<'_>, apache_avro::Error> {
    GenericDatumReader::builder(schema).resolved_writer_schemata(no_names()).human_readable(false).build()
}

fn record_error(reason: String) -> PayloadError {
    PayloadError { field: "record".to_owned(), reason }
}

/// The library's errors, without the dumps of whole schemas in them.
pub(super) fn avro_error(field: &str, error: &apache_avro::Error) -> PayloadError {
    use apache_avro::error::Details;
    let (field, reason) = match error.details() {
        Details::SerializeRecordFieldWithSchema { field_name, error, .. } => (field_name.as_str(), error.clone()),
        Details::SerializeValueWithSchema { value_type, value, .. } => (field, format!("{value_type}: {value}")),
        Details::DeserializeSchemaAware { value_type, value, .. } => (field, format!("{value_type}: {value}")),
        Details::MissingDefaultForSkippedField { field_name, .. } => (field_name.as_str(), "is missing".to_owned()),
        Details::GetField(name) | Details::FieldName(name) => (name.as_str(), "is not in the schema".to_owned()),
        _ => (field, error.to_string()),
    };
    PayloadError { field: field.to_owned(), reason: reason.chars().take(300).collect() }
}
