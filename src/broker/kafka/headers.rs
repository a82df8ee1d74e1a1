//! The envelope as record headers, by the CloudEvents 1.0 binding for Kafka: `ce_` before
//! each attribute's name. Only the trace context goes by its own name, as W3C has it.

use std::borrow::Cow;

use rdkafka::message::{BorrowedHeaders, Header, Headers as _, OwnedHeaders};

use crate::broker::cloudevents::{self, Attribute};
use crate::domain::event::Headers;

/// The header of an attribute.
const fn name(attribute: Attribute) -> &'static str {
    match attribute {
        Attribute::SpecVersion => "ce_specversion",
        Attribute::Id => "ce_id",
        Attribute::Source => "ce_source",
        Attribute::Type => "ce_type",
        Attribute::Subject => "ce_subject",
        Attribute::Time => "ce_time",
        Attribute::AggregateType => "ce_aggregatetype",
        Attribute::Sequence => "ce_sequence",
        Attribute::UserId => "ce_userid",
        Attribute::CorrelationId => "ce_correlationid",
        Attribute::CausationId => "ce_causationid",
        Attribute::SchemaVersion => "ce_schemaversion",
        Attribute::Tags => "ce_tags",
        Attribute::UserOffset => "ce_useroffset",
        Attribute::Traceparent => "traceparent",
    }
}

/// The headers of a record whose body is Avro.
pub(super) fn write(headers: &Headers) -> OwnedHeaders {
    let content = Header { key: "content-type", value: Some("application/avro") };
    let first = OwnedHeaders::new_with_capacity(Attribute::ALL.len() + 1).insert(content);
    cloudevents::attributes(headers)
        .fold(first, |all, (attribute, text)| all.insert(Header { key: name(attribute), value: Some(text.as_bytes()) }))
}

/// Reads them back; says which one is missing or wrong.
pub(super) fn read(headers: Option<&BorrowedHeaders>) -> Result<Headers, String> {
    let headers = headers.ok_or("the record has no headers")?;
    let value = |attribute: Attribute| headers.iter().find(|header| header.key == name(attribute))?.value;
    for attribute in Attribute::ALL {
        if value(attribute).is_some_and(|bytes| std::str::from_utf8(bytes).is_err()) {
            return Err(format!("header {} is not text", name(attribute)));
        }
    }
    cloudevents::headers(|attribute| std::str::from_utf8(value(attribute)?).ok().map(Cow::Borrowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_has_its_attributes_name() {
        for attribute in Attribute::ALL {
            let bare = name(attribute).strip_prefix("ce_").unwrap_or(name(attribute));
            assert_eq!(bare, attribute.name());
        }
    }

    #[test]
    fn a_header_that_is_no_text_is_named() {
        let bad = OwnedHeaders::new().insert(Header { key: "ce_userid", value: Some(&[0xff_u8, 0xfe][..]) });
        assert_eq!(read(Some(bad.as_borrowed())).unwrap_err(), "header ce_userid is not text");
        assert_eq!(read(Some(OwnedHeaders::new().as_borrowed())).unwrap_err(), "specversion is missing");
        assert_eq!(read(None).unwrap_err(), "the record has no headers");
    }
}
