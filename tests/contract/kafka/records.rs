//! What is in the records, and reading those that others have written.

use std::time::Duration;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use event_gateway::broker::{Inbound, Outgoing};
use event_gateway::domain::{Event, Id};
use event_gateway::schema_registry::{SchemaRegistry, subject};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers as _, Message, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use serde_json::json;

use super::proxy::{Mode, Proxy};
use super::{Fresh, Site, TOPIC, consumer, event_type, route_to};
use crate::fixture::*;

/// Everything in the fixture's topic, read as somebody else would.
fn read_all(fresh: &Fresh, count: usize, mut each: impl FnMut(&BorrowedMessage<'_>)) {
    let group = format!("{}stranger-{}", fresh.prefix, Id::new());
    let reader: BaseConsumer = fresh
        .site
        .client()
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    reader.subscribe(&[&fresh.topic()]).unwrap();
    let limit = std::time::Instant::now() + PATIENCE;
    let mut read = 0;
    while read < count {
        assert!(std::time::Instant::now() < limit, "{read} of {count} came");
        if let Some(message) = reader.poll(Duration::from_millis(100)) {
            each(&message.unwrap());
            read += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_has_the_wire_format_and_the_envelope_in_headers() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    // What Kafka's own UtilsTest expects of murmur2, modulo 4 partitions.
    let keys = [("21", 0), ("abc", 3), ("foobar", 2)];
    let window: Vec<Outgoing> =
        keys.iter().map(|(key, _)| Outgoing { event: event(key, 7), route: route_to(TOPIC, key) }).collect();
    let positions = publish(&*fresh.kafka.publisher(), &window).await;
    for (position, (key, partition)) in positions.iter().zip(keys) {
        assert_eq!(position.partition, partition, "{key} is not where the Java clients put it");
    }

    let registry = SchemaRegistry::new(&fresh.config.registry).unwrap();
    let subject = subject(&fresh.topic(), "com.cosmic_horizons.events.JobCancelled");
    let id = registry.find(&subject, event_type("job.cancelled").schema_text()).await.unwrap();
    assert_eq!(registry.level(&subject).await.unwrap().as_deref(), Some("FULL_TRANSITIVE"));

    read_all(&fresh, 3, |message| {
        let key = std::str::from_utf8(message.key().unwrap()).unwrap();
        let sent = &window.iter().find(|outgoing| *outgoing.route.key == *key).unwrap().event;
        let body = message.payload().unwrap();
        assert_eq!((body[0], &body[1..5]), (0, &id.to_be_bytes()[..]));
        assert_eq!(body[5..], sent.event_type.encode_record(sent).unwrap());
        let headers = message.headers().unwrap();
        let header = |name: &str| {
            let found = headers.iter().find(|header| header.key == name).unwrap_or_else(|| panic!("{name} is missing"));
            String::from_utf8(found.value.unwrap().to_vec()).unwrap()
        };
        for (name, value) in [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", sent.event_id.to_string()),
            ("ce_type", "job.cancelled".to_owned()),
            ("ce_subject", key.to_owned()),
            ("ce_time", sent.occurred_at.to_string()),
            ("ce_sequence", "7".to_owned()),
            ("ce_aggregatetype", "job".to_owned()),
            ("ce_userid", "ada".to_owned()),
            ("ce_correlationid", sent.correlation_id.to_string()),
            ("ce_causationid", sent.causation_id.unwrap().to_string()),
            ("ce_schemaversion", "1".to_owned()),
            ("ce_useroffset", "7".to_owned()),
            ("ce_tags", "[\"contract\"]".to_owned()),
            ("traceparent", sent.traceparent.as_deref().unwrap().to_owned()),
            ("content-type", "application/avro".to_owned()),
        ] {
            assert_eq!(header(name), value, "{name}");
        }
    });
}

/// The headers that the gateway writes for this event, as somebody else would.
fn headers_of(event: &Event) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    for (attribute, text) in event_gateway::broker::cloudevents::attributes(&event.headers()) {
        let name = attribute.name();
        let name = if name == "traceparent" { name.to_owned() } else { format!("ce_{name}") };
        headers = headers.insert(rdkafka::message::Header { key: &name, value: Some(text.as_bytes()) });
    }
    headers
}

fn framed(id: u32, record: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], record].concat()
}

impl Fresh {
    async fn write_event(&self, event: &Event, body: &[u8]) {
        let topic = self.topic();
        let record = FutureRecord::to(&topic).key(&*event.aggregate_id).payload(body).headers(headers_of(event));
        self.write(record).await;
    }

    /// Registers another version of job.cancelled and writes an event with it.
    async fn write_version(&self, event: &Event, schema: &str, change: impl FnOnce(&mut Vec<(String, Value)>)) {
        let registry = SchemaRegistry::new(&self.site.config(&self.prefix, &[]).registry).unwrap();
        let subject = subject(&self.topic(), "com.cosmic_horizons.events.JobCancelled");
        let id = registry.register(&subject, schema).await.unwrap();

        let ours = Schema::parse_str(event.event_type.schema_text()).unwrap();
        let record = event.event_type.encode_record(event).unwrap();
        let reader = GenericDatumReader::builder(&ours).build().unwrap();
        let mut value = reader.read_value(&mut &record[..]).unwrap();
        let Value::Record(fields) = &mut value else { panic!("{value:?}") };
        let Some((_, Value::Record(payload))) = fields.last_mut() else { panic!("no payload") };
        change(payload);
        let theirs = Schema::parse_str(schema).unwrap();
        let writer = GenericDatumWriter::builder(&theirs).build().unwrap();
        self.write_event(event, &framed(id, &writer.write_value_to_vec(value).unwrap())).await;
    }

    /// Writes an event as the release before its newest field does.
    async fn write_older(&self, event: &Event) {
        self.write_version(event, &older(), |payload| payload.retain(|(name, _)| name != "refund_amount_usd")).await;
    }
}

const REFUND: &str = r#"{"name": "refund_amount_usd", "type": ["null", "double"], "default": null}"#;

fn older() -> String {
    let ours = event_type("job.cancelled").schema_text().to_string();
    let without = ours.replace(r#"{"name": "reason", "type": "string"},"#, r#"{"name": "reason", "type": "string"}"#);
    let without = without.replace(REFUND, "");
    assert!(without.len() < ours.len() - REFUND.len());
    without
}

fn newer() -> String {
    let ours = event_type("job.cancelled").schema_text().to_string();
    let more = format!(r#"{REFUND}, {{"name": "desk", "type": ["null", "string"], "default": null}}"#);
    let newer = ours.replace(REFUND, &more).replace(r#""admin", "UNKNOWN""#, r#""admin", "robot", "UNKNOWN""#);
    assert!(newer.len() > ours.len() + 60);
    newer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_versions_of_a_schema_are_read_as_this_one() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let (old, new, own) = (event("alpha", 1), event("alpha", 2), event("alpha", 3));
    fresh.write_older(&old).await;
    fresh
        .write_version(&new, &newer(), |payload| {
            payload.push(("desk".to_owned(), Value::Union(1, Box::new(Value::String("seven".to_owned())))));
            let (_, by) = payload.iter_mut().find(|(name, _)| name == "cancelled_by").unwrap();
            *by = Value::Enum(3, "robot".to_owned());
        })
        .await;
    publish(&*fresh.kafka.publisher(), &[Outgoing { event: own, route: route_to(TOPIC, "alpha") }]).await;

    let mut inbound = within(fresh.kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap();
    let got = consume(&mut *inbound, 3).await;
    assert_eq!(sequences(&got), [1, 2, 3]);
    let payload = |n: usize| event_type("job.cancelled").decode_record(&got[n].body).unwrap().1;
    assert_eq!((&payload(0)["reason"], &payload(0)["refund_amount_usd"]), (&json!("alpha 1"), &json!(null)));
    // A symbol that this version does not know is its default; a field that it does not know is left out.
    assert_eq!((&payload(1)["reason"], &payload(1)["cancelled_by"]), (&json!("alpha 2"), &json!("UNKNOWN")));
    assert_eq!(payload(1).get("desk"), None);
    assert_eq!(payload(2)["reason"], json!("alpha 3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_be_read_is_delivered_as_such_and_nothing_waits_for_it() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let sent = event("alpha", 1);
    let record = sent.event_type.encode_record(&sent).unwrap();
    fresh.write_event(&sent, &framed(2_000_000_000, &record)).await;
    fresh.write_event(&sent, b"{\"not\": \"framed\"}").await;
    fresh.write_older(&sent).await;
    let mut inbound = within(fresh.kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap();
    let got = consume(&mut *inbound, 3).await;

    let why = |n: usize| got[n].headers.as_ref().unwrap_err();
    assert!(
        why(0).contains("no schema with id 2000000000") && why(0).contains(&sent.event_id.to_string()),
        "{}",
        why(0)
    );
    assert_eq!(got[0].body, framed(2_000_000_000, &record));
    assert!(why(1).contains("Confluent's wire format"), "{}", why(1));
    assert_eq!(of(&got[2]).1, 1);
}

async fn expect_nothing(inbound: &mut dyn Inbound) {
    let waited = tokio::time::timeout(Duration::from_millis(1500), inbound.receive(10)).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_away_or_refuses_us_pauses_and_nothing_is_lost() {
    let Some(site) = Site::find() else { return };
    let proxy = Proxy::start(&site.registry_address(), Mode::Forward).await;
    let behind = site.registry_at(proxy.port());
    let fresh =
        Fresh::with(site, &[("kafka.schema_registry_url", &behind), ("kafka.schema_registry_timeout", "1s")]).await;
    fresh.write_older(&event("alpha", 1)).await;
    let mut inbound = within(fresh.kafka.subscriber().subscribe(&consumer("reader"))).await.unwrap();
    for mode in [Mode::Cut, Mode::Answer(401), Mode::Answer(500), Mode::Answer(404)] {
        proxy.set(mode);
        expect_nothing(&mut *inbound).await;
    }
    // What was asked for before goes on being written.
    publish(&*fresh.kafka.publisher(), &[Outgoing { event: event("alpha", 2), route: route_to(TOPIC, "alpha") }]).await;
    proxy.set(Mode::Forward);
    assert_eq!(sequences(&consume(&mut *inbound, 2).await), [1, 2]);
    // Nor is a schema asked for again that was read with before.
    proxy.set(Mode::Cut);
    fresh.write_older(&event("alpha", 3)).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [3]);
}
