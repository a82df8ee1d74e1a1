//! A domain of one's own, added by files alone, and everything that can be wrong with them.

use std::path::PathBuf;

use serde_json::json;

use super::police::{Domain, POLICE, envelope_field, payload_fields, schema};
use super::*;

#[test]
fn a_domain_is_added_by_files_alone() {
    let catalogue = Domain::police().load().unwrap();
    let event_type = catalogue.get("officer.status.changed").unwrap();
    assert_eq!(event_type.ingest, [Role::User, Role::Operator]);
    assert_eq!(event_type.record_name(), "org.police.events.OfficerStatusChanged");
    assert_eq!(catalogue.types().count(), CATALOGUE.types().count() + 2);

    let json = json!({"badge_number": "4711", "status": "on_duty", "shift": 2, "scores": {"b": 1.0, "a": 0.5}});
    let payload = event_type.encode_json(json.to_string().into()).unwrap();
    assert_eq!(
        std::str::from_utf8(&payload.json).unwrap(),
        r#"{"badge_number":"4711","status":"on_duty","remark":null,"districts":[],"scores":{"a":0.5,"b":1.0},"shift":2}"#
    );
    let event = event(event_type, payload);
    assert_eq!(&*event.aggregate_id, "4711");
    let routes = event_type.routes(&event.aggregate_id, &event.payload.json);
    assert_eq!((&*routes[0].target, &*routes[0].key), ("police.events", "officer.on_duty.changed"));
    assert_eq!((&*routes[1].target, &*routes[1].key), ("officers", "4711"));

    let (headers, read) = event_type.decode_record(&event_type.encode_record(&event).unwrap()).unwrap();
    assert_eq!(headers.schema_version, 3);
    assert_eq!(read, serde_json::from_slice::<serde_json::Value>(&event.payload.json).unwrap());
    assert!(event.offsets().is_empty());
    let stream = catalogue.stream_of("commands.officer.change-status").unwrap();
    assert_eq!(stream.kind, StreamKind::Limits { max_age: std::time::Duration::from_secs(86_400) });
}

/// Every line: what is replaced, by what, and the one error that follows.
#[test]
fn one_contradiction_in_the_catalogue_file_is_one_error() {
    let requested = "catalogue.toml: type[ChangeOfficerStatusRequested]";
    let changed = "catalogue.toml: type[officer.status.changed]";
    let cases = [
        (
            r#"kind = "topic""#,
            r#"kind = "fanout""#,
            "exchange[police.events].kind: 'fanout' is not one of topic, direct",
        ),
        ("partitions = 3", "partitions = 0", "topic[officers].partitions: must be at least 1"),
        ("retention_days = 30", "retention_days = 0", "topic[officers].retention_days: must be at least 1"),
        (
            "partitions = 3",
            "partitions = -3",
            "topic[officers]: invalid value: integer `-3`, expected u32 in `partitions`",
        ),
        (
            "partitions = 3",
            "shards = 3",
            "topic[officers]: unknown field `shards`, expected one of `name`, `partitions`, `retention_days`",
        ),
        (
            "max_age_minutes = 1440",
            "",
            "stream[COMMANDS_OFFICER].max_age_minutes: must be given, at least 1: or the stream grows for ever",
        ),
        (
            r#"kind = "limits""#,
            r#"kind = "workqueue""#,
            "stream[COMMANDS_OFFICER].max_age_minutes: a work queue keeps messages until they are acknowledged",
        ),
        (
            r#""commands.officer.>""#,
            r#""commands.officer.>", "commands.job.*""#,
            "stream[COMMANDS_OFFICER].subjects: 'commands.job.*' overlaps a subject of stream COMMANDS_JOB_CANCEL",
        ),
        (
            r#""commands.officer.>""#,
            r#""commands.officer.>", "a..b""#,
            "stream[COMMANDS_OFFICER].subjects: 'a..b' is not a NATS subject",
        ),
        (
            r#"name = "COMMANDS_OFFICER""#,
            r#"name = "COMMANDS.OFFICER""#,
            "stream[COMMANDS.OFFICER].name: JetStream allows no dot in it",
        ),
        (
            "[[topic]]",
            "[[queue]]\nname = \"q\"\n[[topic]]",
            "queue[q]: is not known; sections are exchange, topic, stream and type",
        ),
        ("[[exchange]]", "order = 3\n[[exchange]]", "order: must be a list: write [[order]]"),
        (
            r#"name = "police.events""#,
            "name = \"job.events\"\nkind = \"topic\"\n[[exchange]]\nname = \"police.events\"",
            "exchange[job.events].name: this exchange is declared twice",
        ),
        (
            r#"name = "officer.status.changed""#,
            r#"name = "job.submitted""#,
            "type[job.submitted].name: is a built-in type; choose another name",
        ),
        (
            r#"name = "officer.status.changed""#,
            r#"name = "officer status""#,
            "type[officer status].name: must be 1 to 200 letters, digits, dots, dashes or underscores",
        ),
        ("version = 3", "version = 0", "type[officer.status.changed].version: must be 1 to 2147483647"),
        (
            "version = 3",
            "version = 3\nnats = { subject = \"commands.officer.changed\" }",
            "type[officer.status.changed].nats.subject: subjects under commands. are for commands: set command = true",
        ),
        (
            "version = 3\naggregate = \"officer\"",
            "version = 3\naggregate = \"\"",
            "type[officer.status.changed].aggregate: must not be empty",
        ),
        (
            "order = \"aggregate\"\naudience",
            "order = \"total\"\naudience",
            "type[officer.status.changed].order: 'total' is not one of aggregate, none",
        ),
        (
            r#"["role:operator"]"#,
            r#"["role:operator", "world"]"#,
            "type[officer.status.changed].audience: 'world' is not one of job, user, role:operator",
        ),
        (
            r#"["role:operator"]"#,
            r#"["job"]"#,
            "type[officer.status.changed].audience: job needs an aggregate job*, not 'officer'",
        ),
        (
            r#"audience = ["role:operator"]"#,
            "",
            "type[officer.status.changed].socket_event: nobody sees this type: give it an audience or leave this out",
        ),
        (
            r#""stats_update""#,
            r#""news""#,
            "type[officer.status.changed].socket_event: 'news' is not one of job_update, job_notification, telemetry_update, stats_update, alert",
        ),
        (
            r#"["user", "operator"]"#,
            r#"["root"]"#,
            "type[officer.status.changed].ingest: unknown role 'root'; one of user, worker, operator, auditor",
        ),
        (
            r#"exchange = "police.events""#,
            r#"exchange = "police""#,
            "type[officer.status.changed].rabbitmq.exchange: no exchange 'police' is declared",
        ),
        ("{status}", "{rank}", "type[officer.status.changed].rabbitmq.key: the payload has no field 'rank'"),
        (
            "{status}",
            "{badge_number}",
            "type[officer.status.changed].rabbitmq.key: {badge_number} must be a required uuid or enum",
        ),
        (
            "{status}",
            "{status",
            "type[officer.status.changed].rabbitmq.key: 'officer.{status.changed' has an unpaired or empty brace; placeholders look like {job_id}",
        ),
        (
            "commands.officer.change-status",
            "commands.officer.{remark}",
            "type[ChangeOfficerStatusRequested].nats.subject: {remark} must be a required uuid or enum",
        ),
        (
            "commands.officer.change-status",
            "commands.officer",
            "type[ChangeOfficerStatusRequested].nats.subject: no stream takes 'commands.officer'; add it to the subjects of one",
        ),
        (
            "commands.officer.change-status",
            "commands.incident.report",
            "type[ChangeOfficerStatusRequested].nats.subject: no stream takes 'commands.incident.report'; add it to the subjects of one",
        ),
        (
            r#"["commands.officer.>"]"#,
            r#"["commands.officer.on_duty"]"#,
            "type[ChangeOfficerStatusRequested].nats.subject: no stream takes 'commands.officer.change-status'; add it to the subjects of one",
        ),
        (
            "nats = { subject = \"commands.officer.change-status\" }",
            "",
            "type[ChangeOfficerStatusRequested].nats: a command needs a NATS subject commands.{domain}.{action}",
        ),
        (
            "schema = \"change-status.avsc\"",
            "schema = \"../change-status.avsc\"",
            "type[ChangeOfficerStatusRequested].schema: '../change-status.avsc' must be the name of an .avsc file in the same directory",
        ),
    ];
    for (from, to, error) in cases {
        let mut domain = Domain::police();
        assert!(domain.catalogue.contains(from), "{from}");
        domain.catalogue = domain.catalogue.replacen(from, to, 1);
        let error =
            if error.starts_with("catalogue.toml") { error.to_owned() } else { format!("catalogue.toml: {error}") };
        let errors = domain.load().expect_err(&error);
        assert_eq!(errors.first(), Some(&error));
        // What depends on an entry that was refused may follow.
        let cascade = |error: &String| error.starts_with(requested) || error.starts_with(changed);
        assert!(errors.iter().skip(1).all(cascade), "{errors:#?}");
    }
}

#[test]
fn routes_and_order_must_agree() {
    let mut domain = Domain::police();
    domain.catalogue = POLICE
        .replace(
            r#"kafka = { topic = "officers", key = "badge_number" }"#,
            r#"kafka = { topic = "officer", key = "shift" }"#,
        )
        .replace("command = true", "")
        .replace(r#"["commands.officer.>"]"#, r#"["commands.officer.*", "commands.officer.change-status.>"]"#);
    assert_eq!(
        domain.load().unwrap_err(),
        [
            "catalogue.toml: type[ChangeOfficerStatusRequested].kafka.topic: no topic 'officer' is declared",
            "catalogue.toml: type[ChangeOfficerStatusRequested].kafka.key: must be badge_number, the aggregate's id: the type has order aggregate",
            "catalogue.toml: type[ChangeOfficerStatusRequested].kafka.key: 'shift' must be a required string, uuid or enum",
            "catalogue.toml: type[ChangeOfficerStatusRequested].command: a type named *Requested must be a command: set command = true",
            "catalogue.toml: type[ChangeOfficerStatusRequested].nats.subject: subjects under commands. are for commands: set command = true",
            "catalogue.toml: type[officer.status.changed].kafka.topic: no topic 'officer' is declared",
            "catalogue.toml: type[officer.status.changed].kafka.key: must be badge_number, the aggregate's id: the type has order aggregate",
            "catalogue.toml: type[officer.status.changed].kafka.key: 'shift' must be a required string, uuid or enum",
        ]
    );
}

#[test]
fn a_subject_goes_to_one_stream_wherever_its_placeholders_lead() {
    let with = |streams: &str| {
        let mut domain = Domain::police();
        domain.catalogue = POLICE
            .replace("commands.officer.change-status", "commands.officer.status.{status}")
            .replace(r#"subjects = ["commands.officer.>"]"#, streams);
        domain.load().map(drop).map_err(|mut errors| errors.remove(0))
    };
    assert_eq!(with(r#"subjects = ["commands.officer.status.*"]"#), Ok(()));
    let field = "catalogue.toml: type[ChangeOfficerStatusRequested].nats.subject";
    assert_eq!(
        with(r#"subjects = ["commands.officer.status.on_duty"]"#).unwrap_err(),
        format!("{field}: stream COMMANDS_OFFICER takes only a part of 'commands.officer.status.*'")
    );
    let two = "subjects = [\"commands.officer.status.on_duty\"]\nkind = \"workqueue\"\n[[stream]]\nname = \"OFF\"\n\
               subjects = [\"commands.officer.status.off_duty\"]";
    assert_eq!(
        with(two).unwrap_err(),
        format!("{field}: 'commands.officer.status.*' must go to one stream, not to COMMANDS_OFFICER, OFF")
    );
}

#[test]
fn the_aggregate_must_be_a_field_that_is_always_there() {
    for (name, reason) in [
        ("rank", "the payload has no field 'rank'"),
        ("remark", "'remark' must be a required string or uuid"),
        ("shift", "'shift' must be a required string or uuid"),
    ] {
        let mut domain = Domain::police();
        domain.catalogue = POLICE.replace("aggregate_id = \"badge_number\"", &format!("aggregate_id = \"{name}\""));
        let errors = domain.load().unwrap_err();
        assert_eq!(errors[0], format!("catalogue.toml: type[ChangeOfficerStatusRequested].aggregate_id: {reason}"));
    }
    let mut domain = Domain::police();
    domain.catalogue = POLICE.replace("\"officer\"", "\"job_shift\"").replace("[\"role:operator\"]", "[\"job\"]");
    assert_eq!(
        domain.load().unwrap_err(),
        ["catalogue.toml: type[officer.status.changed].aggregate_id: must be a uuid: the audience is a job"]
    );
}

#[test]
fn a_type_without_routes_is_refused() {
    let mut domain = Domain::police();
    let (before, last) = POLICE.split_at(POLICE.find("rabbitmq =").unwrap());
    assert!(last.contains("kafka ="));
    domain.catalogue = before.to_owned();
    assert_eq!(
        domain.load().unwrap_err(),
        ["catalogue.toml: type[officer.status.changed]: has no route: give it rabbitmq, kafka or nats"]
    );
}

#[test]
fn an_envelope_that_differs_is_refused_field_by_field() {
    let mut domain = Domain::police();
    envelope_field(&mut domain.changed, "sequence")["type"] = json!("int");
    envelope_field(&mut domain.changed, "causation_id").as_object_mut().unwrap().remove("default");
    envelope_field(&mut domain.changed, "user_id")["name"] = json!("owner");
    let payload = domain.changed["fields"].as_array_mut().unwrap().pop().unwrap();
    domain.changed["fields"].as_array_mut().unwrap().extend([json!({"name": "shard", "type": "int"}), payload]);
    assert_eq!(
        domain.load().unwrap_err(),
        [
            "status-changed.avsc: type[officer.status.changed].causation_id: must have the default null",
            "status-changed.avsc: type[officer.status.changed].sequence: must be long",
            "status-changed.avsc: type[officer.status.changed].user_id: envelope field number 9 must be this one, not 'owner'",
            "status-changed.avsc: type[officer.status.changed].shard: is no envelope field; put it into payload",
        ]
    );

    let mut domain = Domain::police();
    domain.changed["fields"].as_array_mut().unwrap().pop();
    assert_eq!(
        domain.load().unwrap_err(),
        ["status-changed.avsc: type[officer.status.changed].payload: must be the last field"]
    );
}

#[test]
fn a_payload_field_without_a_json_form_is_refused() {
    let supported = "only boolean, int, long, double, string, uuid, timestamp-millis, enum, record, array, map and \
                     [\"null\", T] have a JSON form here";
    for (field, reason) in [
        (json!({"name": "x", "type": "bytes"}), supported),
        (json!({"name": "x", "type": {"type": "int", "logicalType": "date"}}), supported),
        (json!({"name": "x", "type": "float"}), "use double"),
        (json!({"name": "x", "type": "null"}), "use [\"null\", T]"),
        (json!({"name": "x", "type": ["string", "null"]}), "the only unions are [\"null\", T], in this order"),
        (json!({"name": "x", "type": ["null", "string"]}), "an optional field must have the default null"),
        (
            json!({"name": "x", "type": {"type": "enum", "name": "E", "symbols": ["a"]}}),
            "an enum must have a default symbol (UNKNOWN), or it can never grow",
        ),
        (
            json!({"name": "x", "type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 0}),
            "the default must be an RFC 3339 time, not 0",
        ),
    ] {
        let mut fields = payload_fields();
        fields.as_array_mut().unwrap().push(field);
        let mut domain = Domain::police();
        domain.changed = schema("OfficerStatusChanged", fields);
        let error = format!("status-changed.avsc: type[officer.status.changed].payload.x: {reason}");
        assert_eq!(domain.load().unwrap_err(), [error]);
    }
}

#[test]
fn names_have_one_meaning_in_all_files() {
    let mut domain = Domain::police();
    domain.changed = schema("ChangeOfficerStatusRequested", payload_fields());
    let record = "org.police.events.ChangeOfficerStatusRequested";
    assert_eq!(
        domain.load().unwrap_err()[0],
        format!("status-changed.avsc: type[officer.status.changed].name: the record {record} belongs to another type")
    );

    let mut domain = Domain::police();
    let mut fields = payload_fields();
    fields[1]["type"]["symbols"] = json!(["on_duty", "UNKNOWN"]);
    domain.changed = schema("OfficerStatusChanged", fields);
    let error = "status-changed.avsc: type[officer.status.changed].org.police.events.OfficerStatus: is defined \
                 differently in change-status.avsc";
    assert_eq!(domain.load().unwrap_err(), [error]);
}

#[test]
fn unreadable_files_are_named() {
    let load = |dir: PathBuf| Catalogue::load(&[dir]).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
    let dir = tempfile::tempdir().unwrap();
    let errors = load(dir.path().join("nowhere"));
    assert!(errors[0].contains("nowhere/catalogue.toml: file: cannot be read: No such file"), "{errors:?}");

    std::fs::write(dir.path().join("catalogue.toml"), "[[type]\n").unwrap();
    let errors = load(dir.path().to_owned());
    assert!(errors[0].contains("catalogue.toml: syntax: TOML parse error at line 1"), "{errors:?}");

    std::fs::write(dir.path().join("catalogue.toml"), POLICE).unwrap();
    std::fs::write(dir.path().join("status-changed.avsc"), "{").unwrap();
    let errors = load(dir.path().to_owned());
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("].schema: change-status.avsc cannot be read"), "{errors:?}");
    assert!(errors[1].contains("status-changed.avsc: type[officer.status.changed].schema: is not"), "{errors:?}");
}

#[test]
fn broken_schemas_are_errors_and_never_panics() {
    let twice = json!([{"name": "badge_number", "type": "string"}, {"name": "badge_number", "type": "string"}]);
    let own = json!([
        {"name": "badge_number", "type": "string"},
        {"name": "next", "type": ["null", "org.police.events.OfficerStatusChangedPayload"], "default": null},
    ]);
    let unknown = json!([{"name": "badge_number", "type": "Badge"}]);
    for (fields, reason) in [
        (twice, "is not an Avro schema"),
        (own, "types that contain themselves are not supported"),
        (unknown, "is not an Avro schema"),
    ] {
        let mut domain = Domain::police();
        domain.changed = schema("OfficerStatusChanged", fields);
        let errors = domain.load().unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("status-changed.avsc: ") && errors[0].contains(reason), "{errors:?}");
    }
    let mut domain = Domain::police();
    domain.changed = json!("string");
    assert!(domain.load().unwrap_err()[0].contains("must be a record"));
}

/// The start-up check of the Rust types, on a schema that has drifted away from its type.
#[test]
fn a_rust_type_that_does_not_fit_its_schema_is_found() {
    let drifted = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut schema: serde_json::Value = serde_json::from_str(get("job.cancelled").schema_text()).unwrap();
        let fields = schema["fields"].as_array_mut().unwrap().last_mut().unwrap();
        change(&mut fields["type"]["fields"]);
        let schema = schema::TypeSchema::parse(&schema.to_string()).unwrap();
        let routes = route::Routes::new("job_id", &[]);
        let event_type = EventType {
            name: "job.cancelled".into(),
            version: 1,
            aggregate: "job".into(),
            order: Order::Aggregate,
            audience: Audience::default(),
            socket_event: "".into(),
            command: false,
            ingest: Vec::new(),
            aggregate_id_field: "job_id".into(),
            schema,
            templates: Vec::new(),
            routes,
        };
        let built_in = crate::domain::payload::BUILT_IN.iter().find(|b| b.name == "job.cancelled").unwrap();
        built_in.conforms(&event_type).map_err(|error| error.to_string())
    };
    assert_eq!(drifted(&|_| ()), Ok(()));
    let extra = json!({"name": "note", "type": "string"});
    let errors = [
        drifted(&|fields| fields.as_array_mut().unwrap().push(extra.clone())),
        drifted(&|fields| drop(fields.as_array_mut().unwrap().remove(2))),
        drifted(&|fields| fields.as_array_mut().unwrap().swap(0, 2)),
        drifted(&|fields| fields[2]["type"] = json!("int")),
        drifted(&|fields| fields[1]["type"]["symbols"] = json!(["user", "system", "robot", "UNKNOWN"])),
        drifted(&|fields| fields[2] = json!({"name": "reason", "type": ["null", "string"], "default": null})),
    ];
    for (error, named) in errors.iter().zip(["note", "reason", "order", "reason", "robot", "reason"]) {
        let error = error.as_ref().expect_err(named);
        assert!(error.contains(named), "{error}");
    }
}
