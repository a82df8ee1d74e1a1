//! The envelope as CloudEvents 1.0 attributes: their names, their text, and the way back.
//! Each broker adds its binding's prefix (`ce_`, `ce-`) and escaping.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use crate::domain::Timestamp;
use crate::domain::event::Headers;

const SPEC_VERSION: &str = "1.0";
/// Where events come from. Ids are unique over all instances, so it names the product.
const SOURCE: &str = "/event-gateway";

/// An attribute of a message. The discriminants index [`Attribute::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    SpecVersion,
    Id,
    Source,
    Type,
    /// The aggregate's id.
    Subject,
    Time,
    AggregateType,
    Sequence,
    UserId,
    CorrelationId,
    CausationId,
    SchemaVersion,
    /// A JSON array of texts.
    Tags,
    UserOffset,
    Traceparent,
}

impl Attribute {
    pub const ALL: [Attribute; 15] = [
        Self::SpecVersion,
        Self::Id,
        Self::Source,
        Self::Type,
        Self::Subject,
        Self::Time,
        Self::AggregateType,
        Self::Sequence,
        Self::UserId,
        Self::CorrelationId,
        Self::CausationId,
        Self::SchemaVersion,
        Self::Tags,
        Self::UserOffset,
        Self::Traceparent,
    ];

    /// The name without a prefix. The specification allows lower-case letters and digits only.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpecVersion => "specversion",
            Self::Id => "id",
            Self::Source => "source",
            Self::Type => "type",
            Self::Subject => "subject",
            Self::Time => "time",
            Self::AggregateType => "aggregatetype",
            Self::Sequence => "sequence",
            Self::UserId => "userid",
            Self::CorrelationId => "correlationid",
            Self::CausationId => "causationid",
            Self::SchemaVersion => "schemaversion",
            Self::Tags => "tags",
            Self::UserOffset => "useroffset",
            Self::Traceparent => "traceparent",
        }
    }
}

/// Every attribute that these headers have, as unescaped text.
pub fn attributes(headers: &Headers) -> impl Iterator<Item = (Attribute, Cow<'_, str>)> {
    Attribute::ALL.into_iter().filter_map(|attribute| Some((attribute, text(headers, attribute)?)))
}

fn text(headers: &Headers, attribute: Attribute) -> Option<Cow<'_, str>> {
    Some(match attribute {
        Attribute::SpecVersion => SPEC_VERSION.into(),
        Attribute::Source => SOURCE.into(),
        Attribute::Id => headers.event_id.to_string().into(),
        Attribute::Type => (&*headers.event_type).into(),
        Attribute::Subject => (&*headers.aggregate_id).into(),
        Attribute::Time => headers.occurred_at.to_string().into(),
        Attribute::AggregateType => (&*headers.aggregate_type).into(),
        Attribute::Sequence => headers.sequence.to_string().into(),
        Attribute::UserId => (&*headers.user_id).into(),
        Attribute::CorrelationId => headers.correlation_id.to_string().into(),
        Attribute::CausationId => headers.causation_id?.to_string().into(),
        Attribute::SchemaVersion => headers.schema_version.to_string().into(),
        Attribute::Tags if headers.tags.is_empty() => return None,
        Attribute::Tags => serde_json::json!(headers.tags).to_string().into(),
        Attribute::UserOffset => headers.user_offset?.to_string().into(),
        Attribute::Traceparent => headers.traceparent.as_deref()?.into(),
    })
}

/// Reads the envelope from unescaped attribute texts.
///
/// # Errors
/// Names the first attribute that is missing or cannot be read.
pub fn headers<'m>(get: impl Fn(Attribute) -> Option<Cow<'m, str>>) -> Result<Headers, String> {
    let required = |attribute: Attribute| get(attribute).ok_or_else(|| format!("{} is missing", attribute.name()));
    let shared = |attribute| required(attribute).map(|text| Arc::<str>::from(&*text));
    let version = required(Attribute::SpecVersion)?;
    if version != SPEC_VERSION {
        return Err(format!("specversion is {version:?}, not {SPEC_VERSION}"));
    }
    Ok(Headers {
        event_id: parsed(Attribute::Id, &required(Attribute::Id)?)?,
        event_type: shared(Attribute::Type)?,
        aggregate_type: shared(Attribute::AggregateType)?,
        aggregate_id: shared(Attribute::Subject)?,
        sequence: parsed(Attribute::Sequence, &required(Attribute::Sequence)?)?,
        user_id: shared(Attribute::UserId)?,
        occurred_at: Timestamp::parse(&required(Attribute::Time)?).map_err(|why| unreadable(Attribute::Time, why))?,
        correlation_id: parsed(Attribute::CorrelationId, &required(Attribute::CorrelationId)?)?,
        causation_id: optional(Attribute::CausationId, &get)?,
        schema_version: parsed(Attribute::SchemaVersion, &required(Attribute::SchemaVersion)?)?,
        tags: match get(Attribute::Tags) {
            Some(text) => serde_json::from_str(&text).map_err(|why| unreadable(Attribute::Tags, why))?,
            None => Vec::new(),
        },
        user_offset: optional(Attribute::UserOffset, &get)?,
        traceparent: get(Attribute::Traceparent).map(|text| (&*text).into()),
    })
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(attribute: Attribute, text: &str) -> Result<T, String> {
    text.parse().map_err(|why| unreadable(attribute, why))
}

fn optional<'m, T: FromStr<Err: std::fmt::Display>>(
    attribute: Attribute,
    get: &impl Fn(Attribute) -> Option<Cow<'m, str>>,
) -> Result<Option<T>, String> {
    get(attribute).map(|text| parsed(attribute, &text)).transpose()
}

fn unreadable(attribute: Attribute, why: impl std::fmt::Display) -> String {
    format!("{} cannot be read: {why}", attribute.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Id;

    fn sample(full: bool) -> Headers {
        Headers {
            event_id: Id::new(),
            event_type: "job.submitted".into(),
            aggregate_type: "job".into(),
            aggregate_id: "a b%\r\nü".into(),
            sequence: 7,
            user_id: "Ada Lovelace".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: full.then(Id::new),
            schema_version: 2,
            tags: if full { vec!["a,b".into(), "\"c\"".into()] } else { Vec::new() },
            user_offset: full.then_some(3),
            traceparent: full.then(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        }
    }

    fn read(texts: &[(Attribute, String)]) -> Result<Headers, String> {
        headers(|wanted| texts.iter().find(|(attribute, _)| *attribute == wanted).map(|(_, text)| text.as_str().into()))
    }

    fn texts(headers: &Headers) -> Vec<(Attribute, String)> {
        attributes(headers).map(|(attribute, text)| (attribute, text.into_owned())).collect()
    }

    #[test]
    fn headers_survive_the_way_there_and_back() {
        for full in [true, false] {
            let sent = sample(full);
            assert_eq!(read(&texts(&sent)).unwrap(), sent);
        }
    }

    #[test]
    fn names_keep_to_the_specification() {
        for (index, attribute) in Attribute::ALL.into_iter().enumerate() {
            assert_eq!(attribute as usize, index);
            let name = attribute.name();
            assert!(name.chars().all(|c| c.is_ascii_lowercase()) && name.len() <= 20, "{name}");
        }
    }

    #[test]
    fn what_is_missing_or_unreadable_is_named() {
        let optional =
            [Attribute::Source, Attribute::CausationId, Attribute::Tags, Attribute::UserOffset, Attribute::Traceparent];
        for left_out in Attribute::ALL {
            let mut texts = texts(&sample(true));
            texts.retain(|(attribute, _)| *attribute != left_out);
            match read(&texts) {
                Ok(_) => assert!(optional.contains(&left_out), "{}", left_out.name()),
                Err(why) => assert!(why.contains(left_out.name()), "{why}"),
            }
        }
        let mut texts = texts(&sample(true));
        texts.iter_mut().find(|(attribute, _)| *attribute == Attribute::Sequence).unwrap().1 = "seven".into();
        assert!(read(&texts).unwrap_err().starts_with("sequence cannot be read"));
    }
}
