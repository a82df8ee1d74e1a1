//! JSON bodies: read once, and when that fails read again to say which field is wrong.

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_path_to_error::{Path, Segment};

use super::problem::{Kind, Problem};
use crate::service::FieldError;

/// Why some JSON was not taken.
#[derive(Debug)]
pub enum JsonError {
    /// It is no JSON.
    Syntax(String),
    /// It is JSON of another shape.
    Field(FieldError),
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Syntax(why) => Self::new(Kind::Malformed, format!("the body is not JSON: {why}")),
            JsonError::Field(error) => Self::invalid(vec![error]),
        }
    }
}

/// Reads the object in `bytes` as a `T`. Without the check an array would be taken for the
/// fields in their order.
pub fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => parse(bytes),
        _ => {
            parse::<serde::de::IgnoredAny>(bytes)?;
            Err(JsonError::Field(FieldError::new("", "invalid_type", "must be a JSON object")))
        }
    }
}

/// Reads `bytes` as a `T`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(bytes).or_else(|error| match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => Err(JsonError::Syntax(error.to_string())),
        Category::Data => located(bytes),
    })
}

/// The slow way, which knows the path of the field.
fn located<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = dotted(error.path());
        let why = error.into_inner();
        match why.classify() {
            Category::Data => JsonError::Field(field_error(&path, &without_position(&why))),
            // It has the wrong shape before it stops being JSON.
            _ => JsonError::Syntax(why.to_string()),
        }
    })
}

/// A path as `errors` writes it: `samples.0.host`.
fn dotted(path: &Path) -> String {
    let mut parts = Vec::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => parts.push(index.to_string()),
            Segment::Map { key } => parts.push(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    parts.join(".")
}

/// serde_json adds where in the text it was, which says nothing beside the field.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).map_or(text.clone(), str::to_owned)
}

/// The field and a stable code, from what serde says.
pub fn field_error(path: &str, message: &str) -> FieldError {
    let named = || message.split('`').nth(1).unwrap_or_default();
    let join = |name: &str| match path {
        "" => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    };
    if message.starts_with("missing field") {
        FieldError::new(join(named()), "required", "is required")
    } else if message.starts_with("unknown field") {
        let known = message.split_once("expected ").map_or("", |(_, known)| known);
        FieldError::new(join(named()), "unknown_field", format!("is not known here; {known}").replace('`', ""))
    } else if message.starts_with("duplicate field") {
        FieldError::new(join(named()), "duplicate", "is there twice")
    } else if message.starts_with("unknown variant") {
        let known = message.split_once("expected ").map_or("", |(_, known)| known);
        let known = known.trim_start_matches("one of ").replace('`', "");
        FieldError::new(path, "unknown_value", format!("'{}' is not one of {known}", named()))
    } else if message.starts_with("invalid type") {
        FieldError::new(path, "invalid_type", message.trim_start_matches("invalid type: "))
    } else {
        FieldError::new(path, "invalid_value", message.trim_start_matches("invalid value: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::SubmitJob;

    fn wrong(json: &str) -> FieldError {
        match parse_object::<SubmitJob>(json.as_bytes()) {
            Err(JsonError::Field(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_mistake_names_its_field() {
        let base = r#""agent":"a","dataset_id":"d""#;
        for (json, field, code) in [
            (r#"{"dataset_id":"d"}"#.to_owned(), "agent", "required"),
            (format!("{{{base},\"nmae\":1}}"), "nmae", "unknown_field"),
            (format!("{{{base},\"agent\":\"b\"}}"), "agent", "duplicate"),
            (format!("{{{base},\"priority\":\"urgent\"}}"), "priority", "unknown_value"),
            (
                format!("{{{base},\"resource_request\":{{\"num_nodes\":\"two\"}}}}"),
                "resource_request.num_nodes",
                "invalid_type",
            ),
            (
                format!("{{{base},\"resource_request\":{{\"num_nodes\":-1}}}}"),
                "resource_request.num_nodes",
                "invalid_value",
            ),
            (format!("{{{base},\"resource_request\":{{\"nodes\":1}}}}"), "resource_request.nodes", "unknown_field"),
            ("[\"a\",\"d\"]".to_owned(), "", "invalid_type"),
            ("null".to_owned(), "", "invalid_type"),
        ] {
            let error = wrong(&json);
            assert_eq!((&*error.field, error.code), (field, code), "{json}: {}", error.message);
            assert!(!error.message.contains("line 1"), "{}", error.message);
        }
    }

    #[test]
    fn what_is_no_json_is_told_apart() {
        for json in ["", "{", "{\"agent\":", "nul", "\u{0}\u{1}", "{\"agent\":1e999}"] {
            assert!(matches!(parse::<SubmitJob>(json.as_bytes()), Err(JsonError::Syntax(_))), "{json:?}");
            assert!(matches!(parse_object::<SubmitJob>(json.as_bytes()), Err(JsonError::Syntax(_))), "{json:?}");
        }
        let deep = format!(
            "{{\"agent\":\"a\",\"dataset_id\":\"d\",\"params\":{{\"x\":{}1{}}}}}",
            "[".repeat(200),
            "]".repeat(200)
        );
        assert!(matches!(parse::<SubmitJob>(deep.as_bytes()), Err(JsonError::Syntax(_))));
    }
}
