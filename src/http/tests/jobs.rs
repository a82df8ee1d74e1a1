//! Submitting, listing, reading and ending jobs.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::*;
use crate::domain::Id;
use crate::domain::job::Job;
use crate::telemetry::metrics::Accepted;

#[tokio::test]
async fn a_submission_is_answered_with_the_job_and_its_place() {
    let gateway = Gateway::start().await;
    let body = json!({
        "agent": "AnomalyDetection",
        "dataset_id": "night-1.csv",
        "name": "First night",
        "tacc_system": "frontera",
        "priority": "high",
        "params": { "threshold": 3.5 },
        "resource_request": { "gpu_count_total": 4, "wall_time_minutes": 90 },
        "max_retries": 2
    });
    let reply = gateway.post("/api/v1/jobs", body).send().await;
    assert_eq!(reply.status, StatusCode::CREATED);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("idempotent-replay"), None);
    let job = reply.json();
    assert_eq!(reply.header("location"), Some(&*format!("/api/v1/jobs/{}", job["id"].as_str().unwrap())));
    for (field, value) in [
        ("user_id", json!("ada")),
        ("status", json!("QUEUED")),
        ("runner", json!("process")),
        ("priority", json!("high")),
        ("tacc_system", json!("frontera")),
        ("params", json!({ "threshold": 3.5 })),
        ("attempt", json!(1)),
        ("max_retries", json!(2)),
        ("estimated_cost_usd", json!(2.1)),
        ("progress", json!(null)),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    let read = gateway.get(reply.header("location").unwrap()).send().await.ok();
    assert_eq!(read, job);
    assert_eq!(gateway.metrics.accepted[Accepted::Job].get(), 1);
    // Two events, and no more: job.submitted and the command.
    assert_eq!(gateway.written().await, (1, 2));
}

#[tokio::test]
async fn a_repeat_with_a_key_gets_the_same_bytes_and_writes_nothing() {
    let gateway = Gateway::start().await;
    let submit = |body: &'static str| {
        let call = gateway.call(Method::POST, "/api/v1/jobs").header("content-type", "application/json");
        call.header("idempotency-key", "night-1").body(body)
    };
    let body = r#"{"agent":"external","dataset_id":"a"}"#;
    let first = submit(body).send().await;
    assert_eq!(first.status, StatusCode::CREATED);
    let written = gateway.written().await;
    let again = submit(body).send().await;
    assert_eq!((again.status, &again.body), (StatusCode::CREATED, &first.body));
    assert_eq!(again.header("idempotent-replay"), Some("true"));
    assert_eq!(again.header("location"), first.header("location"));

    let problem = submit(r#"{"agent":"external","dataset_id":"b"}"#).send().await.problem(422, "key-reused");
    assert_eq!(problem["retry_safe"], false);
    // A key is its user's: somebody else's is another.
    assert_eq!(gateway.written().await, written);
    let other = submit(body).as_user("bob").send().await;
    assert_eq!(other.status, StatusCode::CREATED);
    assert_ne!(other.body, first.body);
    assert_eq!(gateway.metrics.accepted[Accepted::Job].get(), 2);
}

#[tokio::test]
async fn two_at_once_with_one_key_make_one_job() {
    let gateway = Gateway::start().await;
    let submit = || gateway.post("/api/v1/jobs", external_job()).header("idempotency-key", "k").send();
    let replies = futures_util::future::join_all((0..8).map(|_| submit())).await;
    let mut created = 0;
    for reply in &replies {
        match reply.status {
            StatusCode::CREATED => created += usize::from(reply.header("idempotent-replay").is_none()),
            StatusCode::CONFLICT => {
                assert_eq!(reply.problem(409, "key-in-flight")["retry_safe"], true);
                assert!(reply.header("retry-after").is_some());
            }
            _ => panic!("{reply:?}"),
        }
    }
    assert_eq!(created, 1);
    assert!(replies.iter().any(|reply| reply.status == StatusCode::CONFLICT), "none was in flight");
    assert_eq!(gateway.written().await.0, 1);
}

#[tokio::test]
async fn a_batch_is_all_or_nothing_unless_partial() {
    let gateway = Gateway::start().await;
    let jobs = json!({ "jobs": [
        external_job(),
        { "agent": "Oracle", "dataset_id": "d" },
        { "agent": "external", "dataset_id": 7 },
        { "agent": "external", "dataset_id": "last", "name": "last" },
    ] });
    let fields = gateway.post("/api/v1/jobs/batch", jobs.clone()).send().await.wrong_fields();
    assert_eq!(
        fields,
        [("jobs.1.agent".to_owned(), "unknown_agent".to_owned()), ("jobs.2.dataset_id".into(), "invalid_type".into())]
    );
    assert_eq!(gateway.written().await, (0, 0));

    let partial = gateway.post("/api/v1/jobs/batch?partial=true", jobs).send().await;
    assert_eq!(partial.status, StatusCode::MULTI_STATUS);
    let items = partial.json()["items"].as_array().unwrap().clone();
    let statuses: Vec<_> = items.iter().map(|item| item["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 422, 422, 201]);
    assert_eq!(items[3]["job"]["name"], "last");
    assert_eq!(items[2]["errors"][0]["field"], "dataset_id");
    assert_eq!(gateway.written().await, (2, 4));

    let all = gateway.post("/api/v1/jobs/batch", json!({ "jobs": [external_job(), external_job()] })).send().await;
    assert_eq!(all.status, StatusCode::CREATED);
    assert_eq!(all.json()["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_batch_has_bounds_and_a_shape() {
    let gateway = Gateway::start().await;
    for (body, field) in [
        (json!({ "jobs": [] }), "jobs"),
        (json!({ "jobs": vec![external_job(); 501] }), "jobs"),
        (json!({}), "jobs"),
        (json!({ "jobs": {} }), "jobs"),
        (json!({ "jobs": [external_job()], "partial": true }), "partial"),
    ] {
        let reply = gateway.post("/api/v1/jobs/batch", body).send().await;
        assert_eq!(reply.wrong_field().0, field);
    }
    let post = |body: &'static str| gateway.post("/api/v1/jobs/batch", json!(0)).body(body);
    post("{\"jobs\": [").send().await.problem(400, "malformed-body");
    post("").send().await.problem(400, "malformed-body");
    assert_eq!(gateway.written().await, (0, 0));
    let full = gateway.post("/api/v1/jobs/batch", json!({ "jobs": vec![external_job(); 500] })).send().await;
    assert_eq!(full.status, StatusCode::CREATED);
    assert_eq!(gateway.written().await.0, 500);
}

#[tokio::test]
async fn a_list_is_paged_without_holes_or_repeats() {
    let gateway = Gateway::start().await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(gateway.submitted().await);
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut path = "/api/v1/jobs?limit=3".to_owned();
    loop {
        let page = gateway.get(&path).send().await.ok();
        seen.extend(page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/jobs?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ids, "newest first");
    // A page that ends exactly at the end says so.
    assert_eq!(gateway.get("/api/v1/jobs?limit=7").send().await.ok()["next_cursor"], json!(null));
}

#[tokio::test]
async fn filters_narrow_the_list_and_the_summary() {
    let gateway = Gateway::start().await;
    let queued = gateway.submitted().await;
    let cancelled = gateway.submitted().await;
    gateway.call(Method::DELETE, &format!("/api/v1/jobs/{cancelled}")).send().await.ok();
    gateway.post("/api/v1/jobs", external_job()).as_user("bob").send().await.ok();
    let ids = async |query: &str, role: Option<Role>| {
        let call = gateway.get(&format!("/api/v1/jobs?{query}"));
        let call = if let Some(role) = role { call.as_role(role) } else { call };
        let page = call.send().await.ok();
        page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("status=QUEUED", None).await, std::slice::from_ref(&queued));
    assert_eq!(ids("status=QUEUED,CANCELLED&limit=500", None).await, [cancelled.clone(), queued.clone()]);
    assert_eq!(ids("status=RUNNING", None).await, [""; 0]);
    assert_eq!(ids(&format!("q={queued}"), None).await, std::slice::from_ref(&queued));
    assert_eq!(ids("q=anything%20at", None).await.len(), 2);
    assert_eq!(ids("user=ada", None).await.len(), 2);
    assert_eq!(ids("to=2020-01-01T00:00:00Z", None).await.len(), 0);
    assert_eq!(ids("from=2020-01-01T00:00:00%2B02:00", None).await.len(), 2);
    assert_eq!(ids("", Some(Role::Operator)).await.len(), 3);
    assert_eq!(ids("user=bob", Some(Role::Auditor)).await.len(), 1);

    let summary = gateway.get("/api/v1/jobs/summary").send().await.ok();
    let by_status = json!({ "QUEUED": 1, "RUNNING": 0, "COMPLETED": 0, "FAILED": 0, "CANCELLED": 1 });
    assert_eq!((&summary["total"], &summary["by_status"]), (&json!(2), &by_status));
    assert_eq!((&summary["success_rate"], &summary["mean_run_seconds"]), (&json!(null), &json!(null)));
    let all = gateway.get("/api/v1/jobs/summary?status=QUEUED").as_role(Role::Operator).send().await.ok();
    assert_eq!(all["total"], 2);
}

#[tokio::test]
async fn cancel_and_retry() {
    let gateway = Gateway::start().await;
    let id = gateway.submitted().await;
    let path = format!("/api/v1/jobs/{id}");
    let reply = gateway.call(Method::DELETE, &path).send().await;
    assert_eq!((reply.status, reply.json()["status"].clone()), (StatusCode::ACCEPTED, json!("CANCELLED")));
    let written = gateway.written().await;
    assert_eq!(gateway.call(Method::DELETE, &path).send().await.status, StatusCode::ACCEPTED, "a repeat");
    assert_eq!(gateway.written().await, written);

    let failed = gateway.claimed().await;
    let report = json!({ "attempt": 1, "status": "FAILED", "error": { "code": "oom", "message": "out of memory" } });
    gateway.post(&format!("/api/v1/jobs/{failed}/status"), report).as_worker("w").send().await.ok();
    let reply = gateway.call(Method::POST, &format!("/api/v1/jobs/{failed}/retry")).send().await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    let job: Job = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((job.attempt, job.status.as_str()), (2, "QUEUED"));
}

#[tokio::test]
async fn an_operator_cancels_for_others() {
    let gateway = Gateway::start().await;
    let id = gateway.submitted().await;
    let reply = gateway.call(Method::DELETE, &format!("/api/v1/jobs/{id}")).as_role(Role::Operator).send().await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    let events = gateway.get(&format!("/api/v1/jobs/{id}/events")).send().await.ok();
    let last = events["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["event_type"], &last["payload"]["cancelled_by"]), (&json!("job.cancelled"), &json!("admin")));
}

#[tokio::test]
async fn what_follows_from_a_request_carries_its_trace() {
    let gateway = Gateway::start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    gateway.post("/api/v1/jobs", external_job()).header("traceparent", &traceparent).send().await.ok();
    let request_id = Id::new().to_string();
    gateway.post("/api/v1/jobs", external_job()).header("x-request-id", &request_id).send().await.ok();
    gateway.post("/api/v1/jobs", external_job()).header("traceparent", "00-nonsense-01").send().await.ok();
    let events = gateway.get("/api/v1/events?type=job.submitted").send().await.ok();
    let correlation = |index: usize| events["items"][index]["correlation_id"].as_str().unwrap().to_owned();
    assert_eq!(correlation(2).replace('-', ""), trace);
    assert_eq!(correlation(1), request_id);
    assert!(correlation(0).parse::<Id>().is_ok());
}

#[tokio::test]
async fn the_agents_with_their_datasets() {
    let gateway = Gateway::start().await;
    let agents = gateway.get("/api/v1/agents").send().await.ok();
    let names: Vec<&str> = agents["items"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["AnomalyDetection", "external"]);
    let local = &agents["items"][0];
    assert!(local["datasets"].as_array().unwrap().iter().any(|set| set["id"] == "night-1.csv"), "{local}");
    assert_eq!(local["params_schema"]["required"], json!(["threshold"]));
    assert_eq!((&agents["items"][1]["any_dataset"], &agents["items"][1]["datasets"]), (&json!(true), &json!([])));
}
