//! Where the events of a type go: templates with the payload's fields in them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use crate::domain::Broker;

/// One place an event goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub broker: Broker,
    /// RabbitMQ exchange, Kafka topic; for NATS the subject.
    pub target: Arc<str>,
    /// RabbitMQ routing key, Kafka record key; for NATS the aggregate id.
    pub key: Arc<str>,
    /// A copy that no queue takes is skipped, not retried.
    pub optional: bool,
}

/// Text with `{field}` placeholders, as the catalogue's files have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Field(Box<str>),
}

impl Template {
    /// Reads `job.{job_id}.status`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (literal, tail) = rest.split_at(open);
            let field = tail
                .strip_prefix('{')
                .and_then(|tail| tail.split_once('}'))
                .filter(|(field, _)| !field.is_empty() && !field.contains('{'));
            let Some((field, after)) = field else {
                return Err(format!("'{text}' has an unpaired or empty brace; placeholders look like {{job_id}}"));
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.into()));
            }
            parts.push(Part::Field(field.into()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.into()));
        }
        if parts.is_empty() { Err("must not be empty".to_owned()) } else { Ok(Self(parts)) }
    }

    /// The whole text is the value of one field.
    pub(super) fn field(name: &str) -> Self {
        Self(vec![Part::Field(name.into())])
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Field(field) => Some(&**field),
            Part::Literal(_) => None,
        })
    }

    /// The subjects it can become, with `*` for each token that has a placeholder in it.
    pub(super) fn subject_pattern(&self) -> String {
        let text: String = self
            .0
            .iter()
            .map(|part| match part {
                Part::Literal(text) => &**text,
                Part::Field(_) => "{}",
            })
            .collect();
        let tokens: Vec<_> = text.split('.').map(|token| if token.contains("{}") { "*" } else { token }).collect();
        tokens.join(".")
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(text),
            Part::Field(field) => write!(f, "{{{field}}}"),
        })
    }
}

/// A template whose placeholders are resolved to where their values come from.
#[derive(Clone, Debug)]
enum Filled {
    Static(Arc<str>),
    AggregateId,
    Parts(Vec<Source>),
}

#[derive(Clone, Debug)]
enum Source {
    Literal(Box<str>),
    AggregateId,
    /// Index into [`Routes::fields`].
    Field(usize),
}

#[derive(Clone, Debug)]
struct RouteSpec {
    broker: Broker,
    target: Filled,
    key: Filled,
    optional: bool,
}

/// All routes of a type. Routes without placeholders, and those whose only placeholder is
/// the aggregate's id, are answered without looking at the payload.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    specs: Vec<RouteSpec>,
    /// Payload fields that have to be looked up, each once.
    fields: Vec<Box<str>>,
    aggregate_id_field: Box<str>,
    brokers: Vec<Broker>,
}

/// A route as loaded: broker, target, key, optional.
pub(super) type RouteTemplate = (Broker, Template, Template, bool);

impl Routes {
    pub(super) fn new(aggregate_id_field: &str, templates: &[RouteTemplate]) -> Self {
        let mut routes = Self {
            specs: Vec::new(),
            fields: Vec::new(),
            aggregate_id_field: aggregate_id_field.into(),
            brokers: templates.iter().map(|(broker, ..)| *broker).collect(),
        };
        for (broker, target, key, optional) in templates {
            let spec = RouteSpec {
                broker: *broker,
                target: routes.resolve(target),
                key: routes.resolve(key),
                optional: *optional,
            };
            routes.specs.push(spec);
        }
        routes
    }

    pub(super) fn brokers(&self) -> &[Broker] {
        &self.brokers
    }

    pub(super) fn of(&self, aggregate_id: &Arc<str>, payload_json: &[u8]) -> Vec<Route> {
        let values = if self.fields.is_empty() { Vec::new() } else { look_up(&self.fields, payload_json) };
        let fill = |template: &Filled| -> Arc<str> {
            match template {
                Filled::Static(text) => text.clone(),
                Filled::AggregateId => aggregate_id.clone(),
                Filled::Parts(sources) => sources
                    .iter()
                    .map(|source| match source {
                        Source::Literal(text) => &**text,
                        Source::AggregateId => aggregate_id,
                        // Payloads are checked when they are encoded, so the field is there.
                        Source::Field(index) => values[*index].as_deref().unwrap_or("unknown"),
                    })
                    .collect::<String>()
                    .into(),
            }
        };
        let route = |spec: &RouteSpec| Route {
            broker: spec.broker,
            target: fill(&spec.target),
            key: fill(&spec.key),
            optional: spec.optional,
        };
        self.specs.iter().map(route).collect()
    }

    fn resolve(&mut self, template: &Template) -> Filled {
        let mut source = |part: &Part| match part {
            Part::Literal(text) => Source::Literal(text.clone()),
            Part::Field(field) if *field == self.aggregate_id_field => Source::AggregateId,
            Part::Field(field) => Source::Field(self.fields.iter().position(|f| f == field).unwrap_or_else(|| {
                self.fields.push(field.clone());
                self.fields.len() - 1
            })),
        };
        let sources: Vec<_> = template.0.iter().map(&mut source).collect();
        match sources.as_slice() {
            [Source::Literal(text)] => Filled::Static((**text).into()),
            [Source::AggregateId] => Filled::AggregateId,
            _ => Filled::Parts(sources),
        }
    }
}

/// The text of top-level `fields` of a JSON object, skipping everything else unparsed;
/// `None` where the field is not there or not text.
pub(super) fn look_up<'j>(fields: &[Box<str>], json: &'j [u8]) -> Vec<Option<Cow<'j, str>>> {
    struct LookUp<'f, 'v, 'j> {
        fields: &'f [Box<str>],
        found: &'v mut [Option<Cow<'j, str>>],
    }

    impl<'j> Visitor<'j> for LookUp<'_, '_, 'j> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a payload object")
        }

        fn visit_map<A: MapAccess<'j>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(Text(name)) = map.next_key()? {
                match self.fields.iter().position(|field| **field == *name) {
                    Some(index) => self.found[index] = Some(map.next_value::<Text<'j>>()?.0),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(())
        }
    }

    /// Borrows unless there is an escape in it.
    #[derive(serde::Deserialize)]
    struct Text<'j>(#[serde(borrow)] Cow<'j, str>);

    let mut found = vec![None; fields.len()];
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    // What is no object leaves everything `None`.
    let _ = (&mut deserializer).deserialize_map(LookUp { fields, found: &mut found });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read_and_printed() {
        for text in ["job.submitted", "job.{job_id}.status", "{a}", "a.{b}{c}"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "job.{job_id", "job.}x{", "{}", "{a{b}}"] {
            Template::parse(bad).expect_err(bad);
        }
        assert_eq!(Template::parse("commands.a-{b}.{c}").unwrap().subject_pattern(), "commands.*.*");
    }

    #[test]
    fn fields_are_looked_up_at_the_top_level_only() {
        let fields = ["runner".into(), "missing".into(), "number".into()];
        let json = br#"{"nested":{"runner":"no"},"runner":"pro\u0063ess","list":[1,{"missing":"x"}],"z":null}"#;
        assert_eq!(look_up(&fields, json), [Some(Cow::from("process")), None, None]);
        assert_eq!(look_up(&fields, b"[1]"), [None, None, None]);
    }

    #[test]
    fn a_static_route_shares_its_text_and_ignores_the_payload() {
        let template = |text| Template::parse(text).unwrap();
        let routes = Routes::new(
            "job_id",
            &[
                (Broker::Rabbitmq, template("job.events"), template("job.submitted"), false),
                (Broker::Kafka, template("job-lifecycle"), template("{job_id}"), false),
            ],
        );
        let id: Arc<str> = "j1".into();
        let first = routes.of(&id, b"not json");
        let second = routes.of(&id, b"");
        assert!(Arc::ptr_eq(&first[0].key, &second[0].key));
        assert!(Arc::ptr_eq(&first[1].key, &id));
        assert_eq!(routes.brokers(), [Broker::Rabbitmq, Broker::Kafka]);
    }
}
