//! Everything that is wrong with the shape of a body. serde stops at the first field; the
//! schema that the body is documented with does not.

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::openapi;
use crate::service::FieldError;

/// Wrong fields that are looked for.
const MAX_FOUND: usize = 100;

/// The schemas of all bodies by name. Made when the first wrong one comes.
static BODIES: LazyLock<HashMap<String, Validator>> = LazyLock::new(|| {
    let document = serde_json::to_value(openapi::document()).unwrap_or_default();
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    schemas
        .filter(|(name, _)| is_body(&document, name))
        .filter_map(|(name, _)| {
            let schema = json!({ "$ref": reference(name), "components": document["components"] });
            Some((name.clone(), jsonschema::validator_for(&schema).ok()?))
        })
        .collect()
});

fn reference(name: &str) -> String {
    format!("#/components/schemas/{name}")
}

fn is_body(document: &Value, name: &str) -> bool {
    let operations = document["paths"].as_object().into_iter().flatten();
    let mut operations = operations.flat_map(|(_, path)| path.as_object().into_iter().flatten());
    operations.any(|(_, operation)| {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"] == reference(name)
    })
}

/// `first`, and what else is wrong with `body` as a `T`.
pub fn all<T: ToSchema>(first: FieldError, body: &[u8]) -> Vec<FieldError> {
    let mut errors = vec![first];
    if let (Some(schema), Ok(value)) = (BODIES.get(&*T::name()), serde_json::from_slice::<Value>(body)) {
        for error in schema.iter_errors(&value).take(MAX_FOUND).flat_map(|error| field_errors(&error)) {
            // serde knows better what it wanted.
            if !errors.iter().any(|known| known.field == error.field) {
                errors.push(error);
            }
        }
    }
    errors
}

fn field_errors(error: &ValidationError<'_>) -> Vec<FieldError> {
    let at = error.instance_path();
    let path = at.to_string().trim_start_matches('/').replace('/', ".");
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let code = match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            return vec![FieldError::new(below(name), "required", "is required")];
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let unknown = |name: &String| FieldError::new(below(name), "unknown_field", "is not known here");
            return unexpected.iter().map(unknown).collect();
        }
        // What may be null: the errors of the other schema.
        ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
            let other_type = |error: &ValidationError<'_>| {
                matches!(error.kind(), ValidationErrorKind::Type { .. }) && error.instance_path() == at
            };
            let inner = context.iter().find(|errors| !errors.iter().any(other_type));
            match inner {
                Some(inner) => return inner.iter().flat_map(field_errors).collect(),
                None => "invalid_type",
            }
        }
        ValidationErrorKind::Type { .. } => "invalid_type",
        ValidationErrorKind::Enum { .. } => "unknown_value",
        ValidationErrorKind::Minimum { .. }
        | ValidationErrorKind::Maximum { .. }
        | ValidationErrorKind::MinLength { .. }
        | ValidationErrorKind::MaxLength { .. }
        | ValidationErrorKind::MinItems { .. }
        | ValidationErrorKind::MaxItems { .. } => "out_of_range",
        _ => "invalid_value",
    };
    // The value itself may be long.
    vec![FieldError::new(path, code, error.masked().to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ClaimRequest, SubmitJob};

    fn fields<T: ToSchema>(body: Value) -> Vec<(String, &'static str)> {
        let all = all::<T>(FieldError::new("agent", "required", "is required"), body.to_string().as_bytes());
        all.into_iter().map(|error| (error.field, error.code)).collect()
    }

    #[test]
    fn every_wrong_field_is_found_once() {
        let body = json!({
            "name": 7,
            "dataset": "d",
            "priority": "urgent",
            "resource_request": { "num_nodes": "two", "nodes": 2 },
            "max_retries": -1,
        });
        let mut found = fields::<SubmitJob>(body);
        assert_eq!(found.remove(0), ("agent".to_owned(), "required"));
        found.sort();
        let known: Vec<&str> = found.iter().map(|(field, _)| &**field).collect();
        let wrong = [
            "dataset",
            "dataset_id",
            "max_retries",
            "name",
            "priority",
            "resource_request.nodes",
            "resource_request.num_nodes",
        ];
        for wrong in wrong {
            assert_eq!(known.iter().filter(|field| **field == wrong).count(), 1, "{wrong}: {found:?}");
        }
        assert!(found.contains(&("dataset_id".to_owned(), "required")), "{found:?}");
        assert!(found.contains(&("dataset".to_owned(), "unknown_field")), "{found:?}");
    }

    #[test]
    fn the_schema_of_every_body_is_there() {
        for name in [SubmitJob::name(), ClaimRequest::name()] {
            assert!(BODIES.contains_key(&*name), "{name}: {:?}", BODIES.keys());
        }
        assert!(BODIES.len() >= 5, "{:?}", BODIES.keys());
    }
}
