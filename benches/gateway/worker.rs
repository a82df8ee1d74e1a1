//! Lifecycle events a second through the worker API: many workers claim jobs in batches and
//! report start, progress and end of each.

use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_gateway::domain::Role;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::Plan;
use crate::http::{Connection, post};
use crate::load::{histogram, tokens};
use crate::process::{Commits, Gateway};

/// Jobs of one claim.
const CLAIM: usize = 20;
const REPORTS: [&str; 3] = [
    r#"{"attempt":1,"status":"RUNNING","reason":"prologue has run"}"#,
    r#"{"attempt":1,"status":"RUNNING","progress":0.5}"#,
    r#"{"attempt":1,"status":"COMPLETED","result":{"output_location":"/scratch/out","result_size_bytes":1048576}}"#,
];

#[derive(Debug, Serialize, Deserialize)]
struct Work {
    address: String,
    workers: usize,
    duration: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    reports: u64,
    refused: u64,
    completed: u64,
    p50: f64,
    p99: f64,
    cpu_seconds: f64,
}

pub async fn run(plan: &Plan, data_dir: &Path) {
    let gateway = Gateway::start(data_dir).await;
    let work =
        Work { address: gateway.address.clone(), workers: 64, duration: Duration::from_secs(plan.seconds.min(20)) };
    let (before, cpu, start) = (gateway.metrics().await, gateway.cpu_seconds(), Instant::now());
    let output = tokio::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["work", &serde_json::to_string(&work).expect("plain data")])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(work.duration + Duration::from_secs(60), output).await;
    let output = output.expect("the workers end").expect("they run");
    assert!(output.status.success(), "the workers failed");
    let done: Done = serde_json::from_slice(&output.stdout).expect("a report");
    let (after, cpu, seconds) = (gateway.metrics().await, gateway.cpu_seconds() - cpu, start.elapsed().as_secs_f64());
    let commits = Commits::between(&before, &after);
    println!(
        "  {} workers, claims of {CLAIM}: {:.0} jobs/s from claim to COMPLETED, {:.0} reports/s, P50 {:.1} ms, P99 {:.1} ms, {} refused",
        work.workers,
        done.completed as f64 / seconds,
        done.reports as f64 / seconds,
        done.p50,
        done.p99,
        done.refused
    );
    println!(
        "  {:.0} events/s committed in all ({:.0} lifecycle events/s from reports); CPU a report: gateway {:.0} us, workers {:.0} us; {:.0} events a COMMIT of {:.1} ms",
        commits.events / seconds,
        4.0 * done.completed as f64 / seconds,
        cpu / done.reports as f64 * 1e6,
        done.cpu_seconds / done.reports as f64 * 1e6,
        commits.events / commits.count,
        commits.seconds / commits.count * 1e3,
    );
    gateway.stop().await;
}

/// The process that [`run`] starts.
pub fn main(work: &str) {
    let work: Work = serde_json::from_str(work).expect("work");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = tokio::task::LocalSet::new().block_on(&runtime, all(work));
    println!("{}", serde_json::to_string(&done).expect("plain data"));
}

async fn all(work: Work) -> Done {
    let tokens = tokens("bench-worker", work.workers, Role::Worker);
    let address: Rc<str> = work.address.into();
    let cpu = crate::beside::own_cpu_seconds();
    let end = Instant::now() + work.duration;
    let workers: Vec<_> =
        tokens.into_iter().map(|token| tokio::task::spawn_local(one(address.clone(), token, end))).collect();
    let mut sum = Done { reports: 0, refused: 0, completed: 0, p50: 0.0, p99: 0.0, cpu_seconds: 0.0 };
    let mut latencies = histogram();
    for worker in workers {
        let (done, own) = worker.await.expect("a worker ends well");
        sum.reports += done.reports;
        sum.refused += done.refused;
        sum.completed += done.completed;
        latencies.add(own).expect("the same bounds");
    }
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Done { p50: ms(0.5), p99: ms(0.99), cpu_seconds: crate::beside::own_cpu_seconds() - cpu, ..sum }
}

async fn one(address: Rc<str>, token: String, end: Instant) -> (Done, Histogram<u64>) {
    #[derive(Deserialize)]
    struct Claimed {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        id: String,
        attempt: u32,
    }
    let mut connection = Connection::open(&address).await;
    let mut latencies = histogram();
    let mut done = Done { reports: 0, refused: 0, completed: 0, p50: 0.0, p99: 0.0, cpu_seconds: 0.0 };
    let claim = post(&address, "/api/v1/worker/claim", &token, &format!("{{\"max\":{CLAIM}}}"));
    while Instant::now() < end {
        let (status, body) = connection.exchange(&claim).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(body));
        let claimed: Claimed = serde_json::from_slice(body).expect("claimed jobs");
        for report in REPORTS {
            for job in &claimed.items {
                assert_eq!(job.attempt, 1);
                let request = post(&address, &format!("/api/v1/jobs/{}/status", job.id), &token, report);
                let began = Instant::now();
                let (status, body) = connection.exchange(&request).await;
                latencies.saturating_record(began.elapsed().as_micros() as u64);
                if status == 202 {
                    done.reports += 1;
                    done.completed += u64::from(report == REPORTS[2]);
                } else {
                    eprintln!("{status} {}", String::from_utf8_lossy(body));
                    done.refused += 1;
                }
            }
        }
    }
    (done, latencies)
}
