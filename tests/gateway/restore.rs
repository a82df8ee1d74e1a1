//! A backup made while the gateway runs, put back as `docs/operations.md` says.

use std::path::Path;

use event_gateway::domain::Role;
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};

use super::process::{Gateway, count, open, token, until};

async fn submit(gateway: &Gateway, jobs: usize) {
    let token = token("ada", Role::User);
    for n in 0..jobs {
        let body = json!({ "agent": "external", "dataset_id": format!("restore/{n}") });
        let (status, answer) = gateway.call(Method::POST, "/api/v1/jobs", &token, Some(&body)).await;
        assert_eq!(status, 201, "{answer}");
    }
}

const OWED: &str = "SELECT (SELECT count(*) FROM legs WHERE state = 0) \
     + (SELECT count(*) FROM events WHERE event_type = 'job.submitted' AND NOT EXISTS \
         (SELECT 1 FROM inbox WHERE consumer = 'audit' AND inbox.event_id = events.event_id))";

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

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_put_back_and_the_gateway_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let gateway = Gateway::start(dir).await;
    submit(&gateway, 5).await;
    settled(dir).await;
    let backup = format!("VACUUM INTO '{}'", dir.join("backup.db").display());
    open(dir, "gateway.db").await.execute(AssertSqlSafe(backup)).await.expect("a backup while it runs");
    submit(&gateway, 4).await;
    gateway.kill().await;

    remove(dir, "gateway.db");
    remove(dir, "brokers.db");
    std::fs::rename(dir.join("backup.db"), dir.join("gateway.db")).unwrap();
    let gateway = Gateway::start(dir).await;
    submit(&gateway, 1).await;
    settled(dir).await;
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
