//! Payloads between JSON and Avro: every violation found, named by its dotted field.

use std::fmt;

use apache_avro::Schema;
use apache_avro::schema::{RecordSchema, UuidSchema};
use apache_avro::types::Value;
use serde::Serialize;
use serde::ser::{Error as _, SerializeMap, Serializer};
use serde_json::Value as Json;
use uuid::Uuid;

use super::PayloadError;
use super::schema::optional;
use crate::domain::Timestamp;

/// Where in a payload something is; printed as `metrics.cpu` or `items[2].name`.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => f.write_str("payload"),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// The Avro form of `json`. Violations are added to `errors`; the value means nothing then.
pub(super) fn to_avro(schema: &Schema, json: &Json, path: Path<'_>, errors: &mut Vec<PayloadError>) -> Value {
    let mut fail = |reason: String| {
        errors.push(PayloadError { field: path.to_string(), reason });
        Value::Null
    };
    match (schema, json) {
        (Schema::Record(record), Json::Object(object)) => record_to_avro(record, object, path, errors),
        (Schema::Array(array), Json::Array(items)) => Value::Array(
            items
                .iter()
                .enumerate()
                .map(|(i, item)| to_avro(&array.items, item, Path::Item(&path, i), errors))
                .collect(),
        ),
        (Schema::Map(map), Json::Object(object)) => Value::Map(
            object
                .iter()
                .map(|(key, value)| (key.clone(), to_avro(&map.types, value, Path::Field(&path, key), errors)))
                .collect(),
        ),
        (Schema::Union(union), json) => match (optional(union), json) {
            (Some(_), Json::Null) => Value::Union(0, Box::new(Value::Null)),
            (Some(inner), json) => Value::Union(1, Box::new(to_avro(inner, json, path, errors))),
            (None, _) => fail("has a type without a JSON form".to_owned()),
        },
        (Schema::Boolean, Json::Bool(value)) => Value::Boolean(*value),
        (Schema::Int, json) => match json.as_i64().map(i32::try_from) {
            Some(Ok(value)) => Value::Int(value),
            _ => fail(expected("a whole number of 32 bits", json)),
        },
        (Schema::Long, json) => match json.as_i64() {
            Some(value) => Value::Long(value),
            None => fail(expected("a whole number of 64 bits", json)),
        },
        (Schema::Double, Json::Number(number)) => match number.as_f64().filter(|value| value.is_finite()) {
            Some(value) => Value::Double(value),
            None => fail(expected("a number", json)),
        },
        (Schema::String, Json::String(text)) => Value::String(text.clone()),
        (Schema::Uuid(UuidSchema::String), Json::String(text)) => match Uuid::try_parse(text) {
            Ok(value) => Value::Uuid(value),
            Err(_) => fail(expected("a UUID", json)),
        },
        (Schema::TimestampMillis, Json::String(text)) => match Timestamp::parse(text) {
            Ok(time) => Value::TimestampMillis(time.0),
            Err(_) => fail(expected("an RFC 3339 time such as 2026-11-21T09:30:00.000Z", json)),
        },
        (Schema::Enum(symbols), Json::String(text)) => match symbols.symbols.iter().position(|symbol| symbol == text) {
            Some(index) => Value::Enum(index as u32, text.clone()),
            None => fail(expected(&format!("one of {}", known_symbols(symbols).join(", ")), json)),
        },
        (schema, json) => fail(expected(wanted(schema), json)),
    }
}

fn record_to_avro(
    record: &RecordSchema,
    object: &serde_json::Map<String, Json>,
    path: Path<'_>,
    errors: &mut Vec<PayloadError>,
) -> Value {
    for name in object.keys().filter(|name| !record.lookup.contains_key(*name)) {
        let known: Vec<_> = record.fields.iter().map(|field| &*field.name).collect();
        errors.push(PayloadError {
            field: Path::Field(&path, name).to_string(),
            reason: format!("is not in the schema, which has {}", known.join(", ")),
        });
    }
    let fields = record.fields.iter().map(|field| {
        let path = Path::Field(&path, &field.name);
        let value = match object.get(&field.name).or(field.default.as_ref()) {
            Some(json) => to_avro(&field.schema, json, path, errors),
            None => {
                errors.push(PayloadError { field: path.to_string(), reason: "is missing".to_owned() });
                Value::Null
            }
        };
        (field.name.clone(), value)
    });
    Value::Record(fields.collect())
}

/// The symbols somebody may mean: all but the default, which is for readers.
pub(super) fn known_symbols(symbols: &apache_avro::schema::EnumSchema) -> Vec<&str> {
    symbols
        .symbols
        .iter()
        .map(|symbol| &**symbol)
        .filter(|symbol| Some(*symbol) != symbols.default.as_deref())
        .collect()
}

fn wanted(schema: &Schema) -> &'static str {
    match schema {
        Schema::Record(_) | Schema::Map(_) => "an object",
        Schema::Array(_) => "an array",
        Schema::Boolean => "true or false",
        Schema::Double => "a number",
        Schema::Uuid(_) => "a UUID",
        Schema::TimestampMillis => "an RFC 3339 time",
        _ => "text",
    }
}

fn expected(what: &str, got: &Json) -> String {
    let got = match got {
        Json::Object(_) => "an object".to_owned(),
        Json::Array(_) => "an array".to_owned(),
        Json::String(text) if text.chars().count() > 60 => {
            format!("\"{}...\"", text.chars().take(60).collect::<String>())
        }
        other => other.to_string(),
    };
    format!("must be {what}, not {got}")
}

/// The JSON form of an Avro value: fields in the schema's order, maps sorted by key.
pub(super) struct JsonForm<'a> {
    pub schema: &'a Schema,
    pub value: &'a Value,
    pub path: Path<'a>,
}

impl<'a> JsonForm<'a> {
    pub(super) fn payload(schema: &'a Schema, value: &'a Value) -> Self {
        Self { schema, value, path: Path::Root }
    }

    fn inner(&self, schema: &'a Schema, value: &'a Value) -> Self {
        Self { schema, value, path: self.path }
    }
}

impl Serialize for JsonForm<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fail = |reason: &str| Err(S::Error::custom(format!("{}: {reason}", self.path)));
        match (self.schema, self.value) {
            (Schema::Record(record), Value::Record(fields)) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (field, (_, value)) in record.fields.iter().zip(fields) {
                    let path = Path::Field(&self.path, &field.name);
                    map.serialize_entry(&field.name, &JsonForm { schema: &field.schema, value, path })?;
                }
                map.end()
            }
            (Schema::Array(array), Value::Array(items)) => {
                serializer.collect_seq(items.iter().map(|item| self.inner(&array.items, item)))
            }
            (Schema::Map(map), Value::Map(entries)) => {
                let mut entries: Vec<_> = entries.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| *key);
                serializer.collect_map(entries.into_iter().map(|(key, value)| (key, self.inner(&map.types, value))))
            }
            (Schema::Union(_), Value::Union(0, _)) => serializer.serialize_unit(),
            (Schema::Union(union), Value::Union(_, value)) => match optional(union) {
                Some(inner) => self.inner(inner, value).serialize(serializer),
                None => fail("has a type without a JSON form"),
            },
            (_, Value::Boolean(value)) => serializer.serialize_bool(*value),
            (_, Value::Int(value)) => serializer.serialize_i32(*value),
            (_, Value::Long(value)) => serializer.serialize_i64(*value),
            (_, Value::Double(value)) if value.is_finite() => serializer.serialize_f64(*value),
            (_, Value::Double(value)) => fail(&format!("{value} has no JSON form")),
            (_, Value::String(text) | Value::Enum(_, text)) => serializer.serialize_str(text),
            (_, Value::Uuid(value)) => value.as_hyphenated().serialize(serializer),
            (_, Value::TimestampMillis(ms)) => Timestamp(*ms).serialize(serializer),
            (schema, value) => fail(&format!("{value:?} does not fit {}", super::schema::describe(schema))),
        }
    }
}
