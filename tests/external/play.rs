//! A log is played: every job ends, every leg is done, screens miss nothing, and stock
//! clients find in the brokers what the ledger says is there.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::world::{World, address, brokers};

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small.swf");
const JOBS: u64 = 40;

pub fn is_clean(report: &Value) {
    assert_eq!(report["submitted"], report["jobs_in_log"], "{report:#}");
    assert_eq!(report["refused"], json!(0), "{report:#}");
    assert_eq!(report["lost"]["total"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["gaps"], json!(0), "{report:#}");
    assert_eq!(report["screens"]["never_shown"], json!(0), "{report:#}");
}

/// Plays the log; `meanwhile` runs once a quarter of its jobs are there.
pub fn play(gateway: &mut Gateway, speedup: &str, meanwhile: impl FnOnce(&mut Gateway)) -> Value {
    let playing = Playing::start(gateway, LOG, "external", speedup);
    playing.wait_for(gateway, JOBS as usize / 4);
    meanwhile(gateway);
    playing.report()
}

/// A `trace` that runs.
pub struct Playing {
    child: Child,
    agent: String,
}

impl Playing {
    pub fn start(gateway: &Gateway, log: &str, agent: &str, speedup: &str) -> Self {
        let arguments = ["trace", log, "--agent", agent, "--speedup", speedup];
        let more = ["--watch", "8", "--settle", "120s", "--output", "json"];
        let mut command = gateway.program.command(&[&arguments[..], &more].concat());
        command.env("GATEWAY_URL", gateway.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), agent: agent.to_owned() }
    }

    /// Waits until it has submitted so many jobs, at most 500.
    pub fn wait_for(&self, gateway: &Gateway, jobs: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.submitted(gateway) < jobs {
            assert!(Instant::now() < deadline, "the trace does not submit");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn submitted(&self, gateway: &Gateway) -> usize {
        let listed = gateway.run(&["jobs", "list", "--agent", &self.agent, "--limit", "500", "--output", "json"]);
        // While a fault is on, the list may fail.
        serde_json::from_str::<Value>(&listed.stdout)
            .ok()
            .and_then(|page| Some(page["items"].as_array()?.len()))
            .unwrap_or(0)
    }

    pub fn report(self) -> Value {
        let ended = self.child.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"))
    }
}

#[test]
fn a_log_is_played_and_everything_is_where_the_ledger_says() {
    let Some(world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    let report = play(&mut gateway, "2000", |_| {});
    is_clean(&report);
    assert_eq!((&report["finished"], &report["failed"], &report["cancelled"]), (&json!(36), &json!(2), &json!(2)));

    // PostgreSQL: no leg is open, sequences have no gap.
    let sql = |query: &str| psql(&world.database, query);
    assert_eq!(sql("SELECT count(*) FROM jobs"), JOBS.to_string());
    // Kafka, read by kcat: each lifecycle event once (nothing failed, so nothing is repeated).
    let kafka = address("KAFKA").unwrap();
    let topic = format!("{}job-lifecycle", world.prefix);
    let read = std::process::Command::new("kcat")
        .args(["-b", &kafka, "-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k %h\n"])
        .output()
        .expect("kcat runs");
    let text = String::from_utf8(read.stdout).unwrap();
    let submitted = text.lines().filter(|line| line.contains("job.submitted")).count();
    assert_eq!(submitted as u64, JOBS, "{text}");
    // RabbitMQ: the consumers have emptied their queues.
    let queues = brokers(&["rabbitmqctl", "rabbit1", "-q", "list_queues", "-p", &world.vhost, "name", "messages"]);
    assert!(queues.contains("job-events-api"), "{queues}");
    for line in queues.lines().filter(|line| line.starts_with("job-events-")) {
        assert!(line.trim_end().ends_with("\t0"), "{queues}");
    }
    assert!(gateway.stop().success());
}

/// One value out of a database of the tests.
pub fn psql(database: &str, query: &str) -> String {
    let mut url = url::Url::parse(&address("POSTGRES").unwrap()).unwrap();
    url.set_path(database);
    let output = std::process::Command::new("psql").args([url.as_str(), "-XAtc", query]).output().expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
