//! The ledger over HTTP: what is owed, done, and skipped.

use serde_json::json;

use super::*;
use crate::domain::Broker;
use crate::domain::Timestamp;
use crate::domain::event::Encoding;
use crate::store::{DeliveryClaim, LegMark, LegState, StoredMessage, Unit, Verdict};

fn leg<'a>(event: &'a Value, name: &str) -> &'a Value {
    let legs = event["legs"].as_array().unwrap();
    legs.iter().find(|leg| leg["name"] == name).unwrap_or_else(|| panic!("{name} in {event}"))
}

#[tokio::test]
async fn every_leg_of_every_event_of_a_job() {
    let gateway = Gateway::start().await;
    let job = gateway.submitted().await;
    let page = gateway.get(&format!("/api/v1/jobs/{job}/deliveries")).send().await.ok();
    let items = page["items"].as_array().unwrap();
    let types: Vec<&str> = items.iter().map(|item| item["event_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["job.submitted", "SubmitJobRequested"]);
    let (submitted, command) = (&items[0], &items[1]);
    let names: Vec<&str> =
        submitted["legs"].as_array().unwrap().iter().map(|leg| leg["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["rabbitmq", "kafka", "audit", "metrics"], "brokers, then the consumers that take this type");
    assert_eq!(
        leg(submitted, "rabbitmq"),
        &json!({
            "kind": "broker", "name": "rabbitmq", "target": "job.events job.submitted", "state": "pending", "attempts": 0,
            "position": null, "updated_at": leg(submitted, "rabbitmq")["updated_at"], "next_at": null,
            "last_error": null, "reason": null
        })
    );
    assert_eq!(leg(submitted, "audit")["state"], "pending");
    let nats = leg(command, "nats");
    assert_eq!((&nats["state"], &nats["reason"]), (&json!("skipped"), &json!("claimed through the worker API")));
    assert_eq!(nats["target"], "commands.job.submit.external");
}

#[tokio::test]
async fn legs_as_they_are_marked() {
    let gateway = Gateway::start().await;
    let job = gateway.submitted().await;
    let event =
        gateway.store.events(&EventFilter::default(), Page { before: None, limit: 9 }).await.unwrap().pop().unwrap();
    let now = Timestamp::now();
    let mark = |broker, state, attempts, offset: Option<i64>, error: Option<&str>| LegMark {
        position: event.position,
        broker,
        state,
        attempts,
        partition: offset.map(|_| 3),
        offset,
        at: now,
        next_at: (state == LegState::Pending).then(|| now.plus_ms(2_000)),
        error: error.map(str::to_owned),
        skip: None,
    };
    let marks = vec![
        mark(Broker::Kafka, LegState::Done, 1, Some(1234), None),
        mark(Broker::Rabbitmq, LegState::Pending, 2, None, Some("connection refused")),
    ];
    let message =
        StoredMessage { headers: None, encoding: Encoding::Json, body: Bytes::new(), position: "here".into() };
    let claim = |consumer: &str, verdict| DeliveryClaim {
        consumer: consumer.into(),
        event_id: event.event_id,
        key: job.as_str().into(),
        sequence: 1,
        ordered: true,
        from_backlog: false,
        verdict,
        message: Some(message.clone()),
        at: now,
    };
    let failed = Verdict::Failed { error: "disk full".into(), attempts: 7, retry_at: None };
    let units = vec![
        Unit { marks, ..Unit::default() },
        Unit { delivery: Some(claim("metrics", Verdict::Done)), ..Unit::default() },
        Unit { delivery: Some(claim("audit", failed)), ..Unit::default() },
    ];
    gateway.store.commit(Arc::new(units)).await.unwrap();

    let one = gateway.get(&format!("/api/v1/events/{}/deliveries", event.event_id)).send().await.ok();
    assert_eq!((one["items"].as_array().unwrap().len(), &one["next_cursor"]), (1, &json!(null)));
    let item = &one["items"][0];
    let kafka = leg(item, "kafka");
    assert_eq!(
        (&kafka["state"], &kafka["position"], &kafka["attempts"]),
        (&json!("done"), &json!("3/1234"), &json!(1))
    );
    let rabbitmq = leg(item, "rabbitmq");
    assert_eq!((&rabbitmq["state"], &rabbitmq["last_error"]), (&json!("retrying"), &json!("connection refused")));
    assert_eq!(rabbitmq["next_at"], now.plus_ms(2_000).to_string());
    assert_eq!(leg(item, "metrics")["state"], "done");
    let audit = leg(item, "audit");
    assert_eq!(
        (&audit["state"], &audit["attempts"], &audit["last_error"]),
        (&json!("dead"), &json!(7), &json!("disk full"))
    );
}

#[tokio::test]
async fn a_long_ledger_is_paged_in_order() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    for progress in 1..=6 {
        let report = json!({ "attempt": 1, "status": "RUNNING", "progress": f64::from(progress) / 10.0 });
        gateway.post(&format!("/api/v1/jobs/{job}/status"), report).as_worker("w").send().await.ok();
    }
    let mut path = format!("/api/v1/jobs/{job}/deliveries?limit=3");
    let (mut pages, mut ids) = (0, Vec::new());
    loop {
        let page = gateway.get(&path).send().await.ok();
        pages += 1;
        ids.extend(page["items"].as_array().unwrap().iter().map(|item| item["event_id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/jobs/{job}/deliveries?limit=3&cursor={cursor}");
    }
    let mut all: Vec<String> = gateway.get("/api/v1/events?limit=500").send().await.ok()["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["event_id"].as_str().unwrap().to_owned())
        .collect();
    all.reverse();
    assert_eq!((pages, ids), (3, all));
}
