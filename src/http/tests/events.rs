//! History, and taking in CloudEvents.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::*;

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn reading(id: &str, value: f64) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "/lab/7",
        "type": "lab.reading.taken",
        "time": "2026-11-21T09:30:00Z",
        "data": { "instrument_id": "spectrometer", "value": value }
    })
}

impl Gateway {
    async fn send_event(&self, event: Value) -> Reply {
        let media = if event.is_array() { BATCH } else { STRUCTURED };
        self.post("/api/v1/events", event).header("content-type", media).send().await
    }

    async fn history(&self, query: &str) -> Vec<Value> {
        self.get(&format!("/api/v1/events?{query}")).send().await.ok()["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn an_event_is_taken_in_once() {
    let gateway = Gateway::start().await;
    let first = gateway.send_event(reading("1", 2.5)).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{first:?}");
    let item = first.json()["items"][0].clone();
    assert_eq!(
        (&item["source"], &item["id"], &item["status"], &item["repeated"]),
        (&json!("/lab/7"), &json!("1"), &json!(202), &json!(false))
    );

    let again = gateway.send_event(reading("1", 2.5)).await.ok()["items"][0].clone();
    assert_eq!((&again["event_id"], &again["repeated"]), (&item["event_id"], &json!(true)));
    gateway.send_event(reading("1", 9.9)).await.problem(422, "key-reused");

    let events = gateway.history("type=lab.reading.taken").await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(event["event_id"], item["event_id"]);
    assert_eq!(
        (&event["user_id"], &event["aggregate_id"], &event["sequence"]),
        (&json!("ada"), &json!("spectrometer"), &json!(1))
    );
    assert_eq!(event["occurred_at"], "2026-11-21T09:30:00.000Z");
    assert_eq!(event["payload"], json!({ "instrument_id": "spectrometer", "value": 2.5, "note": null }));
}

#[tokio::test]
async fn binary_mode() {
    let gateway = Gateway::start().await;
    let post = || {
        gateway
            .post("/api/v1/events", json!({ "instrument_id": "spectrometer", "value": 1 }))
            .header("ce-specversion", "1.0")
            .header("ce-id", "b-1")
            .header("ce-source", "/lab/7")
            .header("ce-type", "lab.reading.taken")
            .header("ce-traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    };
    let reply = post().send().await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    let events = gateway.history("aggregate=instrument:spectrometer").await;
    assert_eq!(events[0]["correlation_id"], "4bf92f35-77b3-4da6-a3ce-929d0e0e4736");
    // The same event in another mode is the same event.
    let same = json!({ "specversion": "1.0", "id": "b-1", "source": "/lab/7", "type": "lab.reading.taken",
                       "data": { "value": 1.0, "instrument_id": "spectrometer" } });
    assert_eq!(gateway.send_event(same).await.ok()["items"][0]["repeated"], true);

    for (header, code) in
        [("ce-id", "required"), ("ce-source", "required"), ("ce-type", "required"), ("ce-specversion", "required")]
    {
        assert_eq!(post().without(header).send().await.wrong_field(), (header.into(), code.into()));
    }
    assert_eq!(post().header("ce-time", "noon").send().await.wrong_field().0, "ce-time");
    assert_eq!(post().header("ce-specversion", "0.3").send().await.wrong_field().0, "ce-specversion");
}

#[tokio::test]
async fn a_batch_is_checked_before_any_of_it_is_written() {
    let gateway = Gateway::start().await;
    let wrong = json!([reading("1", 1.0), { "specversion": "1.0", "id": "2", "source": "/lab/7", "type": "no.such", "data": {} },
                       { "specversion": "1.0", "id": "3", "source": "/lab/7", "type": "lab.reading.taken", "data": { "value": "high", "extra": 1 } }]);
    let fields: Vec<String> =
        gateway.send_event(wrong).await.wrong_fields().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["events.1.type", "events.2.data.extra", "events.2.data.instrument_id", "events.2.data.value"]);
    assert_eq!(gateway.written().await, (0, 0));

    let good = json!([reading("1", 1.0), reading("2", 2.0), reading("1", 1.0)]);
    let items = gateway.send_event(good).await.ok()["items"].clone();
    assert_eq!(items[0]["event_id"], items[2]["event_id"]);
    assert_eq!((&items[1]["repeated"], &items[2]["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(gateway.history("").await.len(), 2);

    // One of them came with other content before: it alone is refused.
    let mixed = gateway.send_event(json!([reading("2", 7.0), reading("3", 3.0)])).await;
    assert_eq!(mixed.status, StatusCode::MULTI_STATUS);
    let statuses: Vec<u64> =
        mixed.json()["items"].as_array().unwrap().iter().map(|i| i["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [422, 202]);
    let sequences: Vec<i64> = gateway.history("").await.iter().rev().map(|e| e["sequence"].as_i64().unwrap()).collect();
    assert_eq!(sequences, [1, 2, 3], "no gap where one was refused");

    assert_eq!(gateway.send_event(json!([reading("9", 1.0), reading("9", 2.0)])).await.wrong_field().0, "events.1.id");
    assert_eq!(gateway.send_event(json!([])).await.wrong_field().0, "events");
}

#[tokio::test]
async fn what_may_not_be_posted() {
    let gateway = Gateway::start().await;
    let event = |kind: &str| {
        json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": kind,
                                     "data": { "instrument_id": "d", "value": 1 } })
    };
    for kind in ["job.completed", "SubmitJobRequested", "audit.action.recorded", "lab.door.opened"] {
        gateway.send_event(event(kind)).await.problem(403, "forbidden");
    }
    let as_operator = gateway.post("/api/v1/events", event("job.completed")).header("content-type", STRUCTURED);
    as_operator.as_role(Role::Operator).send().await.problem(403, "forbidden");
    let door = gateway.post("/api/v1/events", event("lab.door.opened")).header("content-type", STRUCTURED);
    assert_eq!(door.as_role(Role::Operator).send().await.status, StatusCode::ACCEPTED);
    let written = gateway.written().await;

    for (body, field) in [
        (event("no.such.type"), "type"),
        (
            json!({ "specversion": "1.0", "id": "", "source": "/s", "type": "lab.reading.taken", "data": { "instrument_id": "d", "value": 1 } }),
            "id",
        ),
        (
            json!({ "specversion": "1.0", "id": "1", "source": "a b", "type": "lab.reading.taken", "data": { "instrument_id": "d", "value": 1 } }),
            "source",
        ),
        (json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "lab.reading.taken" }), "data"),
        (
            json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "lab.reading.taken", "data": { "instrument_id": "d", "value": "x" } }),
            "data.value",
        ),
        (
            json!({ "specversion": "2.0", "id": "1", "source": "/s", "type": "lab.reading.taken", "data": { "instrument_id": "d", "value": 1 } }),
            "specversion",
        ),
        (
            json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "lab.reading.taken", "data_base64": "AA==" , "data": { "instrument_id": "d", "value": 1 } }),
            "data_base64",
        ),
        (json!({ "id": "1", "source": "/s", "type": "t" }), "specversion"),
    ] {
        assert_eq!(gateway.send_event(body.clone()).await.wrong_field().0, field, "{body}");
    }
    let on_behalf = gateway.post("/api/v1/events", reading("1", 1.0)).header("content-type", STRUCTURED);
    let on_behalf = on_behalf.as_role(Role::Operator).header("x-on-behalf-of", "bob");
    assert_eq!(on_behalf.send().await.wrong_field().0, "X-On-Behalf-Of");
    let large = json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "lab.reading.taken",
                        "data": { "instrument_id": "d", "value": 1, "note": "n".repeat(600_000) } });
    gateway.send_event(large).await.problem(413, "event-too-large");
    assert_eq!(gateway.written().await, written);
}

#[tokio::test]
async fn the_history_is_filtered_and_paged() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    gateway
        .post(&format!("/api/v1/jobs/{job}/status"), json!({ "attempt": 1, "status": "RUNNING" }))
        .as_worker("w")
        .send()
        .await
        .ok();
    gateway.send_event(reading("1", 1.0)).await.ok();
    let types: Vec<String> = gateway
        .history(&format!("aggregate=job:{job}"))
        .await
        .iter()
        .map(|e| e["event_type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(types, ["job.status.changed", "job.submitted"], "newest first");
    assert_eq!(gateway.history("aggregate=job_command").await.len(), 1);
    assert_eq!(gateway.history("type=job.submitted").await.len(), 1);
    assert_eq!(gateway.history("until=2020-01-01T00:00:00Z").await.len(), 0);
    assert_eq!(gateway.history("since=2020-01-01T00:00:00Z").await.len(), 4);
    let page = gateway.get("/api/v1/events?limit=3").send().await.ok();
    let rest = gateway.history(&format!("limit=3&cursor={}", page["next_cursor"].as_str().unwrap())).await;
    assert_eq!((page["items"].as_array().unwrap().len(), rest.len()), (3, 1));

    let changed = &gateway.history("type=job.status.changed").await[0];
    let offsets = json!({ (format!("job:{job}")): 2, "user:ada": 2 });
    assert_eq!(changed["offsets"], offsets);
    assert_eq!(changed["payload"]["new_status"], "RUNNING");
}

#[tokio::test]
async fn a_jobs_events_in_sequence() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    for progress in [0.1, 0.2, 0.3] {
        let report = json!({ "attempt": 1, "status": "RUNNING", "progress": progress });
        gateway.post(&format!("/api/v1/jobs/{job}/status"), report).as_worker("w").send().await.ok();
    }
    let mut path = format!("/api/v1/jobs/{job}/events?limit=3");
    let mut sequences = Vec::new();
    loop {
        let page = gateway.get(&path).send().await.ok();
        sequences.extend(page["items"].as_array().unwrap().iter().map(|event| event["sequence"].as_i64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/jobs/{job}/events?limit=3&after={cursor}");
    }
    assert_eq!(sequences, [1, 2, 3, 4]);
}

#[tokio::test]
async fn the_catalogue_shows_what_may_be_posted() {
    let gateway = Gateway::start().await;
    let catalogue = gateway.get("/api/v1/catalogue").send().await.ok();
    let items = catalogue["items"].as_array().unwrap();
    let find = |name: &str| items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name}"));
    let submitted = find("job.submitted");
    assert_eq!(
        (&submitted["ingest"], &submitted["audience"], &submitted["order"]),
        (&json!([]), &json!(["job", "user"]), &json!("aggregate"))
    );
    assert_eq!(submitted["schema"]["name"], "JobSubmitted");
    assert!(
        submitted["routes"]
            .as_array()
            .unwrap()
            .contains(&json!({ "broker": "kafka", "target": "job-lifecycle", "key": "{job_id}" })),
        "{submitted}"
    );
    assert_eq!(find("lab.reading.taken")["ingest"], json!(["user", "operator"]));
    gateway
        .call(Method::GET, "/api/v1/catalogue")
        .without("authorization")
        .send()
        .await
        .problem(401, "unauthenticated");
}
