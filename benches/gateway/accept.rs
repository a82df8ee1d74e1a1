//! (a) Accepted jobs a second through HTTP with a JWT, at the knee and at half of it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::beside::Beside;
use crate::load::{Load, Report};
use crate::process::{Commits, Gateway};
use crate::woken::Workers;
use crate::{Plan, bare};

/// The knee: as many requests in flight as keep the P99 of the 201 below this.
const P99_MS: f64 = 100.0;
const CONCURRENCY: [usize; 7] = [64, 128, 192, 256, 384, 512, 768];
/// A backlog that drains no faster than this is reported as it is then.
const DRAIN: Duration = Duration::from_secs(180);

/// Runs on a filled data directory; returns the rate at the knee.
pub async fn run(plan: &Plan, data_dir: &Path) -> f64 {
    let gateway = Gateway::start(data_dir).await;
    let _workers = Workers::start().await;
    let mut candidates = match plan.in_flight {
        Some(connections) => vec![connections],
        None => knee(plan, &gateway).await,
    };
    let load = Load {
        address: gateway.address.clone(),
        users: plan.users,
        connections: 0,
        rate: None,
        warm_up: Duration::from_secs(2),
        duration: Duration::from_secs(plan.seconds),
        sockets: false,
    };
    // What kept below in a short try may not for long: then with fewer in flight.
    let (knee, batch) = loop {
        let connections = candidates.pop().unwrap_or(CONCURRENCY[0]);
        println!("  {connections} requests in flight, {} s:", plan.seconds);
        let measured = measure("knee     ", &gateway, &Load { connections, ..load.clone() }).await;
        if measured.0.p99 < P99_MS || candidates.is_empty() {
            break measured;
        }
    };
    measure("half     ", &gateway, &Load { connections: 256, rate: Some(knee.rate / 2.0), ..load }).await;
    gateway.stop().await;
    let bare = bare::run(batch, plan.users).await;
    println!(
        "  bare loop: {:.0} jobs/s in batches of {batch}, {:.0} us CPU a job; the knee is {:.0} % of it",
        bare.rate,
        bare.cpu,
        100.0 * knee.rate / bare.rate
    );
    knee.rate
}

/// Tries concurrencies for a moment each; those that keep the P99 below the limit, slowest
/// first.
async fn knee(plan: &Plan, gateway: &Gateway) -> Vec<usize> {
    let mut good = Vec::new();
    for concurrency in CONCURRENCY {
        let load = Load {
            address: gateway.address.clone(),
            users: plan.users,
            connections: concurrency,
            rate: None,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(plan.try_seconds),
            sockets: false,
        };
        let report = load.run().await;
        println!(
            "  {concurrency:>4} in flight: {:>6.0} jobs/s, P50 {:.1} ms, P99 {:.1} ms",
            report.rate, report.p50, report.p99
        );
        if report.p99 < P99_MS {
            good.push((concurrency, report.rate));
        }
    }
    gateway.drain(DRAIN).await;
    good.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    good.into_iter().map(|(concurrency, _)| concurrency).collect()
}

/// The report, and the mean of jobs in a COMMIT.
async fn measure(name: &str, gateway: &Gateway, load: &Load) -> (Report, usize) {
    let beside = Beside::from_environment();
    let (before, cpu, start) = (gateway.metrics().await, gateway.cpu_seconds(), Instant::now());
    let others = beside.cpu_seconds();
    let cpu_before = cpu;
    let report = load.run().await;
    let (after, cpu, seconds) = (gateway.metrics().await, gateway.cpu_seconds() - cpu, start.elapsed().as_secs_f64());
    let commits = Commits::between(&before, &after);
    let (legs, unconsumed) = (after.legs_open(), after.unconsumed());
    let jobs = report.accepted as f64;
    let then = beside.share(&others, jobs);
    let (drained, left) = gateway.drain(DRAIN).await;
    let (cpu_in_all, in_all) = (gateway.cpu_seconds() - cpu_before, beside.share(&others, jobs));
    println!(
        "  {name} {:>6.0} jobs/s, P50 {:.1} ms, P99 {:.1} ms, max {:.0} ms, {} refused",
        report.rate, report.p50, report.p99, report.max, report.refused
    );
    println!(
        "            CPU a job: gateway {:.0} us, generator {:.0} us{then}; gateway {:.2} processors, {:.0} MB resident",
        cpu / jobs * 1e6,
        report.cpu_seconds / jobs * 1e6,
        cpu / seconds,
        gateway.resident_mb()
    );
    println!(
        "            {:.0} events and {:.1} jobs a COMMIT of {:.1} ms, {:.0} COMMITs/s",
        commits.events / commits.count,
        jobs / commits.count,
        commits.seconds / commits.count * 1e3,
        commits.count / seconds
    );
    println!(
        "            owed at the end: {legs} legs, {unconsumed} jobs to consumers; drained in {drained:.1} s, {left} left"
    );
    println!("            CPU a job with what was drained: gateway {:.0} us{in_all}", cpu_in_all / jobs * 1e6);
    (report, (jobs / commits.count).round() as usize)
}
