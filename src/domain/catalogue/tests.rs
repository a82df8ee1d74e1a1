//! The built-in catalogue, and what encoding and decoding promise.

use std::sync::{Arc, LazyLock};

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::json;

use super::conform::samples;
use super::*;
use crate::domain::job::{JobStatus, Priority, ResourceRequest, RunnerKind, TaccSystem};
use crate::domain::payload::*;
use crate::domain::{EventDraft, Id, Timestamp};

static CATALOGUE: LazyLock<Arc<Catalogue>> =
    LazyLock::new(|| Catalogue::load(&[]).unwrap_or_else(|errors| panic!("{errors:#?}")));

fn get(name: &str) -> &'static Arc<EventType> {
    CATALOGUE.get(name).unwrap_or_else(|| panic!("no type {name}"))
}

fn submitted() -> JobSubmitted {
    JobSubmitted {
        job_id: Id::new(),
        job_name: "M31, band 4".to_owned(),
        agent: "AlphaCal".to_owned(),
        dataset_id: "vla-2026-113".to_owned(),
        tacc_system: TaccSystem::Frontera,
        resource_request: ResourceRequest::default(),
        estimated_cost_usd: 1.4,
        priority: Priority::High,
    }
}

fn submit_requested() -> SubmitJobRequested {
    SubmitJobRequested {
        job_id: Id::new(),
        attempt: 2,
        runner: RunnerKind::External,
        agent: "AlphaCal".to_owned(),
        dataset_id: "vla-2026-113".to_owned(),
        params: r#"{"threshold":5,"runner":"no"}"#.to_owned(),
        resource_request: ResourceRequest::default(),
        wall_time_minutes: 60,
    }
}

/// A committed event with everything set that may be.
fn event(event_type: &Arc<EventType>, payload: EncodedPayload) -> Event {
    let aggregate_id = event_type.aggregate_id(&payload.json).unwrap();
    Event {
        position: 77,
        sequence: 3,
        user_offset: event_type.audience.user.then_some(41),
        draft: EventDraft {
            event_id: Id::new(),
            event_type: event_type.clone(),
            aggregate_id,
            user_id: "ada".into(),
            occurred_at: Timestamp(1_795_253_400_123),
            correlation_id: Id::new(),
            causation_id: Some(Id::new()),
            tags: vec!["night".to_owned(), "übung".to_owned()],
            payload,
            traceparent: None,
            skip: Vec::new(),
        },
    }
}

fn first_sample(event_type: &EventType) -> EncodedPayload {
    let sample = samples(event_type.payload_schema()).next().unwrap();
    event_type.encode_json(sample.to_string().into()).unwrap()
}

fn routes(event_type: &EventType, payload: &EncodedPayload) -> Vec<(Broker, String, String, bool)> {
    let id = event_type.aggregate_id(&payload.json).unwrap();
    let routes = event_type.routes(&id, &payload.json);
    assert_eq!(routes.iter().map(|route| route.broker).collect::<Vec<_>>(), event_type.brokers());
    routes.into_iter().map(|r| (r.broker, r.target.to_string(), r.key.to_string(), r.optional)).collect()
}

#[test]
fn the_built_in_catalogue_has_no_contradiction() {
    assert_eq!(CATALOGUE.types().count(), crate::domain::payload::BUILT_IN.len());
    assert!(CATALOGUE.types().all(|event_type| event_type.ingest.is_empty()), "nobody may post a built-in type");
    assert!(CATALOGUE.get("job.unheard.of").is_none());
}

#[test]
fn a_status_change_is_routed_by_its_job() {
    let payload = JobStatusChanged {
        job_id: Id::new(),
        previous_status: JobStatus::Queued,
        new_status: JobStatus::Running,
        attempt: 1,
        progress: None,
        reason: None,
        transition_time_ms: Some(7),
    };
    let id = payload.job_id.to_string();
    let event_type = get("job.status.changed");
    let encoded = event_type.encode(&payload).unwrap();
    assert_eq!(
        routes(event_type, &encoded),
        [
            (Broker::Rabbitmq, "job.events".to_owned(), format!("job.{id}.status"), false),
            (Broker::Kafka, "job-lifecycle".to_owned(), id, false),
        ]
    );
}

#[test]
fn a_command_is_routed_by_its_runner() {
    let payload = submit_requested();
    let id = payload.job_id.to_string();
    let event_type = get("SubmitJobRequested");
    let encoded = event_type.encode(&payload).unwrap();
    assert_eq!(
        routes(event_type, &encoded),
        [
            (Broker::Kafka, "commands".to_owned(), id.clone(), false),
            (Broker::Nats, "commands.job.submit.external".to_owned(), id, false),
        ]
    );
    assert_eq!(&*CATALOGUE.stream_of("commands.job.submit.external").unwrap().name, "COMMANDS_JOB");
    assert_eq!(&*CATALOGUE.stream_of("commands.job.cancel").unwrap().name, "COMMANDS_JOB_CANCEL");
}

#[test]
fn a_record_is_read_back_as_headers_json_and_type() {
    let event_type = get("job.submitted");
    let payload = submitted();
    let event = event(event_type, event_type.encode(&payload).unwrap());
    let record = event_type.encode_record(&event).unwrap();

    let (headers, json) = event_type.decode_record(&record).unwrap();
    assert_eq!(headers, event.headers());
    assert_eq!(json, serde_json::from_slice::<serde_json::Value>(&event.payload.json).unwrap());
    assert_eq!(event_type.decode_payload::<JobSubmitted>(&record).unwrap(), payload);
    assert_eq!(event_type.json_to_payload::<JobSubmitted>(&event.payload.json).unwrap(), payload);
}

/// Envelope and payload written apart must be what any Avro library writes for the whole.
#[test]
fn a_record_is_what_a_plain_encoding_of_the_whole_gives() {
    for event_type in CATALOGUE.types() {
        let event = event(event_type, first_sample(event_type));
        let ours = event_type.encode_record(&event).unwrap();

        let schema = Schema::parse_str(event_type.schema_text()).unwrap();
        let text = |text: &str| Value::String(text.to_owned());
        let envelope = vec![
            ("event_id", Value::Uuid(event.event_id.0)),
            ("event_type", text(&event_type.name)),
            ("occurred_at", Value::TimestampMillis(event.occurred_at.0)),
            ("correlation_id", Value::Uuid(event.correlation_id.0)),
            ("causation_id", Value::Union(1, Box::new(Value::Uuid(event.causation_id.unwrap().0)))),
            ("aggregate_type", text(&event_type.aggregate)),
            ("aggregate_id", text(&event.aggregate_id)),
            ("sequence", Value::Long(3)),
            ("user_id", text("ada")),
            ("schema_version", Value::Int(1)),
            ("tags", Value::Array(vec![text("night"), text("übung")])),
        ];
        let mut whole: Vec<_> = envelope.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let payload = serde_json::from_slice(&event.payload.json).unwrap();
        let payload = json::to_avro(event_type.payload_schema(), &payload, json::Path::Root, &mut Vec::new());
        let offsets = event.offsets();
        // A map has no order: only with one entry at most are the bytes the same.
        for kept in offsets.iter().map(Some).chain([None]) {
            let mut event = event.clone();
            if kept != offsets.iter().find(|(channel, _)| channel.to_string().starts_with("job:")) || offsets.len() == 1
            {
                continue;
            }
            event.user_offset = None;
            let ours = event_type.encode_record(&event).unwrap();
            let map = kept.into_iter().map(|(channel, offset)| (channel.to_string(), Value::Long(*offset))).collect();
            let mut whole = whole.clone();
            whole.push(("offsets".to_owned(), Value::Map(map)));
            whole.push(("payload".to_owned(), payload.clone()));
            let writer = GenericDatumWriter::builder(&schema).build().unwrap();
            assert_eq!(writer.write_value_to_vec(Value::Record(whole)).unwrap(), ours, "{}", event_type.name);
        }
        let map = offsets.iter().map(|(channel, offset)| (channel.to_string(), Value::Long(*offset))).collect();
        whole.push(("offsets".to_owned(), Value::Map(map)));
        whole.push(("payload".to_owned(), payload));
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        let plain = writer.write_value_to_vec(Value::Record(whole)).unwrap();
        assert_eq!(plain.len(), ours.len(), "{}", event_type.name);
        assert_eq!(event_type.decode_record(&plain).unwrap(), event_type.decode_record(&ours).unwrap());
    }
}

#[test]
fn a_record_without_avro_is_encoded_from_its_json() {
    let event_type = get("SubmitJobRequested");
    let mut event = event(event_type, event_type.encode(&submit_requested()).unwrap());
    let fresh = event_type.encode_record(&event).unwrap();
    event.draft.payload.avro = None;
    assert_eq!(event_type.encode_record(&event).unwrap(), fresh);
}

#[test]
fn every_prefix_and_every_excess_of_a_record_is_refused() {
    for event_type in CATALOGUE.types() {
        let record = event_type.encode_record(&event(event_type, first_sample(event_type))).unwrap();
        for length in 0..record.len() {
            event_type.decode_record(&record[..length]).expect_err("cut short");
        }
        let longer = [&record[..], &[0]].concat();
        assert_eq!(event_type.decode_record(&longer).unwrap_err().field, "record");
    }
}

#[test]
fn a_record_of_another_type_or_version_is_refused() {
    let event_type = get("job.submitted");
    let record = event_type.encode_record(&event(event_type, first_sample(event_type))).unwrap();
    let error = get("job.failed").decode_record(&record).unwrap_err();
    assert_eq!(error.to_string(), "event_type: is job.submitted, not job.failed");
    let error = event_type.decode_payload::<JobCancelled>(&record).unwrap_err();
    assert_eq!(error.field, "event_type");

    let mut other = event(event_type, first_sample(event_type));
    // Nothing but an edited record can claim another version.
    other.draft.tags.clear();
    let mut bytes = event_type.encode_record(&other).unwrap().to_vec();
    let user = bytes.windows(4).position(|window| window == b"\x06ada").unwrap();
    bytes[user + 4] = 2 * 9;
    assert_eq!(event_type.decode_record(&bytes).unwrap_err().field, "schema_version");
}

#[test]
fn every_violation_is_named_by_its_dotted_field() {
    let event_type = get("job.submitted");
    let mut json = serde_json::to_value(submitted()).unwrap();
    json["job_id"] = json!("j-1");
    json["tacc_system"] = json!("summit");
    json["resource_request"]["num_nodes"] = json!(1.5);
    json["resource_request"]["cores"] = json!(4);
    json["estimated_cost_usd"] = json!("free");
    json.as_object_mut().unwrap().remove("agent");
    let violations = event_type.violations(json.to_string().as_bytes());
    let named: Vec<_> = violations.iter().map(ToString::to_string).collect();
    assert_eq!(
        named,
        [
            "job_id: must be a UUID, not \"j-1\"",
            "agent: is missing",
            "tacc_system: must be one of frontera, stampede3, lonestar6, other, not \"summit\"",
            "resource_request.cores: is not in the schema, which has num_nodes, cores_per_node, gpu_count_total, \
             memory_gb, wall_time_minutes",
            "resource_request.num_nodes: must be a whole number of 64 bits, not 1.5",
            "estimated_cost_usd: must be a number, not \"free\"",
        ]
    );
    assert_eq!(event_type.encode_json(json.to_string().into()).unwrap_err(), violations[0]);
    assert_eq!(event_type.violations(b"[]")[0].to_string(), "payload: must be an object, not an array");
    assert!(event_type.violations(b"{")[0].reason.starts_with("is not JSON"));
}

#[test]
fn json_is_brought_into_its_one_form() {
    let event_type = get("notification.sent");
    let encoded = event_type
        .encode_json(
            json!({
                "created_at": "2026-11-21T10:30:00+01:00", "read_status": "unread", "channel": "in_app",
                "subject": "s", "message": "m", "recipient_user_id": "ada",
                "notification_id": "019A0000-0000-7000-8000-00000000000A",
            })
            .to_string()
            .into(),
        )
        .unwrap();
    assert_eq!(
        std::str::from_utf8(&encoded.json).unwrap(),
        concat!(
            r#"{"notification_id":"019a0000-0000-7000-8000-00000000000a","recipient_user_id":"ada","channel":"in_app","#,
            r#""subject":"s","message":"m","related_job_id":null,"data":null,"read_status":"unread","#,
            r#""created_at":"2026-11-21T09:30:00.000Z"}"#
        )
    );
}

#[test]
fn a_number_without_a_json_form_is_refused() {
    let mut payload = submitted();
    payload.resource_request.memory_gb = f64::NAN;
    let error = get("job.submitted").encode(&payload).unwrap_err();
    assert_eq!(error.to_string(), "resource_request.memory_gb: NaN has no JSON form");

    let mut failed = JobStatusChanged {
        job_id: Id::new(),
        previous_status: JobStatus::Running,
        new_status: JobStatus::Running,
        attempt: 1,
        progress: Some(f64::INFINITY),
        reason: None,
        transition_time_ms: None,
    };
    assert_eq!(get("job.status.changed").encode(&failed).unwrap_err().field, "progress");
    // Looks like an infinity on its way to the writer, but is a number.
    failed.progress = Some(0.5);
    failed.transition_time_ms = Some(i64::MAX);
    get("job.status.changed").encode(&failed).unwrap();
}

#[test]
fn a_symbol_this_build_does_not_know_is_an_error_for_typed_payloads() {
    let event_type = get("job.cancelled");
    let json = json!({"job_id": Id::new(), "cancelled_by": "UNKNOWN", "reason": "r"}).to_string();
    // The schema has it, for readers of newer records ...
    let encoded = event_type.encode_json(json.into()).unwrap();
    // ... but whoever acts on the payload must not guess.
    event_type.json_to_payload::<JobCancelled>(&encoded.json).unwrap_err();
    let record = event_type.encode_record(&event(event_type, encoded)).unwrap();
    event_type.decode_payload::<JobCancelled>(&record).unwrap_err();
}

/// Prints what encoding costs: `cargo test --release --lib encode_costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn encode_costs() {
    fn measure<T>(what: &str, mut work: impl FnMut() -> T) {
        const ROUNDS: u32 = 50_000;
        for _ in 0..ROUNDS / 10 {
            std::hint::black_box(work());
        }
        let start = std::time::Instant::now();
        for _ in 0..ROUNDS {
            std::hint::black_box(work());
        }
        println!("{what:>40}: {:>6} ns", start.elapsed().as_nanos() / u128::from(ROUNDS));
    }
    let event_type = get("job.submitted");
    let payload = submitted();
    let encoded = event_type.encode(&payload).unwrap();
    let event = event(event_type, encoded.clone());
    let record = event_type.encode_record(&event).unwrap();
    let id = event.aggregate_id.clone();
    println!("job.submitted: JSON {} B, record {} B", encoded.json.len(), record.len());
    measure("encode", || event_type.encode(&payload));
    measure("encode_json", || event_type.encode_json(encoded.json.clone()));
    measure("encode_record", || event_type.encode_record(&event));
    measure("decode_record", || event_type.decode_record(&record));
    measure("decode_payload", || event_type.decode_payload::<JobSubmitted>(&record));
    measure("json_to_payload", || event_type.json_to_payload::<JobSubmitted>(&encoded.json));
    measure("routes (static)", || event_type.routes(&id, &encoded.json));
    let event_type = get("SubmitJobRequested");
    let command = submit_requested();
    let encoded = event_type.encode(&command).unwrap();
    measure("SubmitJobRequested encode", || event_type.encode(&command));
    measure("SubmitJobRequested routes (one field)", || event_type.routes(&id, &encoded.json));
    measure("load", || Catalogue::load(&[]));
}
