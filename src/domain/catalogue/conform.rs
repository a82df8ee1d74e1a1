//! The start-up check of the Rust payload types against their schemas, and the sample
//! payloads it is made with.

use apache_avro::Schema;
use serde_json::{Value as Json, json};

use super::json::known_symbols;
use super::record::Strict;
use super::schema::optional;
use super::{EventType, PayloadError};
use crate::domain::Timestamp;
use crate::domain::payload::Payload;

/// A built-in type: its schema and the check of its Rust type.
pub(in crate::domain) struct BuiltIn {
    pub name: &'static str,
    pub schema: &'static str,
    /// Sends one JSON payload through the Rust type.
    pub round_trip: fn(&EventType, &Json) -> Result<(), PayloadError>,
}

impl BuiltIn {
    /// Does the Rust type have exactly the fields of the type's schema, in its order, and
    /// survive the way through Avro and JSON? Tried with values that together hold every
    /// symbol of every enum, and every optional field set and unset.
    pub(super) fn conforms(&self, event_type: &EventType) -> Result<(), PayloadError> {
        samples(event_type.payload_schema()).try_for_each(|sample| (self.round_trip)(event_type, &sample))
    }
}

/// JSON -> canonical JSON -> `T` -> Avro -> JSON and `T` again: nothing may change.
pub(in crate::domain) fn round_trip<T: Payload>(event_type: &EventType, sample: &Json) -> Result<(), PayloadError> {
    let wanted = event_type.encode_json(sample.to_string().into())?;
    let typed: T = event_type.json_to_payload(&wanted.json)?;
    let encoded = event_type.encode(&typed)?;
    same("its JSON", &wanted.json, &encoded.json)?;

    let avro = encoded.avro.unwrap_or_default();
    let json = event_type.payload_json(Strict::new(&avro))?;
    same("its Avro form, read as JSON,", &wanted.json, &json)?;
    let read: T = event_type.read_payload(Strict::new(&avro))?;
    same("its Avro form, read as the Rust type,", &wanted.json, &event_type.encode(&read)?.json)?;

    let id = event_type.aggregate_id(&wanted.json)?;
    if *typed.aggregate_id() != *id {
        let reason =
            format!("the Rust type identifies its aggregate as '{}', the catalogue as '{id}'", typed.aggregate_id());
        return Err(PayloadError { field: "aggregate_id".to_owned(), reason });
    }
    Ok(())
}

fn same(what: &str, wanted: &[u8], got: &[u8]) -> Result<(), PayloadError> {
    if wanted == got {
        return Ok(());
    }
    let (wanted, got) = (String::from_utf8_lossy(wanted), String::from_utf8_lossy(got));
    let reason =
        format!("the Rust type and the schema disagree (fields, their order or values): {what} is {got}, not {wanted}");
    Err(PayloadError { field: "payload".to_owned(), reason })
}

/// Payloads that fit `schema`: enough of them that every enum symbol (but the default)
/// occurs, and every optional field with and without a value.
pub fn samples(schema: &Schema) -> impl Iterator<Item = Json> {
    (0..2 * most_symbols(schema).max(1)).map(|n| sample(schema, n))
}

/// Sample number `n`; odd ones have no optional fields.
fn sample(schema: &Schema, n: usize) -> Json {
    match schema {
        Schema::Boolean => json!(n.is_multiple_of(2)),
        Schema::Int | Schema::Long => json!(n + 1),
        Schema::Double => json!(n as f64 + 0.5),
        Schema::String => json!(format!("text {n}")),
        Schema::Uuid(_) => json!(format!("019a0000-0000-7000-8000-{n:012}")),
        Schema::TimestampMillis => json!(Timestamp(1_795_253_400_000 + n as i64).to_string()),
        Schema::Enum(symbols) => {
            let known = known_symbols(symbols);
            json!(known.get((n / 2) % known.len().max(1)))
        }
        Schema::Array(array) => Json::Array((0..n % 3).map(|i| sample(&array.items, n + 2 * i)).collect()),
        Schema::Map(map) => (0..n % 3).map(|i| (format!("key {i}"), sample(&map.types, n + 2 * i))).collect(),
        Schema::Record(record) => {
            record.fields.iter().map(|field| (field.name.clone(), sample(&field.schema, n))).collect()
        }
        Schema::Union(union) => match optional(union) {
            Some(inner) if n.is_multiple_of(2) => sample(inner, n),
            _ => Json::Null,
        },
        _ => Json::Null,
    }
}

fn most_symbols(schema: &Schema) -> usize {
    match schema {
        Schema::Enum(symbols) => known_symbols(symbols).len(),
        Schema::Array(array) => most_symbols(&array.items),
        Schema::Map(map) => most_symbols(&map.types),
        Schema::Record(record) => record.fields.iter().map(|field| most_symbols(&field.schema)).max().unwrap_or(1),
        Schema::Union(union) => optional(union).map_or(1, most_symbols),
        _ => 1,
    }
}
