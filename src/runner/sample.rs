//! What a run uses: measured from `/proc` for the whole process family.
//!
//! Rates are means over the interval, memory is that at its end; MB and GB are powers of ten.
//! - CPU: percent of the cores the job was given (those it asked for, as far as the machine
//!   has them); more than 100 when it uses others too.
//! - Memory: resident; pages that processes share count in each.
//! - Disk throughput: what really came from or went to storage. Operations: read and write
//!   calls, from cache too; the kernel counts no others per process.
//! - GPU and network: 0, nobody measures them.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::family::{Family, Search};
use super::spawn::{Exit, IoCounts};
use crate::domain::Timestamp;
use crate::domain::payload::{JobMetrics, ResultMetrics};
use crate::service::Sample;

/// Before the first interval is over memory is looked at now and then, so that short runs
/// have a figure too.
const PEEKS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// Everything a family has used so far, and holds now.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    cpu_seconds: f64,
    io: IoCounts,
    rss_bytes: u64,
}

impl Totals {
    /// Blocking. `None` when nothing of it is left.
    fn measure(family: &Family) -> Option<Self> {
        let members = family.members(Search::Kin);
        if members.iter().all(|stat| matches!(stat.state, 'Z' | 'X')) {
            return None;
        }
        let ticks = procfs::ticks_per_second() as f64;
        let mut totals = Self::default();
        for stat in &members {
            // Children that were waited for count with their parent; so does their I/O.
            let waited = u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
            totals.cpu_seconds += (stat.utime + stat.stime + waited) as f64 / ticks;
            totals.rss_bytes += stat.rss * procfs::page_size();
            if let Some(io) = IoCounts::of(stat.pid) {
                totals.io.read_bytes += io.read_bytes;
                totals.io.write_bytes += io.write_bytes;
                totals.io.reads += io.reads;
                totals.io.writes += io.writes;
            }
        }
        Some(totals)
    }

    /// A process that ends unwaited takes its figures along: a sum never goes back.
    fn advance(&mut self, to: Self) {
        self.cpu_seconds = self.cpu_seconds.max(to.cpu_seconds);
        self.io.read_bytes = self.io.read_bytes.max(to.io.read_bytes);
        self.io.write_bytes = self.io.write_bytes.max(to.io.write_bytes);
        self.io.reads = self.io.reads.max(to.io.reads);
        self.io.writes = self.io.writes.max(to.io.writes);
        self.rss_bytes = to.rss_bytes;
    }
}

/// Measures one run.
pub(super) struct Sampler {
    family: Family,
    host: Option<String>,
    /// 100 % of CPU.
    cores: f64,
    interval: Duration,
    started: Instant,
    now: Totals,
    measured_at: Instant,
    /// Resident byte-seconds up to `measured_at`.
    rss_seconds: f64,
    /// The totals and time of the last sample.
    sampled: (Instant, Totals),
    samples: u32,
    peeks: std::slice::Iter<'static, Duration>,
    due: Instant,
}

impl Sampler {
    /// Begins now, at the start of the run.
    pub fn new(family: Family, host: Option<String>, cores: f64, interval: Duration) -> Self {
        let now = Instant::now();
        let mut sampler = Self {
            family,
            host,
            cores,
            interval,
            started: now,
            now: Totals::default(),
            measured_at: now,
            rss_seconds: 0.0,
            sampled: (now, Totals::default()),
            samples: 0,
            peeks: PEEKS.iter(),
            due: now,
        };
        sampler.plan();
        sampler
    }

    /// When [`Sampler::measure`] wants to be called.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Measures; a sample when an interval is over. Cancel safe.
    pub async fn measure(&mut self) -> Option<Sample> {
        let family = self.family.clone();
        let totals = spawn_blocking(move || Totals::measure(&family)).await.ok().flatten();
        let now = Instant::now();
        if let Some(totals) = totals {
            self.advance(totals, now);
        }
        let complete = now >= self.sampled.0 + self.interval;
        let sample = (complete && totals.is_some()).then(|| self.sample(now));
        if complete {
            // Also without a sample: the process has ended, its last one comes with `finish`.
            self.due = now + self.interval;
        } else {
            self.plan();
        }
        sample
    }

    /// With the final figures: the last sample, if the time since the one before is worth
    /// one, and averages of the whole run.
    pub fn finish(mut self, exit: &Exit) -> (Option<Sample>, ResultMetrics) {
        let now = Instant::now();
        let rss_bytes = self.now.rss_bytes;
        let io = exit.io.unwrap_or_default();
        self.advance(Totals { cpu_seconds: exit.cpu_seconds, io, rss_bytes }, now);
        let sample = (self.samples == 0 || now - self.sampled.0 >= self.interval / 2).then(|| self.sample(now));
        let seconds = (now - self.started).as_secs_f64().max(1e-3);
        let metrics = ResultMetrics {
            cpu_utilization_percent: round(100.0 * self.now.cpu_seconds / seconds / self.cores),
            gpu_utilization_percent: 0.0,
            memory_used_gb: round_to(self.rss_seconds / seconds / 1e9, 1e6),
            io_throughput_mbps: round((self.now.io.read_bytes + self.now.io.write_bytes) as f64 / seconds / 1e6),
        };
        (sample, metrics)
    }

    /// The next peek, or the end of the interval.
    fn plan(&mut self) {
        let sample_at = self.sampled.0 + self.interval;
        self.due = self.peeks.next().map_or(sample_at, |peek| sample_at.min(self.started + *peek));
    }

    fn advance(&mut self, totals: Totals, now: Instant) {
        // The first look stands for the time before it.
        let before = if self.now.rss_bytes == 0 { totals.rss_bytes } else { self.now.rss_bytes };
        self.rss_seconds += (before as f64 + totals.rss_bytes as f64) / 2.0 * (now - self.measured_at).as_secs_f64();
        self.measured_at = now;
        self.now.advance(totals);
    }

    fn sample(&mut self, now: Instant) -> Sample {
        let (since, before) = std::mem::replace(&mut self.sampled, (now, self.now));
        self.samples += 1;
        let seconds = (now - since).as_secs_f64().max(1e-3);
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        let (io, last) = (self.now.io, before.io);
        Sample {
            host: self.host.clone(),
            sample_timestamp: Timestamp::now(),
            sample_interval_seconds: round_to(seconds, 1e3),
            metrics: JobMetrics {
                cpu_utilization_percent: round(
                    100.0 * (self.now.cpu_seconds - before.cpu_seconds) / seconds / self.cores,
                ),
                system_memory_used_gb: round_to(self.now.rss_bytes as f64 / 1e9, 1e6),
                disk_read_iops: round(rate(io.reads, last.reads)),
                disk_write_iops: round(rate(io.writes, last.writes)),
                disk_read_throughput_mbps: round(rate(io.read_bytes, last.read_bytes) / 1e6),
                disk_write_throughput_mbps: round(rate(io.write_bytes, last.write_bytes) / 1e6),
                ..JobMetrics::default()
            },
        }
    }
}

/// Two digits after the point: more would be noise.
fn round(value: f64) -> f64 {
    round_to(value, 1e2)
}

fn round_to(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}
