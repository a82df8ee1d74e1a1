//! What encoding and decoding promise.

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::json;

use super::*;
use crate::domain::job::JobStatus;
use crate::domain::payload::BUILT_IN;

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
        let mut event = event(event_type, first_sample(event_type));
        // One entry at most: those of a map have no order.
        event.user_offset = None;
        let ours = event_type.encode_record(&event).unwrap();

        let text = |text: &str| Value::String(text.to_owned());
        let payload = serde_json::from_slice(&event.payload.json).unwrap();
        let payload = json::to_avro(event_type.payload_schema(), &payload, json::Path::Root, &mut Vec::new());
        let offsets = event.offsets().into_iter();
        let whole = [
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
            ("offsets", Value::Map(offsets.map(|(channel, at)| (channel.to_string(), Value::Long(at))).collect())),
            ("payload", payload),
        ];
        let whole = Value::Record(whole.map(|(name, value)| (name.to_owned(), value)).to_vec());
        let schema = Schema::parse_str(event_type.schema_text()).unwrap();
        let plain = GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(whole).unwrap();
        assert_eq!(plain, ours, "{}", event_type.name);
    }
}

#[test]
fn a_typed_record_with_all_its_offsets_is_what_a_plain_encoding_gives() {
    #[derive(serde::Serialize)]
    struct Whole<'a> {
        event_id: Id,
        event_type: &'a str,
        occurred_at: Timestamp,
        correlation_id: Id,
        causation_id: Option<Id>,
        aggregate_type: &'a str,
        aggregate_id: &'a str,
        sequence: i64,
        user_id: &'a str,
        schema_version: i32,
        tags: &'a [String],
        offsets: BTreeMap<String, i64>,
        payload: &'a JobSubmitted,
    }
    let event_type = get("job.submitted");
    let payload = submitted();
    let event = event(event_type, event_type.encode(&payload).unwrap());
    let offsets = [(format!("job:{}", payload.job_id), 3), ("user:ada".to_owned(), 41)];
    let whole = Whole {
        event_id: event.event_id,
        event_type: "job.submitted",
        occurred_at: event.occurred_at,
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        aggregate_type: "job",
        aggregate_id: &payload.job_id.to_string(),
        sequence: 3,
        user_id: "ada",
        schema_version: 1,
        tags: &event.tags,
        offsets: offsets.into(),
        payload: &payload,
    };
    let schema = Schema::parse_str(event_type.schema_text()).unwrap();
    let writer = GenericDatumWriter::builder(&schema).human_readable(false).build().unwrap();
    assert_eq!(writer.write_ser_to_vec(&whole).unwrap(), event_type.encode_record(&event).unwrap());
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
    let error = event_type.json_to_payload::<JobCancelled>(&encoded.json).unwrap_err();
    assert_eq!(error.to_string(), "cancelled_by: unknown variant `UNKNOWN`, expected one of `user`, `system`, `admin`");
    let record = event_type.encode_record(&event(event_type, encoded)).unwrap();
    assert_eq!(event_type.decode_payload::<JobCancelled>(&record).unwrap_err(), error);
}

/// Any JSON that fits a schema.
fn any_json(schema: &Schema) -> BoxedStrategy<serde_json::Value> {
    use apache_avro::schema::Schema as S;
    match schema {
        S::Boolean => any::<bool>().prop_map_into().boxed(),
        S::Int => any::<i32>().prop_map_into().boxed(),
        // Some of them are u32 in Rust.
        S::Long => any::<u32>().prop_map_into().boxed(),
        S::Double => {
            use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
            (NEGATIVE | POSITIVE | NORMAL | SUBNORMAL | ZERO).prop_map_into().boxed()
        }
        S::String => any::<String>().prop_map_into().boxed(),
        S::Uuid(_) => any::<u128>().prop_map(|bits| json!(uuid::Uuid::from_u128(bits))).boxed(),
        // The years 1 to 9999.
        S::TimestampMillis => {
            (-62_135_596_800_000..=253_402_300_799_999_i64).prop_map(|ms| json!(Timestamp(ms))).boxed()
        }
        S::Enum(symbols) => {
            let known: Vec<_> = json::known_symbols(symbols).into_iter().map(str::to_owned).collect();
            prop::sample::select(known).prop_map_into().boxed()
        }
        S::Array(array) => prop::collection::vec(any_json(&array.items), 0..4).prop_map_into().boxed(),
        S::Map(map) => prop::collection::btree_map(any::<String>(), any_json(&map.types), 0..4)
            .prop_map(|entries| json!(entries))
            .boxed(),
        S::Union(union) => prop::option::of(any_json(schema::optional(union).unwrap())).prop_map(|v| json!(v)).boxed(),
        S::Record(record) => {
            let names: Vec<_> = record.fields.iter().map(|field| field.name.clone()).collect();
            let values: Vec<_> = record.fields.iter().map(|field| any_json(&field.schema)).collect();
            values.prop_map(move |values| names.iter().cloned().zip(values).collect()).boxed()
        }
        other => unreachable!("no payload has {other:?}"),
    }
}

fn runner() -> proptest::test_runner::TestRunner {
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
}

#[test]
fn every_built_in_payload_survives_json_and_avro() {
    for built_in in BUILT_IN {
        let event_type = get(built_in.name);
        let run = runner().run(&any_json(event_type.payload_schema()), |json| {
            (built_in.round_trip)(event_type, &json).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let event = event(event_type, event_type.encode_json(json.to_string().into()).unwrap());
            let (headers, read) = event_type.decode_record(&event_type.encode_record(&event).unwrap()).unwrap();
            prop_assert_eq!(headers, event.headers());
            prop_assert_eq!(read, json);
            Ok(())
        });
        run.unwrap_or_else(|failure| panic!("{}: {failure}", built_in.name));
    }
}

#[test]
fn a_damaged_record_is_an_error_or_another_valid_payload() {
    for event_type in CATALOGUE.types() {
        let record = event_type.encode_record(&event(event_type, first_sample(event_type))).unwrap();
        let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
        let run = runner().run(&damage, |damage| {
            let mut bytes = record.to_vec();
            damage.iter().for_each(|(at, byte)| bytes[at.index(record.len())] = *byte);
            if let Ok((_, json)) = event_type.decode_record(&bytes) {
                prop_assert_eq!(event_type.violations(json.to_string().as_bytes()), []);
            }
            Ok(())
        });
        run.unwrap_or_else(|failure| panic!("{}: {failure}", event_type.name));
    }
}

/// A name or symbol on one side only would pass a sample made from the other.
#[test]
fn the_rust_enums_have_exactly_the_symbols_of_the_schemas() {
    use crate::domain::job::{JobStatus, Priority, RunnerKind, TaccSystem};
    let mut symbols = BTreeMap::new();
    for event_type in CATALOGUE.types() {
        for (name, schema) in &event_type.schema.named {
            if let Schema::Enum(schema) = schema {
                symbols.insert(name.rsplit('.').next().unwrap(), json::known_symbols(schema));
            }
        }
    }
    let mut same = |name: &str, texts: Vec<&str>| assert_eq!(symbols.remove(name), Some(texts), "{name}");
    macro_rules! same {
        ($($name:ident),+) => { $(same(stringify!($name), $name::ALL.iter().map(|v| v.as_str()).collect());)+ };
    }
    same!(JobStatus, Priority, RunnerKind, TaccSystem, NotificationChannel, ReadStatus, Severity);
    same!(AllocationChange, ComponentStatus, AuditTarget, DataAccess, CheckResult);
    let cancelled_by = [CancelledBy::User, CancelledBy::System, CancelledBy::Admin].map(|by| json!(by));
    assert_eq!(symbols.remove("CancelledBy").map(|all| json!(all)), Some(json!(cancelled_by)));
    assert!(symbols.is_empty(), "without a Rust type: {symbols:?}");
}

/// Prints what encoding costs: `cargo test --release --lib encode_costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn encode_costs() {
    fn measure<T>(what: &str, work: impl FnMut() -> T) {
        measure_rounds(what, 50_000, work);
    }
    fn measure_rounds<T>(what: &str, rounds: u32, mut work: impl FnMut() -> T) {
        for _ in 0..rounds / 10 {
            std::hint::black_box(work());
        }
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(work());
        }
        println!("{what:>40}: {:>8} ns", start.elapsed().as_nanos() / u128::from(rounds));
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
    measure_rounds("load", 20, || Catalogue::load(&[]));
}
