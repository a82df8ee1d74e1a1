//! CloudEvents 1.0 over HTTP: the binary, structured and batched content modes.
//!
//! Extension attributes other than `traceparent` are not kept.

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::extract::{is_json, media_type, trace_id};
use super::json::{self, JsonError};
use super::problem::{Kind, Problem};
use crate::domain::factory::Cause;
use crate::domain::{Id, Timestamp};
use crate::service::{FieldError, IngestEvent};

pub const STRUCTURED: &str = "application/cloudevents+json";
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Events of one request.
pub struct Received {
    pub events: Vec<IngestEvent>,
    /// Sent as a batch: answered with a result for each.
    pub batch: bool,
}

/// An event in the JSON format of CloudEvents 1.0.
#[derive(Deserialize, ToSchema)]
pub struct CloudEvent {
    /// Always `1.0`.
    #[schema(pattern = "^1\\.0$", example = "1.0")]
    specversion: String,
    /// With `source` the key that makes a repeat harmless.
    #[schema(min_length = 1, max_length = 255)]
    id: String,
    #[schema(min_length = 1, max_length = 500, pattern = "^[^\\s]+$")]
    source: String,
    /// A type of the catalogue that the caller's role may post.
    #[schema(min_length = 1)]
    r#type: String,
    /// When it happened; when it arrived if missing.
    #[serde(default)]
    time: Option<Timestamp>,
    #[serde(default)]
    datacontenttype: Option<String>,
    /// W3C trace context.
    #[serde(default)]
    traceparent: Option<String>,
    /// The payload, as the type's schema wants it.
    #[serde(default)]
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    data: Option<Box<RawValue>>,
    /// Not supported: payloads are JSON.
    #[serde(default)]
    #[schema(ignore)]
    data_base64: Option<serde::de::IgnoredAny>,
}

/// Reads the events of a request in whichever mode it uses.
pub fn read(headers: &HeaderMap, body: &Bytes) -> Result<Received, Problem> {
    match &*media_type(headers) {
        STRUCTURED => {
            let mut errors = Vec::new();
            let event = checked("", json::parse_object(body), &mut errors)?;
            Ok(Received { events: all(vec![event], errors)?, batch: false })
        }
        BATCH => {
            let items: Vec<&RawValue> = match serde_json::from_slice(body) {
                Ok(items) => items,
                Err(_) => {
                    json::parse::<Vec<serde_json::Value>>(body)?;
                    return Err(Problem::new(Kind::Malformed, "send a JSON array of events"));
                }
            };
            let mut errors = Vec::new();
            let events = items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    checked(&format!("events.{index}."), json::parse_object(item.get().as_bytes()), &mut errors)
                })
                .collect::<Result<_, _>>()?;
            Ok(Received { events: all(events, errors)?, batch: true })
        }
        media if media.is_empty() || is_json(media) => {
            Ok(Received { events: vec![binary(headers, body)?], batch: false })
        }
        _ => Err(Problem::new(
            Kind::UnsupportedMediaType,
            format!("send {STRUCTURED}, {BATCH}, or application/json with the attributes in ce- headers"),
        )),
    }
}

fn all(events: Vec<Option<IngestEvent>>, errors: Vec<FieldError>) -> Result<Vec<IngestEvent>, Problem> {
    if errors.is_empty() { Ok(events.into_iter().flatten().collect()) } else { Err(Problem::invalid(errors)) }
}

/// One event of the JSON format, or what is wrong with it: fields below `prefix`.
fn checked(
    prefix: &str,
    event: Result<CloudEvent, JsonError>,
    errors: &mut Vec<FieldError>,
) -> Result<Option<IngestEvent>, Problem> {
    let mut wrong = |field: &str, code, message: String| {
        let field = format!("{prefix}{field}").trim_end_matches('.').to_owned();
        errors.push(FieldError::new(field, code, message));
    };
    let event = match event {
        Ok(event) => event,
        Err(JsonError::Field(error)) => {
            wrong(&error.field, error.code, error.message);
            return Ok(None);
        }
        Err(syntax) => return Err(syntax.into()),
    };
    if let Some(message) = wrong_version(&event.specversion) {
        wrong("specversion", "unknown_value", message);
    }
    if event.data_base64.is_some() {
        wrong("data_base64", "unsupported", "payloads are JSON: send them as data".into());
    }
    if event.datacontenttype.as_deref().is_some_and(|media| !is_json(essence(media))) {
        wrong("datacontenttype", "unsupported", "payloads are JSON: send application/json or leave it out".into());
    }
    Ok(Some(IngestEvent {
        id: event.id,
        source: event.source,
        event_type: event.r#type,
        time: event.time,
        data: event.data.map_or(Bytes::from_static(b"null"), |data| Bytes::from(String::from(Box::<str>::from(data)))),
        cause: event.traceparent.and_then(cause),
    }))
}

fn essence(media: &str) -> &str {
    media.split(';').next().unwrap_or_default().trim()
}

fn wrong_version(version: &str) -> Option<String> {
    (version != "1.0").then(|| format!("'{version}' is not known here; send 1.0"))
}

/// The attributes are `ce-` headers, the body is the payload.
fn binary(headers: &HeaderMap, body: &Bytes) -> Result<IngestEvent, Problem> {
    let mut errors = Vec::new();
    let attribute = |name: &'static str| {
        let value = headers.get(name)?;
        Some(percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned())
    };
    let mut required = |name: &'static str| {
        attribute(name).unwrap_or_else(|| {
            let message =
                format!("the header is required; or send the whole event as JSON with the Content-Type {STRUCTURED}");
            errors.push(FieldError::new(name, "required", message));
            String::new()
        })
    };
    let (version, id) = (required("ce-specversion"), required("ce-id"));
    let (source, event_type) = (required("ce-source"), required("ce-type"));
    if let Some(message) = wrong_version(&version).filter(|_| !version.is_empty()) {
        errors.push(FieldError::new("ce-specversion", "unknown_value", message));
    }
    let time = attribute("ce-time").and_then(|text| match Timestamp::parse(&text) {
        Ok(time) => Some(time),
        Err(_) => {
            let message = format!("'{text}' is not an RFC 3339 time such as 2026-11-21T09:30:00.000Z");
            errors.push(FieldError::new("ce-time", "invalid_value", message));
            None
        }
    });
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    if !headers.contains_key(header::CONTENT_TYPE) && !body.is_empty() {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            "say what the payload is: Content-Type: application/json",
        ));
    }
    json::parse::<serde::de::IgnoredAny>(body)?;
    let cause = attribute("ce-traceparent").and_then(cause);
    Ok(IngestEvent { id, source, event_type, time, data: body.clone(), cause })
}

fn cause(traceparent: String) -> Option<Cause> {
    let correlation_id = Id(trace_id(&traceparent)?);
    Some(Cause { correlation_id, causation_id: None, traceparent: Some(traceparent.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn one(headers: &HeaderMap, body: &str) -> IngestEvent {
        let received = read(headers, &Bytes::from(body.to_owned())).unwrap();
        received.events.into_iter().next().unwrap()
    }

    #[test]
    fn the_three_modes_carry_the_same_event() {
        let structured = headers(&[("content-type", "application/cloudevents+json; charset=utf-8")]);
        let event =
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-11-21T09:30:00Z","data":{"a":1}}"#;
        let batch = headers(&[("content-type", BATCH)]);
        let binary = headers(&[
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("ce-time", "2026-11-21T09:30:00Z"),
        ]);
        for event in [one(&structured, event), one(&batch, &format!("[{event}]")), one(&binary, r#"{"a":1}"#)] {
            assert_eq!((&*event.id, &*event.source, &*event.event_type), ("1", "/s", "t"));
            assert_eq!((event.time, &*event.data), (Some(Timestamp(1_795_253_400_000)), &br#"{"a":1}"#[..]));
        }
    }

    #[test]
    fn header_values_are_percent_decoded() {
        let binary = headers(&[
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "caf%C3%A9"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
        ]);
        assert_eq!(one(&binary, "{}").id, "café");
    }

    #[test]
    fn a_batch_names_each_wrong_event() {
        let body = r#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},
                       {"specversion":"0.3","id":"2","source":"/s","type":"t"},
                       {"specversion":"1.0","id":3,"source":"/s","type":"t"}]"#;
        let problem = read(&headers(&[("content-type", BATCH)]), &Bytes::from(body)).err().unwrap();
        let text = String::from_utf8(problem.encode("/", "-")).unwrap();
        assert!(text.contains("events.1.specversion") && text.contains("events.2.id"), "{text}");
        assert!(!text.contains("events.0"), "{text}");
    }
}
