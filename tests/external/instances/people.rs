//! Users and workers of a gateway, over REST.

use std::collections::BTreeSet;
use std::time::Duration;

use event_gateway::client::Api;
use event_gateway::domain::Timestamp;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::runtime::runtime;

/// A call that takes longer has failed.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Somebody who calls this gateway.
pub async fn signed_in(gateway: &Gateway, user: &str, role: &str) -> Api {
    let api = Api::new(gateway.url().parse().unwrap(), LIMIT).unwrap();
    let session: Value = api.json(api.post("session/dev", &json!({ "user": user, "role": role }))).await.unwrap();
    api.with_token(session["token"].as_str().unwrap())
}

/// A job of an external agent.
pub fn external(agent: &str) -> Value {
    json!({ "agent": agent, "dataset_id": "d" })
}

/// Submits so many of a job, at once.
pub async fn submitted(user: &Api, job: &Value, jobs: usize) -> BTreeSet<String> {
    let answer: Value = user.json(user.post("jobs/batch", &json!({ "jobs": vec![job; jobs] }))).await.unwrap();
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// Somebody submits so many of a job, at once. Their ids.
pub fn ada_submits(gateway: &Gateway, job: &Value, jobs: usize) -> BTreeSet<String> {
    let runtime = runtime();
    runtime.block_on(async { submitted(&signed_in(gateway, "ada", "user").await, job, jobs).await })
}

/// Submits so many jobs, and claims them.
pub async fn claimed(user: &Api, worker: &Api, agent: &str, jobs: usize) -> Vec<Claimed> {
    let submitted = submitted(user, &external(agent), jobs).await;
    let body = json!({ "agents": [agent], "max": jobs });
    let answer: Value = worker.json(worker.post("worker/claim", &body)).await.unwrap();
    let items = answer["items"].as_array().unwrap();
    let claimed: Vec<Claimed> = items.iter().map(Claimed::of).collect();
    assert_eq!(claimed.iter().map(|job| job.id.clone()).collect::<BTreeSet<_>>(), submitted);
    claimed
}

/// A job that a worker has claimed.
pub struct Claimed {
    pub id: String,
    attempt: u64,
}

impl Claimed {
    fn of(answered: &Value) -> Self {
        Self { id: answered["id"].as_str().unwrap().to_owned(), attempt: answered["attempt"].as_u64().unwrap() }
    }

    /// Each progress of a job is another event.
    pub async fn progresses(&self, worker: &Api, progress: f64) {
        self.report(worker, "status", json!({ "status": "RUNNING", "progress": progress })).await;
    }

    pub async fn completes(&self, worker: &Api) {
        self.report(worker, "status", json!({ "status": "COMPLETED" })).await;
    }

    /// It is not tried again by itself.
    pub async fn fails(&self, worker: &Api) {
        let error = json!({ "code": "on_purpose", "message": "on purpose" });
        self.report(worker, "status", json!({ "status": "FAILED", "error": error })).await;
    }

    pub async fn is_sampled(&self, worker: &Api) {
        let sample = json!({
            "sample_timestamp": Timestamp::now(),
            "sample_interval_seconds": 1,
            "metrics": { "cpu_utilization_percent": 50 },
        });
        self.report(worker, "metrics", json!({ "samples": [sample] })).await;
    }

    async fn report(&self, worker: &Api, what: &str, mut body: Value) {
        body["attempt"] = json!(self.attempt);
        let request = worker.post(&Api::path(&["jobs", &self.id, what]), &body);
        worker.bytes(request).await.unwrap_or_else(|error| panic!("{what} of {}: {error}", self.id));
    }
}
