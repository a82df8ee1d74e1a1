//! The worker API from claim to end.

use axum::http::StatusCode;
use serde_json::json;

use super::*;

#[tokio::test]
async fn a_job_from_claim_to_end() {
    let gateway = Gateway::start().await;
    let id = gateway.submitted().await;
    let claim =
        || gateway.post("/api/v1/worker/claim", json!({ "max": 10, "agents": ["external"] })).as_worker("w").send();
    let claimed = claim().await.ok();
    let job = &claimed["items"][0];
    assert_eq!((&job["id"], &job["attempt"], &job["cancel"]), (&json!(id), &json!(1), &json!(false)));
    assert_eq!(
        (&job["agent"], &job["dataset_id"], &job["params"]),
        (&json!("external"), &json!("anything at all"), &json!({}))
    );
    assert_eq!(job["resource_request"]["num_nodes"], 1);
    assert!(job["lease_until"].is_string());
    assert_eq!(claim().await.ok()["items"], json!([]), "it is leased");

    let post = |path: &str, body: Value| gateway.post(&format!("/api/v1/jobs/{id}/{path}"), body).as_worker("w").send();
    let beat = post("heartbeat", json!({ "attempt": 1 })).await;
    assert_eq!(beat.status, StatusCode::ACCEPTED);
    assert!(beat.json()["lease_until"].as_str() >= job["lease_until"].as_str());

    let running = json!({ "attempt": 1, "status": "RUNNING", "progress": 0.25, "external_job_id": "slurm-77" });
    assert_eq!(post("status", running.clone()).await.status, StatusCode::ACCEPTED);
    let written = gateway.written().await;
    assert_eq!(post("status", running).await.status, StatusCode::ACCEPTED, "a repeat");
    assert_eq!(gateway.written().await, written);

    let sample = |at: &str, cpu: f64| json!({ "sample_timestamp": at, "sample_interval_seconds": 10.0, "metrics": { "cpu_utilization_percent": cpu } });
    let samples = json!({ "attempt": 1, "samples": [sample("2026-11-21T09:30:00Z", 20.0), sample("2026-11-21T09:30:10Z", 40.0)] });
    assert_eq!(post("metrics", samples).await.status, StatusCode::ACCEPTED);

    let path = format!("/api/v1/jobs/{id}");
    let asked = gateway.call(axum::http::Method::DELETE, &path).send().await;
    assert_eq!((asked.status, asked.json()["status"].clone()), (StatusCode::ACCEPTED, json!("RUNNING")));
    assert_eq!(post("heartbeat", json!({ "attempt": 1 })).await.ok()["cancel"], true);
    assert_eq!(post("status", json!({ "attempt": 1, "status": "CANCELLED" })).await.status, StatusCode::ACCEPTED);
    let job = gateway.get(&path).send().await.ok();
    assert_eq!((&job["status"], &job["external_job_id"]), (&json!("CANCELLED"), &json!("slurm-77")));

    let series = gateway.get(&format!("{path}/metrics?step=60")).send().await.ok();
    assert_eq!(series["step_seconds"], 60);
    assert_eq!(series["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&series["items"][0]["t"], &series["items"][0]["cpu_utilization_percent"]),
        (&json!("2026-11-21T09:30:00.000Z"), &json!(30.0))
    );
}

#[tokio::test]
async fn a_completed_job_counts_in_the_summary() {
    let gateway = Gateway::start().await;
    let id = gateway.claimed().await;
    for status in [
        json!({ "attempt": 1, "status": "RUNNING" }),
        json!({ "attempt": 1, "status": "COMPLETED", "result": { "output_location": "/out" } }),
    ] {
        gateway.post(&format!("/api/v1/jobs/{id}/status"), status).as_worker("w").send().await.ok();
    }
    let summary = gateway.get("/api/v1/jobs/summary").send().await.ok();
    assert_eq!(summary["success_rate"], 1.0);
    assert!(summary["mean_run_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0));
}

#[tokio::test]
async fn only_one_of_many_workers_gets_a_job() {
    let gateway = Gateway::start().await;
    let mut wanted = Vec::new();
    for _ in 0..10 {
        wanted.push(gateway.submitted().await);
    }
    let workers = ["a", "b", "c", "d"];
    let claims = workers
        .iter()
        .map(|worker| gateway.post("/api/v1/worker/claim", json!({ "max": 10 })).as_worker(worker).send());
    let mut got: Vec<String> = Vec::new();
    for reply in futures_util::future::join_all(claims).await {
        got.extend(reply.ok()["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
    }
    got.sort();
    wanted.sort();
    assert_eq!(got, wanted);
}
