//! The gateway as users run it: the release binary in a process of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::http::Connection;

pub const SECRET: &str = "a secret for benches that is long enough, and only for benches";
/// Starting on a large store, and stopping with a long backlog.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running gateway. Killed when dropped.
pub struct Gateway {
    child: Child,
    pub address: String,
}

impl Gateway {
    /// Starts it on a free port and waits until it listens.
    pub async fn start(data_dir: &Path) -> Self {
        // Another build to compare with.
        let binary = std::env::var_os("BENCH_GATEWAY").unwrap_or(env!("CARGO_BIN_EXE_event-gateway").into());
        let mut child = Command::new(binary)
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Settings to compare.
            .envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GATEWAY__")))
            .env("GATEWAY__HTTP__LISTEN", "127.0.0.1:0")
            .env("GATEWAY__DATA__DIR", data_dir)
            .env("GATEWAY__AUTH__JWT_SECRET", SECRET)
            .env("GATEWAY__LOG__FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        let listening = async {
            while let Some(line) = lines.next_line().await.expect("text") {
                if let Some((_, rest)) = line.split_once("listening on http://") {
                    return rest.split(['"', ' ']).next().map(str::to_owned);
                }
                said.push(line);
            }
            None
        };
        let address = tokio::time::timeout(PATIENCE, listening).await.ok().flatten();
        let address = address.unwrap_or_else(|| panic!("it does not listen:\n{}", said.join("\n")));
        // Ends with the child's stderr, which must not fill up.
        event_gateway::task::spawn("gateway-log", async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("\"ERROR\"") || line.contains("panicked") {
                    eprintln!("gateway: {line}");
                }
            }
        });
        Self { child, address }
    }

    fn pid(&self) -> i32 {
        self.child.id().expect("it runs").try_into().expect("a pid")
    }

    /// User and system time so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = procfs::process::Process::new(self.pid()).and_then(|process| process.stat()).expect("it runs");
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }

    pub fn resident_mb(&self) -> f64 {
        let statm = procfs::process::Process::new(self.pid()).and_then(|process| process.statm()).expect("it runs");
        statm.resident as f64 * procfs::page_size() as f64 / 1e6
    }

    pub async fn metrics(&self) -> Metrics {
        let mut connection = Connection::open(&self.address).await;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        let (status, body) = connection.exchange(request.as_bytes()).await;
        assert_eq!(status, 200);
        Metrics(String::from_utf8(body.to_vec()).expect("text"))
    }

    /// Waits until nothing is owed to brokers and consumers. The seconds it took and what
    /// is left after `limit`.
    pub async fn drain(&self, limit: Duration) -> (f64, u64) {
        let start = Instant::now();
        let mut quiet = 0;
        loop {
            let owed = self.metrics().await.owed();
            quiet = if owed == 0 { quiet + 1 } else { 0 };
            // Twice, since the lag of a consumer is as of its last batch.
            if quiet == 2 || start.elapsed() > limit {
                return (start.elapsed().as_secs_f64(), owed);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// TERM, and waits for the end.
    pub async fn stop(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("it runs");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends in time");
        assert!(status.expect("it ends").success());
    }
}

/// `/metrics` at one moment.
pub struct Metrics(String);

impl Metrics {
    /// The sum over all labels of the metric called `event_gateway_{name}`; with labels in
    /// `name`, that one value.
    pub fn sum(&self, name: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix("event_gateway_")?.strip_prefix(name)?;
            let value = if rest.starts_with('{') { rest.split_once("} ")?.1 } else { rest.strip_prefix(' ')? };
            value.parse::<f64>().ok()
        });
        values.sum()
    }

    /// Legs not done, and jobs that the audit or the metrics consumer has not handled.
    pub fn owed(&self) -> u64 {
        self.legs_open() + self.unconsumed()
    }

    pub fn legs_open(&self) -> u64 {
        self.sum("outbox_backlog").max(0.0) as u64
    }

    /// Jobs accepted since the start whose submission a consumer has not handled. Only
    /// right where nothing but submissions is consumed.
    pub fn unconsumed(&self) -> u64 {
        let jobs = self.sum("accepted_total{kind=\"job\"}");
        let behind = |consumer: &str| {
            let handled = self.sum(&format!("consume_seconds_count{{consumer=\"{consumer}\"}}"));
            (jobs - handled).max(0.0) as u64
        };
        behind("audit").max(behind("metrics"))
    }
}

/// What the histogram `event_gateway_{name}` has taken between two readings: for each value of
/// its label the 99th percentile in milliseconds, between two bounds by proportion.
pub fn percentiles(before: &Metrics, after: &Metrics, name: &str) -> Vec<(String, f64)> {
    let counts = |metrics: &Metrics| {
        let mut counts: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in metrics.0.lines() {
            let bucket = || {
                let rest = line.strip_prefix("event_gateway_")?.strip_prefix(name)?.strip_prefix("_bucket{")?;
                let (labels, count) = rest.split_once("} ")?;
                let (label, bound) = labels.split_once(",le=")?;
                let label = label.split('"').nth(1)?.to_owned();
                Some((label, bound.trim_matches('"').parse().ok()?, count.parse().ok()?))
            };
            if let Some((label, bound, count)) = bucket() {
                counts.entry(label).or_default().push((bound, count));
            }
        }
        counts
    };
    let earlier = counts(before);
    let mut found = Vec::new();
    for (label, mut buckets) in counts(after) {
        for ((_, count), (_, was)) in buckets.iter_mut().zip(earlier.get(&label).into_iter().flatten()) {
            *count -= was;
        }
        let wanted = buckets.last().map_or(0.0, |(_, all)| all * 0.99);
        let Some(at) = buckets.iter().position(|(_, count)| *count >= wanted).filter(|_| wanted > 0.0) else {
            continue;
        };
        let (below, fewer) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        let (bound, count) = buckets[at];
        // Beyond the last bound nothing more is known.
        let bound = if bound.is_finite() { bound } else { below };
        found.push((label, 1e3 * (below + (bound - below) * (wanted - fewer) / (count - fewer))));
    }
    found
}

/// What a commit carried between two readings.
pub struct Commits {
    pub count: f64,
    pub events: f64,
    pub seconds: f64,
}

impl Commits {
    pub fn between(before: &Metrics, after: &Metrics) -> Self {
        let grown = |name: &str| after.sum(name) - before.sum(name);
        Self {
            count: grown("commit_seconds_count").max(1.0),
            events: grown("committed_events_total"),
            seconds: grown("commit_seconds_sum"),
        }
    }
}

/// A data directory on the disk the target directory is on; gone when dropped.
pub fn data_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory below target/")
}

/// Bytes of the files in `dir`.
pub fn size_of(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
}

/// Where the store's file is.
pub fn store_file(dir: &Path) -> PathBuf {
    dir.join("gateway.db")
}
