//! Start and stop: what TERM does to what runs, and what the next start makes of it.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use event_gateway::domain::Role;
use procfs::process::Process;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Executor, PgConnection};

use super::home::Home;
use super::process::{Gateway, Setup, token, until};
use super::store::Place;

/// An agent whose first run writes its process id to `pid` and then does `run`; later runs end
/// at once, well.
fn agent(dir: &Path, run: &str) -> String {
    let pid = dir.join("pid");
    let script = format!("[ -e '{0}' ] && exit 0; echo $$ > '{0}.new'; mv '{0}.new' '{0}'; {run}", pid.display());
    json!([{
        "name": "Once",
        "description": "Runs until it is ended, the first time.",
        "runner": "process",
        "command": ["/bin/sh", "-c", script],
    }])
    .to_string()
}

fn is_alive(pid: i32) -> bool {
    // What has ended and was not yet taken note of is a zombie.
    Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.state != 'Z')
}

struct Running {
    job: String,
    user: String,
    pid: i32,
}

/// Submits a job of that agent and waits until its process runs.
async fn running(gateway: &Gateway, dir: &Path) -> Running {
    let user = token("ada", Role::User);
    let submitted = json!({ "agent": "Once", "dataset_id": "alpha-cal/point-source-10ant.csv" });
    let (status, job) = gateway.call(Method::POST, "/api/v1/jobs", &user, Some(&submitted)).await;
    assert_eq!(status, 201, "{job}");
    until("its process runs", async || dir.join("pid").exists()).await;
    let pid = std::fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap();
    Running { job: job["id"].as_str().unwrap().to_owned(), user, pid }
}

impl Running {
    async fn job(&self, gateway: &Gateway) -> Value {
        gateway.call(Method::GET, &format!("/api/v1/jobs/{}", self.job), &self.user, None).await.1
    }

    /// The job's status changes so far, `attempt:status`.
    async fn changes(&self, gateway: &Gateway) -> Vec<String> {
        let path = format!("/api/v1/jobs/{}/events", self.job);
        let events = gateway.call(Method::GET, &path, &self.user, None).await.1;
        let changes = events["items"].as_array().unwrap().iter().filter(|e| e["event_type"] == "job.status.changed");
        changes
            .map(|e| format!("{}:{}", e["payload"]["attempt"], e["payload"]["new_status"].as_str().unwrap()))
            .collect()
    }

    /// Starts again on the same data, and waits until the job has been tried again and is done.
    async fn completes_after_restart(&self, home: &Home, setup: Setup<'_>) {
        let started = Instant::now();
        let gateway = Gateway::start_as(home, setup).await;
        println!("ready {:?} after a start on existing data", started.elapsed());
        until("no process of the life before is left", async || !is_alive(self.pid)).await;
        until("the job is tried again", async || self.job(&gateway).await["status"] == "COMPLETED").await;
        let job = self.job(&gateway).await;
        assert_eq!(job["attempt"], 2, "{job}");
        assert_eq!(
            self.changes(&gateway).await,
            ["1:RUNNING", "1:FAILED", "2:QUEUED", "2:RUNNING", "2:COMPLETED"],
            "the end of the first attempt is told before the second begins"
        );
        assert!(gateway.stop().await);
    }
}

#[tokio::test]
async fn term_ends_what_runs_and_the_next_start_tries_it_again() {
    let home = Home::new();
    let agents = agent(home.path(), "exec sleep 600");
    let environment = [("GATEWAY__RUNNER__AGENTS", &*agents)];
    let gateway = Gateway::start_as(&home, Setup { environment: &environment, ..Setup::default() }).await;
    let running = running(&gateway, home.path()).await;
    until("it is reported", async || running.job(&gateway).await["status"] == "RUNNING").await;

    let asked = Instant::now();
    assert!(gateway.stop().await, "exit code 0");
    println!("stopped after {:?}", asked.elapsed());
    assert!(!is_alive(running.pid), "its process ended with it");
    running.completes_after_restart(&home, Setup { environment: &environment, ..Setup::default() }).await;
}

#[tokio::test]
async fn a_second_term_ends_at_once_and_loses_nothing() {
    let home = Home::new();
    // Stops for nobody but KILL.
    let agents = agent(home.path(), "trap '' TERM; while :; do sleep 1; done");
    let environment = [("GATEWAY__RUNNER__AGENTS", &*agents), ("GATEWAY__SHUTDOWN__LIMIT", "10m")];
    let gateway = Gateway::start_as(&home, Setup { environment: &environment, ..Setup::default() }).await;
    let running = running(&gateway, home.path()).await;
    until("it is reported", async || running.job(&gateway).await["status"] == "RUNNING").await;

    let address = gateway.address().to_owned();
    gateway.terminate();
    until("nothing new comes in, before what runs has ended", async || TcpStream::connect(&address).is_err()).await;
    assert!(is_alive(running.pid), "it is still being waited for");
    gateway.terminate();
    assert_eq!(gateway.ended().await.code(), Some(130));
    running.completes_after_restart(&home, Setup { environment: &environment, ..Setup::default() }).await;
}

#[tokio::test]
async fn without_a_command_it_serves() {
    let home = Home::new();
    let gateway = Gateway::start_as(&home, Setup { arguments: Some(&[]), ..Setup::default() }).await;
    let page = reqwest::get(&gateway.url).await.unwrap();
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    // A debug build shows what `web/dist` has now.
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/index.html")).exists();
    assert!(page.contains(if built { "/assets/" } else { "make page" }), "{page}");
    assert!(gateway.stop().await);
}

/// A place for a store, and a session beside the gateway's; `None` without a server.
async fn postgres(home: &Home) -> Option<(Place, PgConnection)> {
    let place = Place::postgres(home).await?;
    let beside = place.open(home.path()).await.postgres();
    Some((place, beside))
}

async fn submit(gateway: &Gateway) -> (u16, Value) {
    let job = json!({ "agent": "external", "dataset_id": "d" });
    gateway.call(Method::POST, "/api/v1/jobs", &token("ada", Role::User), Some(&job)).await
}

/// As on a store whose tables PostgreSQL has not analyzed since it was restored, where counting
/// takes longer than a read may.
#[tokio::test]
async fn it_starts_where_what_is_owed_cannot_be_counted() {
    let home = Home::new();
    let Some((place, mut beside)) = postgres(&home).await else { return };
    let environment = place.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let setup = || Setup { environment: &environment, ..Setup::default() };
    assert!(Gateway::start_as(&home, setup()).await.stop().await, "its tables are there");

    beside.execute("BEGIN; LOCK TABLE backlog IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let gateway = Gateway::start_as(&home, setup()).await;
    let (status, answer) = submit(&gateway).await;
    assert_eq!(status, 201, "{answer}");
    beside.execute("ROLLBACK").await.expect("no lock");
    assert!(gateway.stop().await);
}

/// Reading goes on meanwhile, as on a disk that is full.
#[tokio::test]
async fn a_store_that_takes_nothing_is_named_by_readiness() {
    let home = Home::new();
    let Some((place, mut beside)) = postgres(&home).await else { return };
    let environment = place.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let gateway = Gateway::start_as(&home, Setup { environment: &environment, ..Setup::default() }).await;
    let readiness = async || {
        let answer = reqwest::get(format!("{}/readyz", gateway.url)).await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };

    let full = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
          RAISE EXCEPTION 'on purpose' USING ERRCODE = 'disk_full'; END $$; \
        CREATE TRIGGER full_disk BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION full_disk()";
    beside.execute(full).await.expect("a trigger");
    let (status, answer) = submit(&gateway).await;
    assert_eq!((status, &answer["retry_safe"]), (503, &json!(true)), "{answer}");
    until("readiness names the store", async || {
        let (status, answer) = readiness().await;
        status == 503 && answer["missing"][0]["name"] == "store"
    })
    .await;

    beside.execute("DROP TRIGGER full_disk ON events").await.expect("no trigger");
    let (status, answer) = submit(&gateway).await;
    assert_eq!(status, 201, "{answer}");
    until("it is ready again", async || readiness().await.0 == 200).await;
    assert!(gateway.stop().await);
}

/// The figures are of what there is.
#[tokio::test]
async fn health_is_sampled_with_the_figures_of_the_moment() {
    let home = Home::new();
    let agents = agent(home.path(), "exec sleep 1000");
    let environment = [
        ("GATEWAY__RUNNER__AGENTS", &*agents),
        ("GATEWAY__RUNNER__CONCURRENCY", "1"),
        ("GATEWAY__HEALTH__INTERVAL", "1s"),
    ];
    let setup = Setup { environment: &environment, ..Setup::default() };
    let gateway = Gateway::start_as(&home, setup).await;
    let running = running(&gateway, home.path()).await;
    // Behind it in the queue.
    let submitted = json!({ "agent": "Once", "dataset_id": "alpha-cal/point-source-10ant.csv" });
    let (status, job) = gateway.call(Method::POST, "/api/v1/jobs", &running.user, Some(&submitted)).await;
    assert_eq!(status, 201, "{job}");

    let operator = token("root", Role::Operator);
    let samples = async || {
        let path = "/api/v1/events?type=system.health.check";
        let (status, page) = gateway.call(Method::GET, path, &operator, None).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().unwrap().clone()
    };
    until("a sample with both jobs", async || {
        let metrics = |sample: &Value| sample["payload"]["metrics"].clone();
        samples().await.first().map(metrics).is_some_and(|m| m["active_jobs"] == 1 && m["pending_jobs"] == 1)
    })
    .await;
    let sample = samples().await.remove(0);
    let payload = &sample["payload"];
    for component in ["database", "rabbitmq", "kafka", "nats", "registry", "external_api"] {
        assert_eq!(payload["components"][component], "healthy", "{payload}");
    }
    assert_eq!(payload["metrics"]["failed_jobs_24h"], 0, "{payload}");
    assert!(payload["metrics"]["average_response_time_ms"].as_f64().unwrap() > 0.0, "{payload}");

    assert!(gateway.stop().await);
}
