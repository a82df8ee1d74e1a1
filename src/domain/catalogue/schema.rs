//! The Avro schema of one type: parsed, references resolved, split into envelope and payload.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use apache_avro::Schema;
use apache_avro::schema::{ArraySchema, MapSchema, RecordSchema, ResolvedSchema, UnionSchema, UuidSchema};

use super::json::{Path, to_avro};

/// The schema of one type. Its named types are repeated wherever they are used, so that
/// encoding needs no table of names.
#[derive(Debug)]
pub(super) struct TypeSchema {
    /// The file's text, as a registry gets it.
    pub text: Arc<str>,
    /// Envelope fields and payload, as one record.
    pub whole: Schema,
    /// The fields before `payload`, as a record.
    pub envelope: Schema,
    pub payload: Schema,
    pub full_name: String,
    /// Every named type in it.
    pub named: BTreeMap<String, Schema>,
}

/// The envelope's fields, in order: the same for all types.
static ENVELOPE: LazyLock<RecordSchema> = LazyLock::new(|| {
    const TEXT: &str = r#"{"type": "record", "name": "Envelope", "fields": [
        {"name": "event_id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "event_type", "type": "string"},
        {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "correlation_id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "causation_id", "type": ["null", {"type": "string", "logicalType": "uuid"}], "default": null},
        {"name": "aggregate_type", "type": "string"},
        {"name": "aggregate_id", "type": "string"},
        {"name": "sequence", "type": "long"},
        {"name": "user_id", "type": "string"},
        {"name": "schema_version", "type": "int"},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "offsets", "type": {"type": "map", "values": "long"}, "default": {}}
    ]}"#;
    match Schema::parse_str(TEXT) {
        Ok(Schema::Record(record)) => record,
        other => unreachable!("the envelope above is a record, not {other:?}"),
    }
});

/// A contradiction within a schema: the field and what is wrong with it.
pub(super) type Flaw = (String, String);

impl TypeSchema {
    /// Reads and checks a schema; all that is wrong with it is reported.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Flaw>> {
        let one = |reason: String| vec![("schema".to_owned(), reason)];
        let parsed = Schema::parse_str(text).map_err(|e| one(format!("is not an Avro schema: {e}")))?;
        let mut named = BTreeMap::new();
        let whole = inline(&parsed, &mut named).map_err(one)?;
        let Schema::Record(mut record) = whole.clone() else {
            return Err(one("must be a record: the envelope's fields, then payload".to_owned()));
        };

        let mut flaws = envelope_flaws(&record);
        match record.fields.last().map(|field| (&*field.name, &field.schema)) {
            Some(("payload", Schema::Record(payload))) => payload_flaws(payload, "payload", &mut flaws),
            Some(("payload", _)) => flaws.push(("payload".to_owned(), "must be a record".to_owned())),
            _ => flaws.push(("payload".to_owned(), "must be the last field".to_owned())),
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }

        let mut payload = record.fields.pop().map(|field| field.schema).unwrap_or(Schema::Null);
        record.lookup.remove("payload");
        let full_name = record.name.fullname(None);
        // The reader wants a record to have its Rust struct's name. Here, each half goes by
        // the name of its struct: a payload's is that of the whole record.
        if let Schema::Record(payload) = &mut payload {
            payload.name = std::mem::replace(&mut record.name, ENVELOPE.name.clone());
        }
        Ok(Self { text: text.into(), full_name, whole, envelope: Schema::Record(record), payload, named })
    }

    /// The payload's own fields.
    pub(super) fn payload_record(&self) -> &RecordSchema {
        match &self.payload {
            Schema::Record(record) => record,
            other => unreachable!("parse refuses a payload that is {other:?}"),
        }
    }

    /// The schema of a top-level payload field.
    pub(super) fn payload_field(&self, name: &str) -> Option<&Schema> {
        let record = self.payload_record();
        record.lookup.get(name).map(|position| &record.fields[*position].schema)
    }
}

/// No names to resolve: every schema here is inlined.
pub(super) fn no_names() -> ResolvedSchema<'static> {
    ResolvedSchema::new_with_schemata(Vec::new()).expect("nothing to resolve")
}

/// What an optional field holds when it is there: the `T` of `["null", T]`.
pub(super) fn optional(union: &UnionSchema) -> Option<&Schema> {
    match union.variants() {
        [Schema::Null, inner] => Some(inner),
        _ => None,
    }
}

fn inline(schema: &Schema, named: &mut BTreeMap<String, Schema>) -> Result<Schema, String> {
    let full_name = schema.name().map(|name| name.fullname(None));
    let inlined = match schema {
        Schema::Ref { name } => {
            let name = name.fullname(None);
            return named.get(&name).cloned().ok_or_else(|| {
                format!("'{name}' is used inside its own definition; types that contain themselves are not supported")
            });
        }
        Schema::Array(array) => {
            Schema::Array(ArraySchema { items: Box::new(inline(&array.items, named)?), ..array.clone() })
        }
        Schema::Map(map) => Schema::Map(MapSchema { types: Box::new(inline(&map.types, named)?), ..map.clone() }),
        Schema::Union(union) => {
            let variants = union.variants().iter().map(|variant| inline(variant, named)).collect::<Result<_, _>>()?;
            Schema::Union(UnionSchema::new(variants).map_err(|e| e.to_string())?)
        }
        Schema::Record(record) => {
            let mut record = record.clone();
            for field in &mut record.fields {
                field.schema = inline(&field.schema, named)?;
            }
            Schema::Record(record)
        }
        leaf => leaf.clone(),
    };
    if let Some(name) = full_name {
        named.insert(name, inlined.clone());
    }
    Ok(inlined)
}

fn envelope_flaws(record: &RecordSchema) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    for (position, wanted) in ENVELOPE.fields.iter().enumerate() {
        let flaw = match record.fields.get(position) {
            Some(found) if found.name == wanted.name => {
                if found.schema != wanted.schema {
                    format!("must be {}", describe(&wanted.schema))
                } else if found.default != wanted.default {
                    match &wanted.default {
                        Some(default) => format!("must have the default {default}"),
                        None => "must have no default".to_owned(),
                    }
                } else {
                    continue;
                }
            }
            Some(found) => format!("envelope field number {} must be this one, not '{}'", position + 1, found.name),
            None => "this envelope field is missing".to_owned(),
        };
        flaws.push((wanted.name.clone(), flaw));
    }
    for extra in record.fields.iter().skip(ENVELOPE.fields.len()).filter(|field| field.name != "payload") {
        flaws.push((extra.name.clone(), "is no envelope field; put it into payload".to_owned()));
    }
    flaws
}

fn payload_flaws(record: &RecordSchema, path: &str, flaws: &mut Vec<Flaw>) {
    for field in &record.fields {
        let path = format!("{path}.{}", field.name);
        if let Schema::Union(union) = &field.schema
            && optional(union).is_some()
            && field.default != Some(serde_json::Value::Null)
        {
            flaws.push((path.clone(), "an optional field must have the default null".to_owned()));
        } else if let Some(default) = &field.default {
            let mut errors = Vec::new();
            to_avro(&field.schema, default, Path::Root, &mut errors);
            flaws.extend(errors.into_iter().map(|e| (path.clone(), format!("the default {}", e.reason))));
        }
        type_flaws(&field.schema, &path, flaws);
    }
}

fn type_flaws(schema: &Schema, path: &str, flaws: &mut Vec<Flaw>) {
    let mut flaw = |reason: &str| flaws.push((path.to_owned(), reason.to_owned()));
    match schema {
        Schema::Boolean
        | Schema::Int
        | Schema::Long
        | Schema::Double
        | Schema::String
        | Schema::TimestampMillis
        | Schema::Uuid(UuidSchema::String) => {}
        Schema::Enum(symbols) if symbols.default.is_none() => {
            flaw("an enum must have a default symbol (UNKNOWN), or it can never grow");
        }
        Schema::Enum(_) => {}
        Schema::Array(array) => type_flaws(&array.items, &format!("{path}[]"), flaws),
        Schema::Map(map) => type_flaws(&map.types, &format!("{path}{{}}"), flaws),
        Schema::Record(record) => payload_flaws(record, path, flaws),
        Schema::Union(union) => match optional(union) {
            Some(inner) => type_flaws(inner, path, flaws),
            None => flaw("the only unions are [\"null\", T], in this order"),
        },
        Schema::Uuid(_) => flaw("a uuid must be a string with logicalType uuid"),
        Schema::Float => flaw("use double"),
        Schema::Null => flaw("use [\"null\", T]"),
        _ => flaw(
            "only boolean, int, long, double, string, uuid, timestamp-millis, enum, record, array, map and \
             [\"null\", T] have a JSON form here",
        ),
    }
}

/// How a type is named in docs and errors: `uuid`, `string?`, `array<string>`, `JobStatus`.
pub(super) fn describe(schema: &Schema) -> String {
    match schema {
        Schema::Boolean => "boolean".to_owned(),
        Schema::Int => "int".to_owned(),
        Schema::Long => "long".to_owned(),
        Schema::Double => "double".to_owned(),
        Schema::String => "string".to_owned(),
        Schema::TimestampMillis => "timestamp-millis".to_owned(),
        Schema::Uuid(_) => "uuid".to_owned(),
        Schema::Enum(symbols) => symbols.name.name().to_owned(),
        Schema::Record(record) => record.name.name().to_owned(),
        Schema::Array(array) => format!("array<{}>", describe(&array.items)),
        Schema::Map(map) => format!("map<{}>", describe(&map.types)),
        Schema::Union(union) => match optional(union) {
            Some(inner) => format!("[\"null\", {}]", describe(inner)),
            None => "a union".to_owned(),
        },
        other => format!("{other:?}"),
    }
}
