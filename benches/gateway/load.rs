//! The load generator, in a process of its own: users who submit jobs over connections
//! that stay open and, if asked, watch them on a socket each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_gateway::auth::Authenticator;
use event_gateway::config::Config;
use event_gateway::domain::Role;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::http::{Connection, find, post};
use crate::process::SECRET;
use crate::socket::{Socket, UPDATE};

const BODY: &str = r#"{"agent":"external","dataset_id":"survey/2026/field-0042","name":"bench job"}"#;
/// Updates that take longer to arrive count as missing.
const TAIL: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub address: String,
    pub users: usize,
    /// Connections that submit; each has one request in flight.
    pub connections: usize,
    /// Jobs a second, evenly spaced, whatever the gateway does; `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// Before latencies and rates count.
    pub warm_up: Duration,
    pub duration: Duration,
    /// Every user watches their channel on a socket.
    pub sockets: bool,
}

/// What came of it. Latencies in milliseconds, over the time after the warm-up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Jobs answered 201 a second.
    pub rate: f64,
    /// All jobs answered 201, warm-up included.
    pub accepted: u64,
    /// Answers other than 201.
    pub refused: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Updates of these jobs that arrived on their owner's socket.
    pub delivered: u64,
    /// From the start of the POST to the update on the socket.
    pub screen_p50: f64,
    pub screen_p99: f64,
    pub screen_max: f64,
    /// From the last 201 to the last update.
    pub tail_seconds: f64,
    pub cpu_seconds: f64,
}

impl Load {
    /// Runs in a new process of this binary.
    pub async fn run(&self) -> Report {
        let output = tokio::process::Command::new(std::env::current_exe().expect("this binary"))
            .args(["load", &serde_json::to_string(self).expect("plain data")])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let limit = self.warm_up + self.duration + Duration::from_secs(90);
        let output = tokio::time::timeout(limit, output).await.expect("the generator ends").expect("it runs");
        assert!(output.status.success(), "the generator failed");
        serde_json::from_slice(&output.stdout).expect("a report")
    }
}

/// The process that [`Load::run`] starts.
pub fn main(load: &str) {
    let load: Load = serde_json::from_str(load).expect("a load");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = tokio::task::LocalSet::new().block_on(&runtime, generate(&load));
    println!("{}", serde_json::to_string(&report).expect("plain data"));
}

async fn generate(load: &Load) -> Report {
    let tokens = tokens("bench-user", load.users, Role::User);
    let screen = Rc::new(RefCell::new(Screen::default()));
    if load.sockets {
        for token in &tokens {
            let socket = Socket::connect(&load.address, &format!("{{\"token\":\"{token}\"}}"), "").await;
            tokio::task::spawn_local(watch(socket, screen.clone()));
        }
    }
    let requests: Rc<[Vec<u8>]> = tokens.iter().map(|token| post(&load.address, "/api/v1/jobs", token, BODY)).collect();
    let mut connections = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        connections.push(Connection::open(&load.address).await);
    }
    let cpu = crate::beside::own_cpu_seconds();
    let start = Instant::now();
    let counted_from = start + load.warm_up;
    let end = counted_from + load.duration;
    screen.borrow_mut().counted_from = Some(counted_from);
    let mut tasks = Vec::with_capacity(load.connections);
    for (index, connection) in connections.into_iter().enumerate() {
        let submitter = Submitter {
            connection,
            requests: requests.clone(),
            next: index,
            step: load.connections,
            screen: load.sockets.then(|| screen.clone()),
            counted_from,
            end,
            tally: Tally::new(),
        };
        let schedule = load.rate.map(|rate| Schedule {
            next: start + Duration::from_secs_f64(index as f64 / rate),
            every: Duration::from_secs_f64(load.connections as f64 / rate),
        });
        tasks.push(tokio::task::spawn_local(submitter.run(schedule)));
    }
    let mut tally = Tally::new();
    for task in tasks {
        tally.add(&task.await.expect("a submitter ends well"));
    }
    let counted = counted_from.elapsed().as_secs_f64();
    let last_answer = Instant::now();
    if load.sockets {
        while screen.borrow().waiting() > 0 && last_answer.elapsed() < TAIL {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let screen = screen.borrow();
    let ms = |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Report {
        rate: tally.latencies.len() as f64 / counted,
        accepted: tally.accepted,
        refused: tally.refused,
        p50: ms(&tally.latencies, 0.5),
        p99: ms(&tally.latencies, 0.99),
        max: ms(&tally.latencies, 1.0),
        delivered: screen.delivered,
        screen_p50: ms(&screen.latencies, 0.5),
        screen_p99: ms(&screen.latencies, 0.99),
        screen_max: ms(&screen.latencies, 1.0),
        tail_seconds: screen.last.map_or(0.0, |last| last.saturating_duration_since(last_answer).as_secs_f64()),
        cpu_seconds: crate::beside::own_cpu_seconds() - cpu,
    }
}

/// Tokens of `{name}-0`, `{name}-1`, ...
pub fn tokens(name: &str, count: usize, role: Role) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config::defaults_in(dir.path(), &[("auth.jwt_secret", SECRET)]).expect("a good configuration");
    let auth = Authenticator::new(&config.auth, dir.path()).expect("a secret");
    let token = |n| auth.issue_token(&format!("{name}-{n}"), &[role], Duration::from_secs(7200)).expect("a token");
    (0..count).map(token).collect()
}

/// When a connection sends.
struct Schedule {
    next: Instant,
    every: Duration,
}

impl Schedule {
    /// Waits for the next turn before `end`; from when its latency counts. A turn that came
    /// while the request before was in flight counts from when it was due.
    async fn turn(&mut self, end: Instant) -> Option<Instant> {
        let due = self.next;
        self.next += self.every;
        if due <= Instant::now() {
            return Some(due);
        }
        tokio::time::sleep_until(due.min(end).into()).await;
        (due < end).then(Instant::now)
    }
}

/// One connection's loop.
struct Submitter {
    connection: Connection,
    /// One of each user.
    requests: Rc<[Vec<u8>]>,
    next: usize,
    step: usize,
    screen: Option<Rc<RefCell<Screen>>>,
    counted_from: Instant,
    end: Instant,
    tally: Tally,
}

impl Submitter {
    async fn run(mut self, mut schedule: Option<Schedule>) -> Tally {
        loop {
            let began = match &mut schedule {
                Some(schedule) => schedule.turn(self.end).await,
                None => Some(Instant::now()),
            };
            let Some(began) = began.filter(|_| Instant::now() < self.end) else { return self.tally };
            let request = &self.requests[self.next % self.requests.len()];
            self.next += self.step;
            let (status, body) = self.connection.exchange(request).await;
            if status != 201 {
                self.tally.refused += 1;
                continue;
            }
            self.tally.accepted += 1;
            if began >= self.counted_from {
                self.tally.latencies.saturating_record(began.elapsed().as_micros() as u64);
            }
            if let Some(screen) = &self.screen {
                screen.borrow_mut().accepted(id_after(body, b"\"id\":\""), began);
            }
        }
    }
}

struct Tally {
    accepted: u64,
    refused: u64,
    latencies: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        Self { accepted: 0, refused: 0, latencies: histogram() }
    }

    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.latencies.add(&other.latencies).expect("the same bounds");
    }
}

/// Microseconds up to ten minutes.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("good bounds")
}

type JobId = [u8; 36];

/// Brings submissions and updates together. Either may be seen first.
struct Screen {
    /// When the POST of a job began whose update has not arrived.
    submitted: HashMap<JobId, Instant>,
    /// Updates of jobs whose 201 has not been read.
    early: HashMap<JobId, Instant>,
    latencies: Histogram<u64>,
    counted_from: Option<Instant>,
    delivered: u64,
    last: Option<Instant>,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            submitted: HashMap::new(),
            early: HashMap::new(),
            latencies: histogram(),
            counted_from: None,
            delivered: 0,
            last: None,
        }
    }
}

impl Screen {
    fn waiting(&self) -> usize {
        self.submitted.len()
    }

    fn accepted(&mut self, job: JobId, began: Instant) {
        match self.early.remove(&job) {
            Some(arrived) => self.record(began, arrived),
            None => {
                self.submitted.insert(job, began);
            }
        }
    }

    fn arrived(&mut self, job: JobId) {
        let now = Instant::now();
        self.last = Some(now);
        match self.submitted.remove(&job) {
            Some(began) => self.record(began, now),
            None => {
                self.early.insert(job, now);
            }
        }
    }

    fn record(&mut self, began: Instant, arrived: Instant) {
        self.delivered += 1;
        if self.counted_from.is_some_and(|from| began >= from) {
            self.latencies.saturating_record((arrived - began).as_micros() as u64);
        }
    }
}

/// The UUID that follows `name`.
fn id_after(bytes: &[u8], name: &[u8]) -> JobId {
    let at = find(bytes, name).expect("an id") + name.len();
    bytes[at..at + 36].try_into().expect("36 characters")
}

async fn watch(mut socket: Socket, screen: Rc<RefCell<Screen>>) {
    let arrived = |frame: &[u8]| {
        if frame.starts_with(UPDATE) {
            screen.borrow_mut().arrived(id_after(frame, b"\"job_id\":\""));
        }
    };
    loop {
        socket.read(arrived).await;
    }
}
