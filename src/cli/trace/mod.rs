//! `trace`: plays the cluster of a workload log. Users submit at the log's times divided by
//! the speed-up, a worker claims, starts, samples and ends the jobs, sockets watch, and in
//! the end every job answered 201 is accounted for.

mod board;
mod calls;
mod cluster;
mod report;
mod screen;
mod submit;
mod swf;
mod tokens;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, print, print_json};
use super::session::{self, gateway_url};
use board::Board;
use calls::Calls;
use cluster::Cluster;
use report::{Report, Screens};
use screen::{Screen, Seen};
use submit::Run;
use swf::Log;
use tokens::Tokens;

#[derive(Args)]
#[command(after_help = "\
Examples:
  event-gateway trace NASA-iPSC-1993-3.1-cln.swf.gz --speedup 40000
  event-gateway trace log.swf --speedup 1000 --limit 500 --watch 10 --output json

The operator's and worker's tokens are made from auth.jwt_secret, or fetched from a gateway in
development mode, unless they are given. Nobody else should work for the agent meanwhile.

lost = answered 201, but not final, a leg not done, or a gap in a sequence. The exit code is 0
only if nothing is lost, refused or missing on a screen.")]
pub struct Trace {
    /// A log in Standard Workload Format, plain or gzip.
    #[arg(value_name = "FILE.swf")]
    file: PathBuf,
    /// How much faster than the log.
    #[arg(long, value_parser = speedup)]
    speedup: f64,
    /// Play the first N jobs only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sockets that watch, spread over the users with the most jobs, at most 5 a user.
    #[arg(long, value_name = "N", default_value_t = 100)]
    watch: usize,
    /// Job channels each socket joins at a time.
    #[arg(long, value_name = "N", default_value_t = 20)]
    rooms: usize,
    /// Resource samples reported of each job.
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: u32,
    /// Jobs the cluster runs at once.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    slots: usize,
    /// Requests in flight, of users and of the worker each.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    in_flight: usize,
    /// How long the end waits for something that is missing before it counts as lost.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    settle: Duration,
    /// The agent the jobs are for; its runner must be external.
    #[arg(long, default_value = "external")]
    agent: String,
    /// The gateway.
    #[arg(long, env = "GATEWAY_URL", default_value = "http://127.0.0.1:8080", value_parser = gateway_url)]
    url: Url,
    /// Submits on behalf of the log's users, and asks for the account.
    #[arg(long, env = "GATEWAY_OPERATOR_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    operator_token: Option<String>,
    /// Claims and reports.
    #[arg(long, env = "GATEWAY_WORKER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    worker_token: Option<String>,
}

/// Sockets of one user; the gateway's default limit.
const SCREENS_PER_USER: usize = 5;
/// A call is repeated for so long before it counts as refused.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between lines of progress where there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// All screens are connected within this time, or the run does not start.
const SCREENS_LIMIT: Duration = Duration::from_secs(30);

fn speedup(text: &str) -> Result<f64, String> {
    let speedup: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if speedup.is_finite() && speedup > 0.0 { Ok(speedup) } else { Err("must be more than 0".to_owned()) }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("is not a whole number".to_owned()),
    }
}

pub async fn run(trace: &Trace, global: &Global) -> Outcome {
    let (file, limit) = (trace.file.clone(), trace.limit);
    let log = tokio::task::spawn_blocking(move || swf::read(&file, limit)).await;
    let log = log.map_err(|error| Failure::failed(error.to_string()))?;
    let log = log.map_err(|error| Failure::failed(format!("{}: {error}", trace.file.display())))?;
    let api = session::api(&trace.url)?;
    let tokens = Tokens::new(&api, global, trace.operator_token.clone(), trace.worker_token.clone())?;
    let operator = Calls::new(api.with_token(&tokens.operator().await?), trace.in_flight, PATIENCE);
    let worker = Calls::new(api.with_token(&tokens.worker().await?), trace.in_flight, PATIENCE);
    let report =
        Player { trace, tokens, operator, worker, board: Arc::default(), seen: Arc::default() }.play(log).await?;
    match global.output {
        Format::Json => print_json(&report)?,
        Format::Text => print(&report.text())?,
    }
    match (report.is_clean(), report.interrupted) {
        (true, _) => Ok(()),
        (false, true) => Err(Failure::interrupted()),
        (false, false) => Err(Failure::failed("not everything went well; see the report")),
    }
}

struct Player<'a> {
    trace: &'a Trace,
    tokens: Tokens,
    operator: Calls,
    worker: Calls,
    board: Arc<Board>,
    seen: Arc<Seen>,
}

impl Player<'_> {
    async fn play(self, log: Log) -> Result<Report, Failure> {
        let (board, seen, trace) = (&self.board, &self.seen, self.trace);
        let jobs_in_log = log.jobs.len();
        let users = users(&log);
        let stop_screens = CancellationToken::new();
        let (mut screens, screens_of) = self.open_screens(&users, &stop_screens).await?;
        let sockets = screens.len();
        self.wait_for_screens(sockets).await?;

        let run = Arc::new(Run {
            id: crate::domain::Id::new(),
            log: log_name(trace),
            agent: trace.agent.clone(),
            speedup: trace.speedup,
            start: Instant::now(),
        });
        let bar = bar(jobs_in_log as u64);
        let (stop_users, stop_cluster) = (CancellationToken::new(), CancellationToken::new());
        let interrupted = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(progress(bar.clone(), board.clone(), seen.clone(), stop_cluster.clone()));
        tasks.spawn(on_interrupt(interrupted.clone(), stop_users.clone(), stop_cluster.clone()));
        let cluster = Cluster {
            run: run.clone(),
            calls: self.worker.clone(),
            slots: trace.slots,
            samples: trace.samples,
            board: board.clone(),
        };
        let mut cluster = crate::task::spawn("trace cluster", Arc::new(cluster).run(stop_cluster.clone()));
        submit::all(run.clone(), log.jobs, self.operator.clone(), trace.in_flight, board.clone(), stop_users).await;
        self.wait_for_ends(&stop_cluster).await;
        stop_cluster.cancel();
        // What runs for hours at a low speed-up is not waited for after an interrupt.
        let ended = tokio::time::timeout(trace.settle, &mut cluster).await;
        if ended.is_err() {
            cluster.abort();
        }
        let seconds = run.start.elapsed().as_secs_f64();

        let interrupted = interrupted.is_cancelled();
        let accepted = board.accepted_jobs();
        bar.reset();
        bar.set_length(accepted.len() as u64);
        bar.set_message("asking for every job and its legs");
        let accounts = verify::all(&self.operator, accepted, trace.settle, &bar).await;
        let never_shown = self.wait_for_the_last_update(&screens_of).await;
        bar.finish_and_clear();
        stop_screens.cancel();
        while screens.join_next().await.is_some() {}
        tasks.abort_all();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Report {
            log: run.log.clone(),
            jobs_in_log: jobs_in_log as u64,
            users_in_log: users.len() as u64,
            partial_lines: log.partial_lines as u64,
            speedup: trace.speedup,
            seconds,
            submitted: count(&board.submitted),
            refused: count(&board.refused),
            accounts,
            peak_submits_per_second: board.peak_per_second(),
            schedule_lag: board.lag.summary(),
            submit_to_accepted: board.accept.summary(),
            submit_to_screen: board.submit_to_screen.summary(),
            screens: Screens {
                sockets: sockets as u64,
                users: screens_of.len() as u64,
                updates: count(&seen.updates),
                gaps: count(&seen.gaps),
                resyncs: count(&seen.resyncs),
                reconnects: count(&seen.reconnects),
                never_shown,
            },
            worker_refusals: count(&board.worker_refusals),
            foreign_jobs: count(&board.foreign),
            interrupted,
            complaints: board.complaints(),
        })
    }

    /// Opens the sockets; how many each user has.
    async fn open_screens(
        &self,
        users: &[(i64, usize)],
        stop: &CancellationToken,
    ) -> Result<(JoinSet<()>, HashMap<i64, u32>), Failure> {
        let mut screens = JoinSet::new();
        let mut screens_of: HashMap<i64, u32> = HashMap::new();
        let mut tokens: HashMap<i64, String> = HashMap::new();
        let wanted = self.trace.watch.min(users.len() * SCREENS_PER_USER);
        for (user, _) in users.iter().cycle().take(wanted) {
            if !tokens.contains_key(user) {
                let Some(token) = self.tokens.user(&user_name(*user)).await? else {
                    eprintln!("no sockets: tokens of the log's users need auth.jwt_secret or development mode");
                    return Ok((screens, screens_of));
                };
                tokens.insert(*user, token);
            }
            let screen = Screen {
                base: self.trace.url.clone(),
                user: user_name(*user),
                token: tokens[user].clone(),
                rooms: self.trace.rooms,
                board: self.board.clone(),
                seen: self.seen.clone(),
                cursors: HashMap::new(),
            };
            screens.spawn(screen.watch(stop.clone()));
            *screens_of.entry(*user).or_default() += 1;
        }
        Ok((screens, screens_of))
    }

    async fn wait_for_screens(&self, sockets: usize) -> Outcome {
        let all_there = || self.seen.connected.load(Ordering::Relaxed) >= sockets as i64;
        if poll(SCREENS_LIMIT, all_there).await {
            return Ok(());
        }
        let why = self.board.complaints().join("; ");
        Err(Failure::unreachable(format!("only some of {sockets} sockets could connect: {why}")))
    }

    /// Returns when the cluster has ended every accepted job, or has stopped doing so.
    async fn wait_for_ends(&self, stop: &CancellationToken) {
        let mut last = (usize::MAX, Instant::now());
        loop {
            let open = self.board.open_jobs();
            if open == 0 || stop.is_cancelled() {
                return;
            }
            if open != last.0 {
                last = (open, Instant::now());
            }
            // Claimed jobs may run long at a low speed-up; unclaimed ones should not wait.
            let claimed_all =
                self.board.claimed.load(Ordering::Relaxed) >= self.board.submitted.load(Ordering::Relaxed);
            if !claimed_all && last.1.elapsed() > self.trace.settle {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// How many jobs the screens have not shown, when nothing more comes.
    async fn wait_for_the_last_update(&self, screens_of: &HashMap<i64, u32>) -> u64 {
        poll(self.trace.settle, || self.board.unseen(screens_of) == 0).await;
        self.board.unseen(screens_of)
    }
}

/// Waits until `condition` holds; false if it does not within `limit`.
async fn poll(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// The users of a log with their numbers of jobs, the busiest first.
fn users(log: &Log) -> Vec<(i64, usize)> {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for job in &log.jobs {
        *counts.entry(job.user).or_default() += 1;
    }
    let mut users: Vec<_> = counts.into_iter().collect();
    users.sort_by_key(|(_, jobs)| std::cmp::Reverse(*jobs));
    users
}

/// The gateway's name of the log's user.
fn user_name(user: i64) -> String {
    if user < 0 { "swf-user-unknown".to_owned() } else { format!("swf-user-{user}") }
}

/// The file's name without its extensions.
fn log_name(trace: &Trace) -> String {
    let name = trace.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let name = name.strip_suffix(".swf").unwrap_or(name);
    let kept: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(60).collect();
    if kept.trim_matches('.').is_empty() { "log".to_owned() } else { kept }
}

fn bar(length: u64) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} [{elapsed_precise}] {msg}");
    bar.set_style(style.expect("the template is valid"));
    bar
}

/// Shows how far the run is: the bar on a terminal, else a line now and then.
async fn progress(bar: ProgressBar, board: Arc<Board>, seen: Arc<Seen>, stop: CancellationToken) {
    let mut line_at = Instant::now() + LINE_EVERY;
    while !stop.is_cancelled() {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (submitted, ended) = (count(&board.submitted), count(&board.ended));
        let message = format!(
            "submitted {submitted}, open {}, refused {}, lag p99 {:.0} ms, screen p99 {:.0} ms, sockets {}",
            submitted.saturating_sub(ended),
            count(&board.refused),
            board.lag.summary().p99_ms,
            board.submit_to_screen.summary().p99_ms,
            seen.connected.load(Ordering::Relaxed),
        );
        bar.set_position(ended);
        if bar.is_hidden() && Instant::now() >= line_at {
            eprintln!("ended {ended}, {message}");
            line_at += LINE_EVERY;
        }
        bar.set_message(message);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// The first Ctrl-C stops submitting and claiming, and the report follows; the second ends.
async fn on_interrupt(interrupted: CancellationToken, users: CancellationToken, cluster: CancellationToken) {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    eprintln!("interrupted: ending what runs, then the report; press Ctrl-C again to quit");
    interrupted.cancel();
    users.cancel();
    cluster.cancel();
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(130);
    }
}
