//! SIGKILL at random moments under load: nothing that was answered is lost, nothing that
//! was not committed appears, order holds per key, and every effect happens once.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::domain::Role;
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use sqlx::Row;

use super::effects::{OUT_OF_ORDER, WRONG};
use super::fresh;
use super::home::Home;
use super::process::{Gateway, Setup, open, token};
use super::server::Schema;
use super::store::{OWED, Place};

const CLIENTS: usize = 12;

/// What the clients know.
#[derive(Default)]
struct Jobs {
    /// Ids by idempotency key, once answered.
    answered: Mutex<HashMap<String, String>>,
    /// Per client the key whose answer never came.
    unanswered: Mutex<[Option<String>; CLIENTS]>,
}

/// Posts jobs until the gateway is gone: first the one whose answer never came, then new ones.
async fn submit(url: String, token: String, jobs: Arc<Jobs>, client: usize, round: usize) {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    for n in 0.. {
        let key = jobs.unanswered.lock()[client].get_or_insert_with(|| format!("c{client}-r{round}-{n}")).clone();
        let response = http
            .post(format!("{url}/api/v1/jobs"))
            .bearer_auth(&token)
            .header("idempotency-key", &key)
            .json(&json!({ "agent": "external", "dataset_id": "kill/test", "name": key }))
            .send()
            .await;
        match response {
            Ok(response) if response.status() == 201 => {
                // The body may be cut off by the kill: the answer then counts as not given.
                let Ok(job) = response.json::<Value>().await else { return };
                let id = job["id"].as_str().unwrap().to_owned();
                jobs.unanswered.lock()[client] = None;
                assert_eq!(jobs.answered.lock().insert(key, id), None, "one key, one answer");
            }
            Ok(response) => panic!("{}: {}", response.status(), response.text().await.unwrap_or_default()),
            Err(_) => return,
        }
    }
}

/// Claims and completes jobs until the gateway is gone.
async fn work(url: String, token: String) {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    loop {
        let claim = http.post(format!("{url}/api/v1/worker/claim")).bearer_auth(&token).json(&json!({ "max": 20 }));
        let Ok(response) = claim.send().await else { return };
        let Ok(claimed) = response.json::<Value>().await else { return };
        for job in claimed["items"].as_array().into_iter().flatten() {
            for status in ["RUNNING", "COMPLETED"] {
                let report = json!({ "attempt": job["attempt"], "status": status });
                let call = http
                    .post(format!("{url}/api/v1/jobs/{}/status", job["id"].as_str().unwrap()))
                    .bearer_auth(&token)
                    .json(&report);
                if call.send().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the load generator; every task is joined")]
async fn load(gateway: &Gateway, jobs: &Arc<Jobs>, round: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let token = token(&format!("user-{}", client % 5), Role::User);
        tasks.push(tokio::spawn(submit(gateway.url.clone(), token, jobs.clone(), client, round)));
    }
    tasks.push(tokio::spawn(work(gateway.url.clone(), token("worker-1", Role::Worker))));
    tasks
}

/// Why none of this runs on the real brokers.
const WHY: &str = "it reads the files of the embedded logs; tests/external/faults.rs kills a gateway on brokers";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_by_kills() {
    if fresh::left_out(WHY) {
        return;
    }
    survive_kills(Place::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_by_kills_on_postgres() {
    if fresh::left_out(WHY) {
        return;
    }
    let Some(schema) = Schema::create().await else { return };
    survive_kills(Place::Postgres(Box::new(schema))).await;
}

async fn start(home: &Home, place: &Place) -> Gateway {
    let environment = place.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Gateway::start_as(home, Setup { environment: &environment, ..Setup::default() }).await
}

async fn survive_kills(place: Place) {
    let rounds: usize = std::env::var("KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let home = Home::new();
    let dir = home.path();
    let jobs = Arc::new(Jobs::default());
    for round in 0..rounds {
        let gateway = start(&home, &place).await;
        let tasks = load(&gateway, &jobs, round).await;
        let moment = rand::rng().random_range(100..1_200);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        gateway.kill().await;
        for task in tasks {
            task.await.expect("clients see only good answers or none");
        }
    }
    // Jobs whose worker went away with a kill fail when their lease lapses, also between the last
    // look and the end of a life: the next one delivers what that has made.
    for life in 1.. {
        let gateway = start(&home, &place).await;
        settle(dir, &place).await;
        assert!(gateway.stop().await, "TERM ends it well");
        if place.open(dir).await.count(OWED).await == 0 {
            break;
        }
        assert!(life < 10, "something is owed after every life");
    }
    let answered = jobs.answered.lock().clone();
    assert!(answered.len() > rounds * CLIENTS, "there was load: {} jobs", answered.len());
    check(dir, &place, &answered).await;
}

/// Waits until nothing is owed to a broker or a consumer.
async fn settle(dir: &Path, place: &Place) {
    let mut store = place.open(dir).await;
    let wait = async {
        while store.count(OWED).await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("everything owed is delivered");
}

async fn check(dir: &Path, place: &Place, answered: &HashMap<String, String>) {
    let mut store = place.open(dir).await;
    let rows: Vec<[String; 2]> = store.rows("SELECT {id:id}, name FROM jobs").await;
    let jobs = rows.len();
    let stored: HashMap<String, String> = rows.into_iter().map(|[id, name]| (name, with_dashes(&id))).collect();
    assert_eq!(stored.len(), jobs, "one job per idempotency key, however often it was sent");
    for (key, id) in answered {
        assert_eq!(stored.get(key), Some(id), "what was answered 201 is there");
    }

    for (what, query) in WRONG.into_iter().chain([OUT_OF_ORDER]) {
        assert_eq!(store.count(query).await, 0, "{what}");
    }

    // The logs: every leg's event is there, nothing else is, first occurrences in order.
    let mut logs = open(dir, "brokers.db").await;
    let records = sqlx::query(
        "SELECT p.broker, p.log, r.headers FROM records AS r JOIN partitions AS p ON p.id = r.partition_id ORDER BY r.id",
    )
    .fetch_all(&mut logs)
    .await
    .unwrap();
    let mut published: HashSet<(i64, String)> = HashSet::new();
    let mut last: HashMap<(String, String, String), i64> = HashMap::new();
    for record in &records {
        let headers: Value = serde_json::from_str(&record.get::<String, _>("headers")).unwrap();
        let id = headers["event_id"].as_str().unwrap().to_owned();
        if !published.insert((record.get("broker"), id)) {
            continue;
        }
        let key = (
            record.get::<String, _>("log"),
            headers["aggregate_type"].as_str().unwrap().to_owned(),
            headers["aggregate_id"].as_str().unwrap().to_owned(),
        );
        let sequence = headers["sequence"].as_i64().unwrap();
        let before = last.insert(key.clone(), sequence);
        assert!(before.is_none_or(|before| before < sequence), "{key:?}: {sequence} after {before:?}");
    }
    let legs = store.rows(
        "SELECT {id:e.event_id}, CAST(l.broker AS text), CAST(l.state AS text) FROM legs AS l JOIN events AS e USING (position)",
    );
    let legs: Vec<[String; 3]> = legs.await;
    let of = |done: bool| -> HashSet<(i64, String)> {
        let wanted = legs.iter().filter(|[.., state]| !done || state == "1");
        wanted.map(|[id, broker, _]| (broker.parse().unwrap(), with_dashes(id))).collect()
    };
    assert_eq!(of(true).difference(&published).count(), 0, "every leg that is done is in its log");
    // A copy may be published, the mark killed, and the second try find no queue: skipped.
    assert_eq!(published.difference(&of(false)).count(), 0, "nothing is in a log that was not committed");
    println!("{} jobs answered, {} stored, {} records", answered.len(), jobs, records.len());
}

fn with_dashes(id: &str) -> String {
    id.parse::<uuid::Uuid>().unwrap().to_string()
}
