//! An event as an AMQP 0-9-1 message and back.
//!
//! The body is the payload as JSON. The envelope travels as application headers: each
//! CloudEvents attribute under its name with the prefix `cloudEvents_`, as text. The standard
//! properties repeat what AMQP has a place for.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::broker::cloudevents::{self, Attribute};
use crate::domain::event::Headers;

const PREFIX: &str = "cloudEvents_";
const PERSISTENT: u8 = 2;

/// The properties of a message with this envelope.
pub(super) fn properties(headers: &Headers) -> BasicProperties {
    let mut table = FieldTable::default();
    for (attribute, text) in cloudevents::attributes(headers) {
        table.insert(name(attribute), AMQPValue::LongString(text.as_bytes().into()));
    }
    let seconds = u64::try_from(headers.occurred_at.0 / 1000).unwrap_or(0);
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(headers.event_id.to_string().into())
        .with_correlation_id(headers.correlation_id.to_string().into())
        .with_timestamp(seconds)
        .with_headers(table);
    // Longer names than AMQP can take stay in the headers only.
    if let Ok(kind) = ShortString::try_new(&*headers.event_type) {
        properties = properties.with_type(kind);
    }
    properties
}

/// The envelope of a received message.
///
/// # Errors
/// Names the attribute that is missing or cannot be read.
pub(super) fn headers(properties: &BasicProperties) -> Result<Headers, String> {
    let table = properties.headers().as_ref().ok_or("the message has no headers")?;
    cloudevents::headers(|attribute| table.inner().get(name(attribute).as_str()).and_then(text))
}

fn name(attribute: Attribute) -> ShortString {
    format!("{PREFIX}{}", attribute.name()).into()
}

fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Cow::Borrowed),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Id, Timestamp};

    #[test]
    fn the_envelope_survives_and_the_standard_properties_repeat_it() {
        let sent = Headers {
            event_id: Id::new(),
            event_type: "job.submitted".into(),
            aggregate_type: "job".into(),
            aggregate_id: "a b\u{fc}".into(),
            sequence: 7,
            user_id: "ada".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: None,
            schema_version: 1,
            tags: vec!["x".into()],
            user_offset: Some(3),
            traceparent: None,
        };
        let properties = properties(&sent);
        assert_eq!(headers(&properties).unwrap(), sent);
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), sent.event_id.to_string());
        assert_eq!(properties.kind().as_ref().unwrap().as_str(), "job.submitted");
        assert_eq!(*properties.delivery_mode(), Some(PERSISTENT));
    }

    #[test]
    fn a_message_of_somebody_else_is_unreadable() {
        assert!(headers(&BasicProperties::default()).is_err());
        let empty = BasicProperties::default().with_headers(FieldTable::default());
        assert!(headers(&empty).unwrap_err().contains("specversion"));
    }
}
