//! A backup made while the gateway runs, put back as `docs/operations.md` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use event_gateway::domain::Role;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::effects::{OUT_OF_ORDER, WRONG};
use super::fresh;
use super::home::Home;
use super::process::{Gateway, Setup, count, open, token, until};
use super::store::OWED;

/// Longer than anything takes, on a slow machine that does something else as well.
const LIMIT: Duration = Duration::from_secs(120);

/// Why none of this runs on the real brokers.
const WHY: &str = "it copies the files of SQLite; tests/external/restore.rs restores PostgreSQL beside brokers";

async fn call(gateway: &Gateway, method: Method, path: &str, body: Option<&Value>) -> Value {
    let (status, answer) = gateway.call(method, path, &token("ada", Role::User), body).await;
    assert!((200..300).contains(&status), "{status}: {answer}");
    answer
}

/// Submits a job; returns its id.
async fn submit_one(gateway: &Gateway) -> String {
    let job = json!({ "agent": "external", "dataset_id": "restore" });
    let job = call(gateway, Method::POST, "/api/v1/jobs", Some(&job)).await;
    job["id"].as_str().unwrap().to_owned()
}

async fn submit(gateway: &Gateway, jobs: usize) {
    for _ in 0..jobs {
        submit_one(gateway).await;
    }
}

/// Submits all of them in one commit.
async fn submit_batch(gateway: &Gateway, jobs: usize) {
    let job = json!({ "agent": "external", "dataset_id": "restore" });
    call(gateway, Method::POST, "/api/v1/jobs/batch", Some(&json!({ "jobs": vec![job; jobs] }))).await;
}

async fn cancel(gateway: &Gateway, job: &str) {
    call(gateway, Method::DELETE, &format!("/api/v1/jobs/{job}"), None).await;
}

async fn settled(dir: &Path) {
    let mut store = open(dir, "gateway.db").await;
    until("everything owed is delivered", async || count(&mut store, OWED).await == 0).await;
}

fn remove(dir: &Path, file: &str) {
    for end in ["", "-wal", "-shm"] {
        match std::fs::remove_file(dir.join(format!("{file}{end}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{file}{end}: {error}"),
            _ => {}
        }
    }
}

async fn back_up(dir: &Path) {
    let backup = format!("VACUUM INTO '{}'", dir.join("backup.db").display());
    open(dir, "gateway.db").await.execute(AssertSqlSafe(backup)).await.expect("a backup while it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_put_back_and_the_gateway_goes_on() {
    if fresh::left_out(WHY) {
        return;
    }
    let home = Home::new();
    let dir = home.path();
    let gateway = Gateway::start(&home).await;
    submit(&gateway, 5).await;
    settled(dir).await;
    back_up(dir).await;
    submit(&gateway, 4).await;
    gateway.kill().await;

    remove(dir, "gateway.db");
    remove(dir, "brokers.db");
    std::fs::rename(dir.join("backup.db"), dir.join("gateway.db")).unwrap();
    let gateway = Gateway::start(&home).await;
    submit(&gateway, 1).await;
    settled(dir).await;
    reconcile_finds(dir, &Published::new()).await;
    assert!(gateway.stop().await, "TERM ends it well");

    let mut store = open(dir, "gateway.db").await;
    assert_eq!(count(&mut store, "SELECT count(*) FROM jobs").await, 6, "as of the backup, and the new one");
    assert_eq!(count(&mut store, "SELECT count(*) FROM audit_log").await, 6, "each once");
    let done = count(&mut store, "SELECT count(*) FROM legs WHERE state = 1").await;
    let mut logs = open(dir, "brokers.db").await;
    assert!(done > 0);
    assert_eq!(
        count(&mut logs, "SELECT count(*) FROM records").await,
        done,
        "the new logs have every leg that is done"
    );
}

/// Event ids by broker.
type Published = BTreeMap<String, BTreeSet<String>>;

/// Puts the backup back and leaves the logs as they are. Returns what they have of events that the
/// backup does not have.
async fn put_back_beside_the_logs(dir: &Path) -> Published {
    let mut store = open(dir, "gateway.db").await;
    let attach = format!("ATTACH '{}' AS backup", dir.join("backup.db").display());
    store.execute(AssertSqlSafe(attach)).await.unwrap();
    let rows = store
        .fetch_all(
            "SELECT CASE broker WHEN 1 THEN 'rabbitmq' WHEN 2 THEN 'kafka' ELSE 'nats' END, hex(event_id) \
             FROM events JOIN legs USING (position) \
             WHERE state = 1 AND event_id NOT IN (SELECT event_id FROM backup.events)",
        )
        .await
        .unwrap();
    let mut lost = Published::new();
    for row in rows {
        let id: uuid::Uuid = row.get::<String, _>(1).parse().unwrap();
        lost.entry(row.get(0)).or_default().insert(id.to_string());
    }
    store.close().await.unwrap();
    remove(dir, "gateway.db");
    std::fs::rename(dir.join("backup.db"), dir.join("gateway.db")).unwrap();
    lost
}

/// Starts it so that what consumers never got is soon looked for.
async fn start(home: &Home) -> Gateway {
    let environment = [("GATEWAY__CONSUMER__OVERDUE_AFTER", "1s")];
    Gateway::start_as(home, Setup { environment: &environment, ..Setup::default() }).await
}

/// `reconcile` beside the gateway finds these unknown, and nothing else.
async fn reconcile_finds(dir: &Path, unknown: &Published) {
    let ended = Command::new(env!("CARGO_BIN_EXE_event-gateway"))
        .args(["reconcile", "--output", "json", "--wait", "30s", "--examples", "10000"])
        .current_dir(dir)
        .env_clear()
        .env("GATEWAY__DATA__DIR", dir)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(
        ended.status.code(),
        Some(i32::from(!unknown.is_empty())),
        "{said}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let found: Value = serde_json::from_str(&said).unwrap();
    let mut named = Published::new();
    for broker in found["report"]["brokers"].as_array().unwrap() {
        assert_eq!(broker["compared"], json!(true));
        for kind in ["missing", "out_of_order", "unreadable", "waiting"] {
            assert_eq!(broker[kind]["count"], json!(0), "{kind}: {broker:#}");
        }
        for finding in broker["unknown"]["examples"].as_array().unwrap() {
            let ids = named.entry(broker["broker"].as_str().unwrap().to_owned()).or_default();
            ids.insert(finding["event_id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(named, *unknown);
}

/// Confirmed messages that their consumer has not handled.
const UNHANDLED: &str = "SELECT count(*) FROM events JOIN legs USING (position) \
     WHERE event_type = 'job.submitted' AND state = 1 AND broker IN (1, 2) AND NOT EXISTS \
       (SELECT 1 FROM inbox WHERE inbox.event_id = events.event_id \
        AND consumer = CASE broker WHEN 1 THEN 'audit' ELSE 'metrics' END)";

/// There are such messages for a moment, under load.
async fn back_up_while_consumers_are_behind(dir: &Path, gateway: &Gateway) {
    let deadline = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < deadline, "consumers are never behind");
        submit_batch(gateway, 400).await;
        let mut store = open(dir, "gateway.db").await;
        while count(&mut store, OWED).await > 0 {
            if count(&mut store, UNHANDLED).await == 0 {
                continue;
            }
            remove(dir, "backup.db");
            back_up(dir).await;
            let mut backup = open(dir, "backup.db").await;
            let behind = count(&mut backup, UNHANDLED).await;
            backup.close().await.unwrap();
            if behind > 0 {
                return;
            }
        }
    }
}

async fn every_effect_is_there_once(dir: &Path) {
    let mut store = open(dir, "gateway.db").await;
    for (what, query) in WRONG.into_iter().chain([OUT_OF_ORDER]) {
        assert_eq!(count(&mut store, query).await, 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_put_back_beside_logs_that_are_ahead_of_it() {
    if fresh::left_out(WHY) {
        return;
    }
    let home = Home::new();
    let dir = home.path();
    let gateway = start(&home).await;
    let open_job = submit_one(&gateway).await;
    submit(&gateway, 4).await;
    settled(dir).await;
    back_up(dir).await;
    submit(&gateway, 4).await;
    cancel(&gateway, &open_job).await;
    settled(dir).await;
    assert!(gateway.stop().await, "TERM ends it well");

    let lost = put_back_beside_the_logs(dir).await;
    assert_eq!(lost.keys().collect::<Vec<_>>(), ["kafka", "rabbitmq"], "{lost:#?}");
    assert!(lost.values().all(|lost| lost.len() >= 5), "{lost:#?}");
    let gateway = start(&home).await;
    submit(&gateway, 4).await;
    // Its second event is another one now.
    cancel(&gateway, &open_job).await;
    settled(dir).await;
    reconcile_finds(dir, &lost).await;
    assert!(gateway.stop().await, "TERM ends it well");
    every_effect_is_there_once(dir).await;
    let mut store = open(dir, "gateway.db").await;
    assert_eq!(count(&mut store, "SELECT count(*) FROM audit_log").await, 10, "9 jobs, of which one is cancelled");
}

/// What a consumer had not handled by then it does not get from the logs: it has gone on there.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_miss_nothing_of_a_backup_that_was_made_under_load() {
    if fresh::left_out(WHY) {
        return;
    }
    let home = Home::new();
    let dir = home.path();
    let gateway = start(&home).await;
    // The search for what is overdue begins with the first start.
    submit(&gateway, 1).await;
    settled(dir).await;
    back_up_while_consumers_are_behind(dir, &gateway).await;
    settled(dir).await;
    assert!(gateway.stop().await, "TERM ends it well");

    let lost = put_back_beside_the_logs(dir).await;
    let gateway = start(&home).await;
    let (mut store, deadline) = (open(dir, "gateway.db").await, Instant::now() + LIMIT);
    while count(&mut store, OWED).await > 0 {
        assert!(Instant::now() < deadline, "not everything owed is delivered");
        // What is overdue in a partition is known by later events there.
        submit_batch(&gateway, 40).await;
        let look = Instant::now() + Duration::from_secs(3);
        while Instant::now() < look && count(&mut store, OWED).await > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    }
    reconcile_finds(dir, &lost).await;
    assert!(gateway.stop().await, "TERM ends it well");
    every_effect_is_there_once(dir).await;
}
