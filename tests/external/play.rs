//! A log is played: every job ends, every leg is done, screens miss nothing, and stock
//! clients find in the brokers what the ledger says is there.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::aftermath::all_is_well;
use crate::gateway::Gateway;
use crate::stock;
use crate::world::{CLUSTER, World, address, brokers};

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small.swf");
const JOBS: u64 = 40;

/// Workers hear of the jobs of one over REST alone, of the other's from JetStream.
pub const AGENTS: [&str; 2] = ["external", CLUSTER];

/// Plays the log to each of the [`AGENTS`]; `meanwhile` runs once a quarter of the jobs are there.
/// What each has to report in the end, all being well.
pub fn play(gateway: &mut Gateway, speedup: &str, meanwhile: impl FnOnce(&mut Gateway)) -> Vec<Value> {
    let playing = Playing::start(gateway, LOG, &AGENTS, speedup);
    playing.wait_for(gateway, JOBS as usize / 4);
    meanwhile(gateway);
    playing.ends_well()
}

/// Every job ended, every leg is done, no screen missed anything.
fn is_clean(report: &Value) {
    assert_eq!(report["submitted"], report["jobs_in_log"], "{report:#}");
    assert_eq!(report["refused"], json!(0), "{report:#}");
    assert_eq!(report["lost"]["total"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["gaps"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["never_shown"], json!(0), "{report:#}");
}

/// A `trace` that runs for each agent, all at the same time.
pub struct Playing(Vec<Trace>);

impl Playing {
    pub fn start(gateway: &Gateway, log: &str, agents: &[&str], speedup: &str) -> Self {
        Self(agents.iter().map(|agent| Trace::start(gateway, log, agent, speedup)).collect())
    }

    /// Waits until each agent has so many jobs, at most 500.
    pub fn wait_for(&self, gateway: &Gateway, jobs: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.0.iter().any(|trace| trace.submitted(gateway) < jobs) {
            assert!(Instant::now() < deadline, "the traces do not submit");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What each has to report, all being well.
    pub fn ends_well(self) -> Vec<Value> {
        let reports: Vec<Value> = self.0.into_iter().map(Trace::report).collect();
        reports.iter().for_each(is_clean);
        reports
    }
}

struct Trace {
    child: Option<Child>,
    agent: String,
}

impl Trace {
    fn start(gateway: &Gateway, log: &str, agent: &str, speedup: &str) -> Self {
        let arguments = ["trace", log, "--agent", agent, "--speedup", speedup];
        let more = ["--watch", "8", "--settle", "120s", "--output", "json"];
        let mut command = gateway.program.command(&[&arguments[..], &more].concat());
        command.env("GATEWAY_URL", gateway.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: Some(command.spawn().unwrap()), agent: agent.to_owned() }
    }

    fn submitted(&self, gateway: &Gateway) -> usize {
        let listed = gateway.run(&["jobs", "list", "--agent", &self.agent, "--limit", "500", "--output", "json"]);
        // While a fault is on, the list may fail.
        serde_json::from_str::<Value>(&listed.stdout)
            .ok()
            .and_then(|page| Some(page["items"].as_array()?.len()))
            .unwrap_or(0)
    }

    fn report(mut self) -> Value {
        let ended = self.child.take().unwrap().wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Nobody waits for it any more: the test has failed.
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_log_is_played_and_everything_is_where_the_ledger_says() {
    let Some(world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    for report in play(&mut gateway, "2000", |_| {}) {
        assert_eq!((&report["finished"], &report["failed"], &report["cancelled"]), (&json!(36), &json!(2), &json!(2)));
    }

    all_is_well(&gateway, &world);
    let jobs = JOBS * AGENTS.len() as u64;
    assert_eq!(psql(&world.database, "SELECT count(*) FROM jobs"), jobs.to_string());
    // Kafka, read by kcat: each lifecycle event once (nothing failed, so nothing is repeated).
    let text = kcat(&world, "job-lifecycle");
    let submitted = text.lines().filter(|line| line.contains("job.submitted")).count();
    assert_eq!(submitted as u64, jobs, "{text}");
    stock::reads_everything(&world);
    // RabbitMQ: the consumers have emptied their queues.
    let queues = brokers(&["rabbitmqctl", "rabbit1", "-q", "list_queues", "-p", &world.vhost, "name", "messages"]);
    assert!(queues.contains("job-events-api"), "{queues}");
    for line in queues.lines().filter(|line| line.starts_with("job-events-")) {
        assert!(line.trim_end().ends_with("\t0"), "{queues}");
    }
    assert!(gateway.stop().success());
}

/// What kcat finds in a topic: key and headers of each record.
pub fn kcat(world: &World, topic: &str) -> String {
    let (kafka, topic) = (address("KAFKA").unwrap(), format!("{}{topic}", world.prefix));
    let read = std::process::Command::new("kcat")
        .args(["-b", &kafka, "-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k %h\n"])
        .output()
        .expect("kcat runs");
    String::from_utf8(read.stdout).unwrap()
}

/// One value out of a database of the tests.
pub fn psql(database: &str, query: &str) -> String {
    let mut url = url::Url::parse(&address("POSTGRES").unwrap()).unwrap();
    url.set_path(database);
    let output = std::process::Command::new("psql").args([url.as_str(), "-XAtc", query]).output().expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
