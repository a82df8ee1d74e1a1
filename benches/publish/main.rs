//! The adapters that the relay publishes with beside bare clients: the same messages with the
//! same headers, windows and durability, in turns; each broker alone, then all at once.
//!
//! `scripts/bench publish [rabbitmq|kafka|nats|together|compression] [--seconds N] [--window N]
//! [--rounds N]` starts brokers and says in BENCH_BESIDE which processes they are; EVENT_GATEWAY_TEST_RABBITMQ
//! and the like name them (`scripts/brokers env tests`).

#[path = "../shared/beside.rs"]
mod beside;
mod kafka;
mod nats;
mod rabbitmq;
mod sample;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::beside::{Beside, own_cpu_seconds};
use crate::kafka::Kafka;
use crate::nats::Nats;
use crate::rabbitmq::RabbitMq;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One broker: what publishes a window through the adapter, and what does through the bare client.
/// Both return when all is confirmed; the next window is prepared within that time, too.
trait Pair {
    async fn adapter(&self);
    async fn bare(&self);
    /// Forgets what was published so far.
    async fn tidy(&self);
}

struct Plan {
    time: Duration,
    window: usize,
    rounds: usize,
}

/// What a loop has done.
struct Sample {
    messages: usize,
    rate: f64,
    windows: Histogram<u64>,
}

/// The windows of `window` messages that `publish` can send until `end`.
async fn measured(window: usize, time: Duration, publish: impl AsyncFn()) -> Sample {
    let mut windows = Histogram::new(3).expect("three digits");
    let (start, mut messages) = (Instant::now(), 0);
    while start.elapsed() < time {
        let begun = Instant::now();
        publish().await;
        windows.record(begun.elapsed().as_micros() as u64).expect("it fits");
        messages += window;
    }
    Sample { messages, rate: messages as f64 / start.elapsed().as_secs_f64(), windows }
}

/// One side of one round, with the CPU it took: here, and in what runs beside.
struct Side {
    samples: Vec<Sample>,
    cpu: String,
}

async fn side(samples: impl Future<Output = Vec<Sample>>) -> Side {
    let beside = Beside::from_environment();
    let (own, others) = (own_cpu_seconds(), beside.cpu_seconds());
    let samples = samples.await;
    let messages = samples.iter().map(|sample| sample.messages).sum::<usize>() as f64;
    let own = (own_cpu_seconds() - own) / messages * 1e6;
    Side { samples, cpu: format!("CPU a message: {own:.0} us here{}", beside.share(&others, messages)) }
}

/// Rounds of bare client and adapter in turns; the first warms up and is not counted.
async fn compare(
    names: &[&str],
    plan: &Plan,
    bare: impl AsyncFn() -> Vec<Sample>,
    ours: impl AsyncFn() -> Vec<Sample>,
    tidy: impl AsyncFn(),
) {
    let (mut bares, mut adapters) = (Vec::new(), Vec::new());
    for round in 0..=plan.rounds {
        // Whoever comes second finds logs that are longer: not always the same.
        for first in [round % 2 == 0, round % 2 != 0] {
            let side = if first { side(bare()).await } else { side(ours()).await };
            tidy().await;
            if round > 0 {
                if first { bares.push(side) } else { adapters.push(side) }
            }
        }
    }
    for (who, sides) in [("bare", &bares), ("adapter", &adapters)] {
        for (index, name) in names.iter().enumerate() {
            let mut windows = Histogram::<u64>::new(3).expect("three digits");
            sides.iter().for_each(|side| windows.add(&side.samples[index].windows).expect("the same digits"));
            let rate = median(sides.iter().map(|side| side.samples[index].rate));
            let p99 = windows.value_at_quantile(0.99) as f64 / 1e3;
            println!("  {name:<8} {who:<8} {rate:>8.0}/s, window P99 {p99:>6.1} ms");
        }
        println!("           {who:<8} {}", sides[sides.len() / 2].cpu);
    }
    for (index, name) in names.iter().enumerate() {
        let rates = |sides: &[Side]| sides.iter().map(|side| side.samples[index].rate).collect::<Vec<_>>();
        println!("  {name:<8} ratio    {}", ratio(&rates(&adapters), &rates(&bares)));
    }
    if names.len() > 1 {
        let sums = |sides: &[Side]| {
            sides.iter().map(|side| side.samples.iter().map(|sample| sample.rate).sum()).collect::<Vec<f64>>()
        };
        println!("  all      ratio    {}", ratio(&sums(&adapters), &sums(&bares)));
    }
}

/// The median of the rounds' ratios, and the least and the greatest.
fn ratio(ours: &[f64], bare: &[f64]) -> String {
    let mut ratios: Vec<f64> = ours.iter().zip(bare).map(|(ours, bare)| ours / bare).collect();
    ratios.sort_by(f64::total_cmp);
    let (least, greatest) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} ({least:.2} to {greatest:.2})", median(ratios.into_iter()))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn alone(name: &str, plan: &Plan, pair: &impl Pair) {
    let (window, time) = (plan.window, plan.time);
    compare(
        &[name],
        plan,
        async || vec![measured(window, time, async || pair.bare().await).await],
        async || vec![measured(window, time, async || pair.adapter().await).await],
        async || pair.tidy().await,
    )
    .await;
}

async fn together(plan: &Plan, a: &impl Pair, b: &impl Pair, c: &impl Pair) {
    let (window, time) = (plan.window, plan.time);
    compare(
        &["rabbitmq", "kafka", "nats"],
        plan,
        async || {
            let (a, b, c) = tokio::join!(
                measured(window, time, async || a.bare().await),
                measured(window, time, async || b.bare().await),
                measured(window, time, async || c.bare().await),
            );
            vec![a, b, c]
        },
        async || {
            let (a, b, c) = tokio::join!(
                measured(window, time, async || a.adapter().await),
                measured(window, time, async || b.adapter().await),
                measured(window, time, async || c.adapter().await),
            );
            vec![a, b, c]
        },
        async || {
            tokio::join!(a.tidy(), b.tidy(), c.tidy());
        },
    )
    .await;
}

fn variable(broker: &str) -> String {
    let name = format!("EVENT_GATEWAY_TEST_{broker}");
    std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: scripts/bench publish sets it"))
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default).max(1)
    };
    let plan = Plan {
        time: Duration::from_secs(number("--seconds", 4) as u64),
        window: number("--window", 256),
        rounds: number("--rounds", 5),
    };
    let wanted = args.first().filter(|arg| !arg.starts_with("--")).map(String::as_str);
    let wants = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    println!("windows of {}, {:?} a side, median of {} rounds", plan.window, plan.time, plan.rounds);
    if wants("compression") {
        kafka::compressions(&plan).await;
    }
    let (rabbitmq, kafka, nats) =
        (RabbitMq::new(plan.window).await, Kafka::new(plan.window, "lz4").await, Nats::new(plan.window).await);
    if wants("rabbitmq") {
        alone("rabbitmq", &plan, &rabbitmq).await;
    }
    if wants("kafka") {
        alone("kafka", &plan, &kafka).await;
    }
    if wants("nats") {
        alone("nats", &plan, &nats).await;
    }
    if wants("together") {
        println!("all three at once");
        together(&plan, &rabbitmq, &kafka, &nats).await;
    }
    rabbitmq.end().await;
    kafka.end().await;
    nats.end().await;
}
