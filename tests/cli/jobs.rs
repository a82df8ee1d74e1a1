use serde_json::{Value, json};

use crate::gateway::Gateway;

const DATASET: &str = "alpha-cal/point-source-10ant.csv";

#[test]
fn a_job_is_submitted_watched_listed_and_found_in_the_ledger() {
    let gateway = Gateway::start_fresh(&[]);
    let submit = ["jobs", "submit", "--agent", "AlphaCal", "--dataset", DATASET, "--name", "first light", "--watch"];
    let ended = gateway.run(&submit);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let id = lines[0];
    assert!(lines[1].ends_with(&format!("submitted: AlphaCal on {DATASET}")), "{}", ended.stdout);
    assert!(lines.iter().any(|line| line.contains("  RUNNING  ")), "{}", ended.stdout);
    assert!(lines.last().unwrap().contains("completed in "), "{}", ended.stdout);

    // Watching what has ended shows it all, once, and ends.
    let again = gateway.run(&["jobs", "watch", id, "--output", "json"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let updates: Vec<Value> = again.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let offsets: Vec<i64> = updates.iter().map(|update| update["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (1..=updates.len() as i64).collect::<Vec<_>>());
    assert_eq!(updates.last().unwrap()["type"], json!("job.completed"));
    assert_eq!(updates.len(), lines.len() - 1);

    let listed = gateway.run(&["jobs", "list", "--status", "completed", "--agent", "AlphaCal", "--output", "json"]);
    assert_eq!(listed.json()["items"][0]["id"], json!(id));
    let none = gateway.run(&["jobs", "list", "--status", "queued", "--output", "json"]);
    assert_eq!(none.json()["items"], json!([]));
    let table = gateway.run(&["jobs", "list"]);
    assert!(table.stdout.contains("COMPLETED") && table.stdout.contains("first light"), "{}", table.stdout);

    let ledger = gateway.run(&["ledger", id, "--output", "json"]);
    assert_eq!(ledger.code, 0, "{}", ledger.stderr);
    let events = ledger.json()["items"].as_array().unwrap().clone();
    let first = events.iter().find(|event| event["event_type"] == json!("job.submitted")).unwrap();
    let brokers: Vec<&str> =
        first["legs"].as_array().unwrap().iter().map(|leg| leg["name"].as_str().unwrap()).collect();
    assert!(brokers.contains(&"rabbitmq") && brokers.contains(&"kafka"), "{first}");

    // The same by the event's id.
    let by_event = gateway.run(&["ledger", first["event_id"].as_str().unwrap(), "--output", "json"]);
    assert_eq!(by_event.json()["items"][0]["event_id"], first["event_id"]);
    assert!(gateway.stop().success());
}

#[test]
fn jobs_are_cancelled_and_failures_have_exit_codes() {
    let gateway = Gateway::start_fresh(&[]);
    let submit = |name: &str| {
        let ended = gateway.run(&["jobs", "submit", "--agent", "external", "--dataset", "anything", "--name", name]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout.trim().to_owned()
    };
    let (one, two) = (submit("one"), submit("two"));
    let cancelled = gateway.run(&["jobs", "cancel", &one, &two, "--output", "json"]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
    let watched = gateway.run(&["jobs", "watch", &one]);
    assert_eq!(watched.code, 1);
    assert!(watched.stderr.contains("the job is CANCELLED"), "{}", watched.stderr);

    let nobody = "0198c7a2-8f3e-7c30-9a55-3f1de0a4c111";
    assert_eq!(gateway.run(&["jobs", "cancel", nobody]).code, 1);
    assert_eq!(gateway.run(&["jobs", "watch", nobody]).code, 1);
    assert_eq!(gateway.run(&["ledger", nobody]).code, 1);
    let refused = gateway.run(&["jobs", "submit", "--agent", "Nobody", "--dataset", "d"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("agent: 'Nobody'"), "{}", refused.stderr);
    assert_eq!(gateway.run(&["jobs", "list", "--token", "forged"]).code, 77);
    let foreign = ["jobs", "watch", &two, "--user", "mallory", "--role", "user"];
    assert_eq!(gateway.run(&foreign).code, 1);
}

#[test]
fn a_key_makes_a_second_submission_the_same_job() {
    let gateway = Gateway::start_fresh(&[]);
    let submit = ["jobs", "submit", "--agent", "external", "--dataset", "d", "--idempotency-key", "k1"];
    let (first, second) = (gateway.run(&submit), gateway.run(&submit));
    assert_eq!((first.code, second.code), (0, 0), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn without_development_mode_a_token_is_needed() {
    let secret = "auth.jwt_secret=0123456789abcdef0123456789abcdef";
    let gateway = Gateway::start_fresh(&[secret]);
    let refused = gateway.run(&["jobs", "list"]);
    assert_eq!(refused.code, 77);
    assert!(refused.stderr.contains("not in development mode"), "{}", refused.stderr);
    let issue = ["token", "issue", "--user", "ada", "--role", "user", "--set", secret];
    let token = gateway.run(&issue).stdout;
    let listed = gateway.run(&["jobs", "list", "--token", token.trim()]);
    assert_eq!(listed.code, 0, "{}", listed.stderr);
}

#[test]
fn a_second_gateway_on_the_same_data_is_refused() {
    let gateway = Gateway::start_fresh(&[]);
    let second = gateway.program.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("used by another gateway"), "{}", second.stderr);
}
