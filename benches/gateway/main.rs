//! The gateway as it is used: the release binary, HTTP with JWTs, sockets; the generator in
//! a process of its own, which is this binary called again.
//!
//! `cargo bench --bench gateway -- [accept|sustained|screen|worker|million] [--quick] [--seconds N]
//! [--jobs N] [--users N] [--rate N] [--in-flight N]`; without a name everything. BENCH_GATEWAY names another
//! binary to measure, GATEWAY__* settings are passed on (`scripts/bench external` sets real brokers),
//! BENCH_BESIDE names processes whose CPU is shown, too.

mod accept;
mod bare;
#[path = "../shared/beside.rs"]
mod beside;
mod consumed;
mod http;
mod live;
mod load;
mod process;
mod rows;
#[path = "../shared/socket.rs"]
mod socket;
mod woken;
mod worker;

use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is measured, and for how long.
pub struct Plan {
    /// Of the measurements of (a).
    pub seconds: u64,
    /// Of each concurrency tried before.
    pub try_seconds: u64,
    /// Of each rate that (b) offers.
    pub step: Duration,
    /// In the store before.
    pub jobs: usize,
    pub users: usize,
    /// The first rate that (b) offers.
    pub start_rate: f64,
    /// Requests in flight of (a), instead of trying some: to compare two stores or binaries.
    pub in_flight: Option<usize>,
}

impl Plan {
    fn new(args: &[String]) -> Self {
        let quick = args.iter().any(|arg| arg == "--quick");
        let number = |name: &str| {
            let at = args.iter().position(|arg| arg == name)?;
            args.get(at + 1)?.parse::<usize>().ok()
        };
        Self {
            seconds: number("--seconds").unwrap_or(if quick { 8 } else { 60 }) as u64,
            try_seconds: if quick { 1 } else { 3 },
            step: Duration::from_secs(if quick { 4 } else { 8 }),
            jobs: number("--jobs").unwrap_or(if quick { 10_000 } else { 100_000 }),
            users: number("--users").unwrap_or(500),
            start_rate: number("--rate").unwrap_or(2_500) as f64,
            in_flight: number("--in-flight"),
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    raise_file_limit();
    match &args[..] {
        [kind, load] if kind == "load" => return load::main(load),
        [kind, work] if kind == "work" => return worker::main(work),
        _ => {}
    }
    let plan = Plan::new(&args);
    let wanted = args.first().filter(|arg| !arg.starts_with("--")).map(String::as_str);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run(wanted, &plan));
}

async fn run(wanted: Option<&str>, plan: &Plan) {
    let wants = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    if wants("accept") || wants("sustained") || wants("worker") {
        let dir = filled(plan, plan.jobs).await;
        if wants("accept") {
            println!("(a) accepted jobs/s");
            accept::run(plan, dir.path()).await;
        }
        if wants("sustained") {
            println!("(b) sustained, {} users with a socket each", plan.users);
            let rate = live::sustained(plan, dir.path()).await;
            println!("(c) submit to screen at half of it");
            live::screen(plan, dir.path(), rate / 2.0).await;
        }
        if wants("worker") {
            println!("worker API");
            worker::run(plan, dir.path()).await;
        }
    }
    if wanted == Some("screen") {
        let dir = filled(plan, plan.jobs).await;
        println!("(c) submit to screen at {} jobs/s, {} users with a socket each", plan.start_rate, plan.users);
        live::screen(plan, dir.path(), plan.start_rate).await;
    }
    if wants("million") {
        let dir = filled(plan, 10 * plan.jobs).await;
        println!("(e) accepted jobs/s");
        accept::run(plan, dir.path()).await;
        println!("(e) sustained, {} users with a socket each", plan.users);
        live::sustained(plan, dir.path()).await;
    }
}

/// A data directory with `jobs` in its store.
async fn filled(plan: &Plan, jobs: usize) -> tempfile::TempDir {
    let dir = process::data_dir();
    let start = Instant::now();
    rows::fill(dir.path(), jobs, plan.users).await;
    println!(
        "{jobs} jobs in the store, {:.0} MB, written in {:.1} s",
        process::size_of(dir.path()) as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    dir
}

fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}
