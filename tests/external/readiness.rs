//! What is away is named, and does not stop the gateway from accepting.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::Gateway;
use crate::runtime::runtime;
use crate::world::{World, brokers};

fn readyz(gateway: &Gateway) -> (u16, Value) {
    let runtime = runtime();
    runtime.block_on(async {
        let answer = reqwest::get(format!("{}/readyz", gateway.url())).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    })
}

/// Its metrics, as Prometheus gets them.
pub fn scraped(gateway: &Gateway) -> String {
    let runtime = runtime();
    runtime.block_on(async { reqwest::get(format!("{}/metrics", gateway.url())).await.unwrap().text().await.unwrap() })
}

/// What a metric says of a consumer.
pub fn metric(gateway: &Gateway, name: &str, consumer: &str) -> f64 {
    let text = scraped(gateway);
    let start = format!("event_gateway_{name}{{consumer=\"{consumer}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("{name} is not there: {text}")).parse().unwrap()
}

/// What is not up, whether it holds readiness back or not.
fn not_up(gateway: &Gateway) -> Vec<String> {
    let (_, body) = readyz(gateway);
    let components = ["degraded", "missing"].into_iter().filter_map(|list| body[list].as_array()).flatten();
    components.map(|component| component["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until these components are not up, and no others.
pub fn until(gateway: &Gateway, wanted: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let found = not_up(gateway);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} are not up, instead of {wanted:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_cluster_that_is_away_is_named_and_jobs_are_accepted() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    until(&gateway, &[]);
    brokers(&["kill", "nats1", "nats2", "nats3"]);
    until(&gateway, &["nats"]);
    assert_eq!(readyz(&gateway).0, 200);
    let submitted = gateway.run(&["jobs", "submit", "--agent", "external", "--dataset", "d"]);
    assert_eq!(submitted.code, 0, "{}", submitted.stderr);
    brokers(&["start", "nats1", "nats2", "nats3"]);
    until(&gateway, &[]);
    // What waited arrives: every leg of the job becomes done.
    let job = submitted.stdout.trim().to_owned();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ledger = gateway.run(&["ledger", &job, "--output", "json"]);
        let text = ledger.json().to_string();
        if !text.contains("\"pending\"") {
            assert!(text.contains("\"done\""), "{text}");
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
