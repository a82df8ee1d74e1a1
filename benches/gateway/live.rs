//! (b) The highest rate at which nothing lags, 500 users with a socket each; (c) from the
//! start of a POST to its update on the socket at half of that.

use std::path::Path;
use std::time::{Duration, Instant};

use event_gateway::domain::Timestamp;

use crate::Plan;
use crate::beside::Beside;
use crate::consumed;
use crate::load::{Load, Report};
use crate::process::{Commits, Gateway, percentiles};
use crate::woken::Workers;

/// The long measurement is repeated at a lower rate so many times, should it lag.
const AGAIN: usize = 4;
/// Consumers have joined and connections are up.
const WARM_UP: Duration = Duration::from_secs(4);
const DRAIN: Duration = Duration::from_secs(120);
/// No more than this is offered, jobs a second.
const HIGHEST: f64 = 20_000.0;
/// What may be owed at the end of a step, in seconds of work at the offered rate.
const OWED_SECONDS: f64 = 0.5;

struct Step {
    report: Report,
    legs: u64,
    unconsumed: u64,
    cpu: f64,
    /// CPU a job of what runs beside.
    others: String,
    seconds: f64,
    commits: Commits,
    /// Sockets that were told to start again from a snapshot.
    resyncs: f64,
    /// When the warm-up was over.
    warm: Timestamp,
    /// 99th percentiles in milliseconds: a window to its last confirm, by broker; from the making of
    /// an event to the COMMIT of its effect, by consumer.
    publish: Vec<(String, f64)>,
    consume: Vec<(String, f64)>,
    /// Commands that workers took from JetStream, where some do.
    commands: Option<u64>,
}

impl Step {
    /// Everything offered was accepted, and nothing is behind.
    fn keeps_up(&self, rate: f64) -> bool {
        let owed = rate * OWED_SECONDS;
        self.report.rate >= rate * 0.98
            && self.report.refused == 0
            && self.report.delivered == self.report.accepted
            && self.report.screen_p99 < OWED_SECONDS * 1e3
            // Three or, with JetStream's, four legs of a submission, one of its audit event.
            && (self.legs as f64) < 4.0 * owed
            && (self.unconsumed as f64) < owed
            && self.commands.is_none_or(|taken| taken as f64 + owed > self.report.accepted as f64)
    }
}

/// Bisects the offered rate; returns the highest that keeps up.
pub async fn sustained(plan: &Plan, data_dir: &Path) -> f64 {
    let gateway = Gateway::start(data_dir).await;
    let workers = Workers::start().await;
    let (mut low, mut high) = (0.0_f64, HIGHEST);
    let mut rate = plan.start_rate;
    while high - low > 150.0_f64.max(low * 0.04) && high >= 100.0 {
        let step = offer(plan, &gateway, workers.as_ref(), rate, plan.step).await;
        let ok = step.keeps_up(rate);
        print(&step, rate, "keeps up", "lags");
        if ok {
            low = rate;
            rate = if high < HIGHEST { (low + high) / 2.0 } else { rate * 1.3 };
        } else {
            high = rate;
            rate = if low > 0.0 { (low + high) / 2.0 } else { rate * 0.7 };
            gateway.drain(DRAIN).await;
        }
    }
    // Once more, longer: what a short step lets through by luck does not count.
    for again in 0.. {
        let step = offer(plan, &gateway, workers.as_ref(), low, 3 * plan.step).await;
        let ok = step.keeps_up(low);
        print(&step, low, "sustained", "lags after all");
        print_more(&step);
        gateway.drain(DRAIN).await;
        print_consumed(&step).await;
        if ok || again == AGAIN {
            break;
        }
        low *= 0.92;
    }
    gateway.stop().await;
    low
}

/// (c) at `rate`.
pub async fn screen(plan: &Plan, data_dir: &Path, rate: f64) {
    let gateway = Gateway::start(data_dir).await;
    let workers = Workers::start().await;
    let step = offer(plan, &gateway, workers.as_ref(), rate, Duration::from_secs(plan.seconds.min(30))).await;
    print(&step, rate, "keeps up", "lags");
    print_more(&step);
    // What is owed now would be published by whoever runs next on the same store.
    gateway.drain(DRAIN).await;
    print_consumed(&step).await;
    gateway.stop().await;
}

async fn offer(plan: &Plan, gateway: &Gateway, workers: Option<&Workers>, rate: f64, duration: Duration) -> Step {
    let load = Load {
        address: gateway.address.clone(),
        users: plan.users,
        connections: 256,
        rate: Some(rate),
        warm_up: WARM_UP,
        duration,
        sockets: true,
    };
    let taken = workers.map(Workers::taken);
    let (before, cpu, start) = (gateway.metrics().await, gateway.cpu_seconds(), Instant::now());
    let beside = Beside::from_environment();
    let others = beside.cpu_seconds();
    let warm = async {
        tokio::time::sleep(load.warm_up).await;
        (Timestamp::now(), gateway.metrics().await)
    };
    let watching = watch_end(gateway, load.warm_up + load.duration);
    let (report, (warm, at_first), (legs, unconsumed)) = tokio::join!(load.run(), warm, watching);
    let after = gateway.metrics().await;
    Step {
        others: beside.share(&others, report.accepted.max(1) as f64),
        report,
        warm,
        legs,
        unconsumed,
        cpu: gateway.cpu_seconds() - cpu,
        seconds: start.elapsed().as_secs_f64(),
        commits: Commits::between(&before, &after),
        publish: percentiles(&at_first, &after, "publish_seconds"),
        consume: percentiles(&at_first, &after, "consume_seconds"),
        commands: workers.zip(taken).map(|(workers, before)| workers.taken() - before),
        resyncs: after.sum("socket_resyncs_total") - before.sum("socket_resyncs_total"),
    }
}

/// What is owed in the last second of the load: the least of a few looks, since whole
/// windows are in flight at any moment.
async fn watch_end(gateway: &Gateway, duration: Duration) -> (u64, u64) {
    tokio::time::sleep(duration - Duration::from_millis(800)).await;
    let mut least = (u64::MAX, u64::MAX);
    for _ in 0..4 {
        let metrics = gateway.metrics().await;
        least = (least.0.min(metrics.legs_open()), least.1.min(metrics.unconsumed()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    least
}

fn print(step: &Step, rate: f64, keeps_up: &str, lags: &str) {
    let verdict = if step.keeps_up(rate) { keeps_up } else { lags };
    let report = &step.report;
    let commands = step.commands.map(|taken| format!(", {taken} commands taken")).unwrap_or_default();
    println!(
        "  {rate:>6.0} jobs/s offered, {:>6.0} accepted: 201 P99 {:.1} ms; on screen P50 {:.1} ms, P99 {:.1} ms, max {:.0} ms; \
         {} of {} delivered{commands}, {} resyncs; owed {} legs, {} jobs: {verdict}",
        report.rate,
        report.p99,
        report.screen_p50,
        report.screen_p99,
        report.screen_max,
        report.delivered,
        report.accepted,
        step.resyncs,
        step.legs,
        step.unconsumed,
    );
}

fn print_more(step: &Step) {
    let jobs = step.report.accepted as f64;
    println!(
        "            CPU a job: gateway {:.0} us, generator with its sockets {:.0} us{}; gateway {:.2} processors; {:.0} events and {:.1} jobs a COMMIT of {:.1} ms, {:.0} COMMITs/s",
        step.cpu / jobs * 1e6,
        step.report.cpu_seconds / jobs * 1e6,
        step.others,
        step.cpu / step.seconds,
        step.commits.events / step.commits.count,
        jobs / step.commits.count,
        step.commits.seconds / step.commits.count * 1e3,
        step.commits.count / step.seconds,
    );
    println!("            P99: published {}; made to consumed {}", list(&step.publish), list(&step.consume));
}

/// Once everything has been consumed.
async fn print_consumed(step: &Step) {
    if let Some(consumed) = consumed::percentiles(step.warm).await {
        println!("            P99: COMMIT to COMMIT of what was consumed {}", list(&consumed));
    }
}

fn list(of: &[(String, f64)]) -> String {
    let of: Vec<_> = of.iter().map(|(name, ms)| format!("{name} {ms:.0} ms")).collect();
    of.join(", ")
}
