//! The CPU that is used: by this process, and by what runs beside the gateway and takes its share of the
//! processors (brokers, a database).

use procfs::process::{Stat, all_processes};

/// Processes by name, from BENCH_BESIDE: `rabbitmq=11,12 postgres=13`.
pub struct Beside(Vec<(String, Vec<i32>)>);

impl Beside {
    pub fn from_environment() -> Self {
        let text = std::env::var("BENCH_BESIDE").unwrap_or_default();
        let named = text.split_whitespace().filter_map(|part| {
            let (name, pids) = part.split_once('=')?;
            Some((name.to_owned(), pids.split(',').filter_map(|pid| pid.parse().ok()).collect()))
        });
        Self(named.collect())
    }

    /// User and system time of each, with that of the processes it has started.
    pub fn cpu_seconds(&self) -> Vec<f64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let stats: Vec<Stat> =
            all_processes().into_iter().flatten().flatten().filter_map(|process| process.stat().ok()).collect();
        let seconds = |pids: &Vec<i32>| {
            let theirs = stats.iter().filter(|stat| pids.contains(&stat.pid) || pids.contains(&stat.ppid));
            theirs.map(|stat| stat.utime + stat.stime).sum::<u64>() as f64 / procfs::ticks_per_second() as f64
        };
        self.0.iter().map(|(_, pids)| seconds(pids)).collect()
    }

    /// What each has used since `before` for each of `jobs`, to follow the gateway's.
    pub fn share(&self, before: &[f64], jobs: f64) -> String {
        let used = self.cpu_seconds().into_iter().zip(before).map(|(after, before)| (after - before) / jobs * 1e6);
        self.0.iter().zip(used).map(|((name, _), micros)| format!(", {name} {micros:.0} us")).collect()
    }
}

/// User and system time of this process.
pub fn own_cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("own usage");
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}
