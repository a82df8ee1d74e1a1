//! Somebody who submits, whatever happens to the store and the brokers.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::runtime::runtime;
use crate::world::CLUSTER;

/// A user of the API.
pub struct User {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    jobs: String,
    token: String,
}

impl User {
    pub fn of(gateway: &Gateway) -> Self {
        let issued = gateway.run(&["token", "issue", "--user", "ada", "--role", "user"]);
        let runtime = runtime();
        let jobs = format!("{}/api/v1/jobs", gateway.url());
        Self { runtime, http: reqwest::Client::new(), jobs, token: issued.stdout.trim().to_owned() }
    }

    fn call(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        self.runtime.block_on(async {
            let answer = request.bearer_auth(&self.token).send().await.unwrap();
            (answer.status(), answer.json().await.unwrap())
        })
    }

    fn submit(&self) -> (StatusCode, Value) {
        self.call(self.http.post(&self.jobs).json(&json!({ "agent": "external", "dataset_id": "d" })))
    }

    /// So many jobs at once, whose parameters have this size, for workers that hear of them from
    /// JetStream.
    pub fn submits_batch(&self, jobs: usize, size: usize) {
        let job = json!({ "agent": CLUSTER, "dataset_id": "d", "params": { "text": "x".repeat(size) } });
        let url = format!("{}/batch", self.jobs);
        let (status, body) = self.call(self.http.post(url).json(&json!({ "jobs": vec![job; jobs] })));
        assert_eq!(status, StatusCode::CREATED, "{body:#}");
    }

    fn read(&self, job: &str) -> (StatusCode, Value) {
        self.call(self.http.get(format!("{}/{job}", self.jobs)))
    }

    /// Submits for so long, counted from the first refusal, and every refusal says that a repeat
    /// is safe. What was accepted.
    pub fn is_refused_for(&self, time: Duration) -> Vec<String> {
        let mut accepted = Vec::new();
        let mut end = None;
        // Pages that have room take some more.
        let limit = Instant::now() + Duration::from_secs(60);
        while end.is_none_or(|end| Instant::now() < end) {
            assert!(Instant::now() < limit, "nothing is refused");
            let (status, body) = self.submit();
            if status == StatusCode::CREATED {
                accepted.push(body["id"].as_str().unwrap().to_owned());
            } else {
                assert_eq!((status.as_u16(), &body["retry_safe"]), (503, &json!(true)), "{body:#}");
                end = end.or(Some(Instant::now() + time));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        accepted
    }

    /// What was accepted is there.
    pub fn finds(&self, accepted: &[String]) {
        for job in accepted {
            let (status, body) = self.read(job);
            assert_eq!(status, StatusCode::OK, "{job} was accepted: {body:#}");
        }
    }
}
