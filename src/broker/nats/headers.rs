//! The envelope in NATS headers: CloudEvents in binary mode (`ce-`, percent-encoded).

use std::sync::LazyLock;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::broker::cloudevents::{self, Attribute};
use crate::domain::event::Headers;

/// What the binding escapes; everything beyond ASCII is escaped anyway.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

const CONTENT_TYPE: HeaderName = HeaderName::from_static("ce-datacontenttype");

static NAMES: LazyLock<[HeaderName; Attribute::ALL.len()]> = LazyLock::new(|| {
    Attribute::ALL.map(|attribute| match format!("ce-{}", attribute.name()).parse() {
        Ok(name) => name,
        Err(_) => unreachable!("attribute names are lower-case letters"),
    })
});

/// All headers of a message, with the id by which streams recognise a repeat.
pub(super) fn encode(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (attribute, text) in cloudevents::attributes(headers) {
        map.insert(NAMES[attribute as usize].clone(), utf8_percent_encode(&text, ESCAPED).to_string());
    }
    map.insert(CONTENT_TYPE, "application/json");
    map.insert(NATS_MESSAGE_ID, headers.event_id.to_string());
    map
}

/// Reads the envelope; says what is wrong with it.
pub(super) fn decode(map: Option<&HeaderMap>) -> Result<Headers, String> {
    let map = map.ok_or("the message has no headers")?;
    cloudevents::headers(|attribute| {
        let value = map.get(NAMES[attribute as usize].clone())?;
        // Bytes that are no UTF-8 read as replacement characters: odd, but shown.
        Some(percent_decode_str(value.as_str()).decode_utf8_lossy())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Id, Timestamp};

    #[test]
    fn any_text_survives_in_printable_ascii() {
        let sent = Headers {
            event_id: Id::new(),
            event_type: "job.submitted".into(),
            aggregate_type: "job".into(),
            aggregate_id: "a: b%20\r\nü\u{1F680}\0".into(),
            sequence: i64::MAX,
            user_id: "Ada \"the\" Lovelace".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: Some(Id::new()),
            schema_version: 2,
            tags: vec!["a,b".into(), "ç".into()],
            user_offset: Some(3),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        };
        let map = encode(&sent);
        for (_, values) in map.iter() {
            assert!(values.iter().all(|value| value.as_str().chars().all(|c| c.is_ascii_graphic())), "{values:?}");
        }
        assert_eq!(map.get(NATS_MESSAGE_ID).unwrap().as_str(), sent.event_id.to_string());
        assert_eq!(decode(Some(&map)).unwrap(), sent);
    }

    #[test]
    fn foreign_messages_are_told_apart() {
        assert_eq!(decode(None).unwrap_err(), "the message has no headers");
        assert!(decode(Some(&HeaderMap::new())).unwrap_err().contains("specversion is missing"));
    }
}
