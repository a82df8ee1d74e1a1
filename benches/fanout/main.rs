//! Fan-out: one job watched by many sockets, at the ceiling, beside a bare socketioxide
//! room in the same run; and the memory of an idle connection.
//!
//! `cargo bench --bench fanout -- [sockets] [updates]`; without arguments 500 and 2,000.
//! Each side and its sockets live in processes of their own: this binary, called again.

mod bare;
mod crowd;
mod gateway;
#[path = "../shared/socket.rs"]
mod socket;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nothing here takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    raise_file_limit();
    if args.first().is_some_and(|arg| arg == "crowd") {
        return crowd::main(&args[1..]);
    }
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    if let [side, ..] = &args[..]
        && let (Some(side), [sockets, updates]) = (side.strip_prefix("side-"), &numbers[..])
    {
        return measure(side, *sockets, *updates);
    }
    let rounds = match numbers[..] {
        [sockets, updates, ..] => vec![(sockets, updates)],
        [sockets] => vec![(sockets, 2_000_000 / sockets)],
        [] => vec![(500, 10_000), (2_000, 2_500)],
    };
    for (sockets, updates) in rounds {
        let [bare, gateway] = ["bare", "gateway"].map(|side| apart(side, sockets, updates));
        println!("{sockets} sockets, {updates} updates of {} bytes:", gateway.bytes);
        bare.print("  bare socketioxide");
        gateway.print("  gateway          ");
    }
}

/// Measures one side in a new process, whose memory holds nothing else.
fn apart(side: &str, sockets: usize, updates: usize) -> Figures {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("side-{side}"), &sockets.to_string(), &updates.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{side} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn measure(side: &str, sockets: usize, updates: usize) {
    // Two threads, as the gateway has on two processors.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let figures = runtime.block_on(async {
        match side {
            "bare" => bare::run(sockets, updates).await,
            _ => gateway::run(sockets, updates).await,
        }
    });
    println!("{}", serde_json::to_string(&figures).unwrap());
}

/// What one side did.
#[derive(Debug, Deserialize, Serialize)]
pub struct Figures {
    pub expected: u64,
    pub received: u64,
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub idle_bytes: f64,
    pub bytes: usize,
}

impl Figures {
    fn print(&self, name: &str) {
        println!(
            "{name}: {:>7.0} deliveries/s, {:.2} us CPU each, {} of {} received, {:.1} kB an idle connection",
            self.received as f64 / self.seconds,
            self.cpu_seconds * 1e6 / self.received as f64,
            self.received,
            self.expected,
            self.idle_bytes / 1e3,
        );
    }
}

/// The sockets' process.
pub struct Crowd {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Connects `sockets` to `address`; each sends `join` after coming in with `auth`.
    pub async fn gather(address: std::net::SocketAddr, sockets: usize, auth: &str, join: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crowd", &address.to_string(), &sockets.to_string(), auth, join])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut crowd = Self { child, lines };
        assert_eq!(crowd.line().await, "ready");
        crowd
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("the crowd says nothing");
        line.unwrap().expect("the crowd has ended")
    }

    /// Waits until `expected` updates have arrived, or no more do; returns how many.
    pub async fn received(&mut self, expected: u64) -> (u64, Instant) {
        let (mut last, mut at) = (0, Instant::now());
        loop {
            let count: u64 = self.line().await.parse().unwrap();
            if count > last {
                (last, at) = (count, Instant::now());
            }
            if count >= expected || at.elapsed() > Duration::from_secs(3) {
                return (last, at);
            }
        }
    }

    pub async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

pub fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

/// Resident memory of this process.
pub fn resident_bytes() -> f64 {
    let statm = procfs::process::Process::myself().unwrap().statm().unwrap();
    statm.resident as f64 * procfs::page_size() as f64
}

fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
