//! The accept path without HTTP: `EventService::submit` from many tasks, relays and
//! consumers running; beside it a bare loop that writes the same rows.
//!
//! `cargo bench --bench accept -- [seconds] [concurrency]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_gateway::app::Core;
use event_gateway::config::Config;
use event_gateway::domain::factory::Cause;
use event_gateway::domain::{Principal, Role, Timestamp};
use event_gateway::service::{Context, SubmitJob};
use event_gateway::telemetry::Metrics;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

#[tokio::main]
async fn main() {
    let args: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let seconds = args.first().copied().unwrap_or(10);
    let concurrency = args.get(1).copied().unwrap_or(256);
    let rows = std::env::var("BATCH_ROWS").unwrap_or("1024".into());
    let dir = tempfile::tempdir_in(".").unwrap();
    let config = Config::defaults_in(dir.path(), &[("intake.batch_rows", &rows)]).unwrap();
    let metrics = Metrics::new();
    let core = Core::start(&config, metrics.clone()).await.unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let latencies = Arc::new(parking_lot::Mutex::new(hdrhistogram::Histogram::<u64>::new(3).unwrap()));
    let (cpu, start) = (cpu_seconds(), Instant::now());
    let end = start + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for n in 0..concurrency {
        let (service, accepted, latencies) = (core.service.clone(), accepted.clone(), latencies.clone());
        #[expect(clippy::disallowed_methods, reason = "the load generator, not the gateway")]
        tasks.push(tokio::spawn(async move {
            let user: Arc<str> = format!("user-{}", n % 69).into();
            let mut local = hdrhistogram::Histogram::<u64>::new(3).unwrap();
            while Instant::now() < end {
                let raw = br#"{"agent":"external","dataset_id":"survey/2026/field-0042","name":"bench job"}"#;
                let request: SubmitJob = serde_json::from_slice(raw).unwrap();
                let context = Context {
                    principal: Principal {
                        user_id: user.clone(),
                        roles: vec![Role::User],
                        expires_at: Timestamp(i64::MAX),
                    },
                    on_behalf_of: None,
                    cause: Cause::root(),
                    idempotency_key: None,
                    received_at: Timestamp::now(),
                };
                let began = Instant::now();
                service.submit(&context, request, raw).await.unwrap();
                local.record(began.elapsed().as_micros() as u64).unwrap();
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            latencies.lock().add(local).unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let took = start.elapsed().as_secs_f64();
    let jobs = accepted.load(Ordering::Relaxed);
    let cpu_accept = cpu_seconds() - cpu;
    {
        let latencies = latencies.lock();
        println!(
            "accepted {jobs} jobs in {took:.1} s: {:.0}/s, P50 {:.1} ms, P99 {:.1} ms, {:.0} us CPU a job (everything running)",
            jobs as f64 / took,
            latencies.value_at_quantile(0.5) as f64 / 1e3,
            latencies.value_at_quantile(0.99) as f64 / 1e3,
            cpu_accept / jobs as f64 * 1e6,
        );
    }
    let text = metrics.render();
    for line in text.lines().filter(|l| l.contains("commit_") && (l.contains("_sum") || l.contains("_count"))) {
        println!("  {line}");
    }
    let drain = Instant::now();
    loop {
        let open: u64 = core.store.figures().await.map(|f| f.open_legs.iter().map(|(_, n, _)| n).sum()).unwrap_or(1);
        if open == 0 || drain.elapsed() > Duration::from_secs(120) {
            println!(
                "drained the legs in {:.1} s, {open} left; CPU a job in all {:.0} us",
                drain.elapsed().as_secs_f64(),
                (cpu_seconds() - cpu) / jobs as f64 * 1e6
            );
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    core.stop().await;
}
