use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::Gateway;

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small.swf");
const JOBS: u64 = 40;

fn is_clean(report: &Value) {
    assert_eq!(report["submitted"], json!(JOBS), "{report:#}");
    assert_eq!(report["refused"], json!(0), "{report:#}");
    assert_eq!(report["lost"]["total"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["gaps"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["never_shown"], json!(0), "{report:#}");
}

#[test]
fn a_log_is_played_and_every_job_accounted_for() {
    let gateway = Gateway::start_fresh(&[]);
    let ended = gateway.run(&["trace", LOG, "--speedup", "2000", "--watch", "8", "--output", "json"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let report = ended.json();
    is_clean(&report);
    // As the log says: two failed, two cancelled, one unknown, which counts as finished.
    assert_eq!((&report["finished"], &report["failed"], &report["cancelled"]), (&json!(36), &json!(2), &json!(2)));
    assert_eq!(report["partial_lines"], json!(1));
    assert_eq!(report["screens"]["sockets"], json!(8));
    // 40 jobs on two screens of each of four users.
    assert_eq!(report["submit_to_screen"]["count"], json!(80));
    assert!(report["submit_to_screen"]["p99_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(report["worker_refusals"], json!(0), "{report:#}");

    // The jobs are their users', with the log's numbers.
    let listed = gateway.run(&["jobs", "list", "--owner", "swf-user-unknown", "--output", "json"]);
    let jobs = listed.json()["items"].as_array().unwrap().clone();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0]["name"], json!("small #33"));
    // The server has timed its own: acks came back for updates of joined channels.
    let measured = gateway.run(&["trace", LOG, "--speedup", "2000", "--limit", "3"]);
    assert_eq!(measured.code, 0, "{}", measured.stderr);
    assert!(measured.stdout.contains("lost                0"), "{}", measured.stdout);
}

#[test]
fn a_gateway_killed_in_the_middle_loses_nothing() {
    let settings = ["runner.external_lease=5s"];
    let mut gateway = Gateway::start_fresh(&settings);
    let arguments = ["trace", LOG, "--speedup", "150", "--watch", "8", "--settle", "30s", "--output", "json"];
    let url = gateway.url();
    let mut command = gateway.program.command(&arguments);
    let child = command.env("GATEWAY_URL", &url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let jobs = || {
        gateway.run(&["jobs", "list", "--limit", "500", "--output", "json"]).json()["items"].as_array().unwrap().len()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while jobs() < 10 {
        assert!(Instant::now() < deadline, "the trace does not submit");
        std::thread::sleep(Duration::from_millis(50));
    }
    gateway.kill_and_restart(&settings);
    let ended = child.wait_with_output().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&ended.stderr)));
    is_clean(&report);
    assert!(report["screens"]["reconnects"].as_u64().unwrap() >= 8, "{report:#}");
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn a_job_that_no_trace_submitted_is_left_alone() {
    let gateway = Gateway::start_fresh(&[]);
    let real = gateway.run(&["jobs", "submit", "--agent", "external", "--dataset", "d", "--name", "real work"]);
    let ended = gateway.run(&["trace", LOG, "--speedup", "5000", "--limit", "5", "--output", "json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.json()["foreign_jobs"], json!(1));
    let listed = gateway.run(&["jobs", "list", "--query", "real work", "--output", "json"]);
    assert_eq!(listed.json()["items"][0]["id"], json!(real.stdout.trim()));
    assert_eq!(listed.json()["items"][0]["status"], json!("QUEUED"));
}

#[test]
fn what_is_no_log_is_refused() {
    let gateway = Gateway::start_fresh(&[]);
    let path = gateway.program.file("bad.swf", "; Version: 2.2\n1 2 3\n");
    let ended = gateway.run(&["trace", path.to_str().unwrap(), "--speedup", "10"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("line 2: has 3 fields"), "{}", ended.stderr);
    assert_eq!(gateway.run(&["trace", LOG, "--speedup", "0"]).code, 2);
    assert_eq!(gateway.run(&["trace", "no-such-file", "--speedup", "10"]).code, 1);
}
