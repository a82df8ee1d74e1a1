//! `event-gateway serve`: the core with its front ends, from start to shutdown.

use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::core::{Core, StartError};
use super::health::Sampler;
use super::lock::DataDirLock;
use crate::auth::Authenticator;
use crate::broker::Source;
use crate::config::Config;
use crate::consumer::live::{Live, own_events};
use crate::http::{AppState, HttpOptions, RateLimits, identify, router};
use crate::ops::ledger::Ledger;
use crate::realtime::{self, Realtime};
use crate::runner::control::ServiceControl;
use crate::runner::{Runner, RunnerOptions};
use crate::service::EventService;
use crate::telemetry::Metrics;
use crate::telemetry::readiness::{Latch, Readiness};

/// How often readiness asks the store whether it answers.
const STORE_CHECK: Duration = Duration::from_secs(1);
/// So long after a COMMIT that failed the store is shown as down: the next one may fail, too.
const COMMIT_FAILED: Duration = Duration::from_secs(5);

/// Everything that runs, and how to stop it.
struct Gateway {
    core: Core,
    http: JoinHandle<()>,
    sockets: JoinHandle<()>,
    live: Vec<JoinHandle<()>>,
    runner: JoinHandle<()>,
    watches: Vec<JoinHandle<()>>,
    stop_http: CancellationToken,
    stop_sockets: CancellationToken,
    stop_runner: CancellationToken,
}

/// Runs the gateway until TERM or INT. A second signal exits at once with code 130.
///
/// # Errors
/// It did not start; nothing runs any more.
pub async fn serve(config: Config) -> Result<(), StartError> {
    let _lock = DataDirLock::take(&config.data.dir)?;
    // Bound early: an address in use is known before anything is opened.
    let address = config.http.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
    let mut signals = Signals::new()?;
    let gateway = Gateway::start(&config, listener).await?;
    signals.wait().await;
    tracing::info!(limit = ?config.shutdown.limit, "stopping");
    tokio::select! {
        stopped = tokio::time::timeout(config.shutdown.limit, gateway.stop()) => match stopped {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("not everything ended in time; what is left is in the store and goes on next time"),
        },
        () = signals.wait() => {
            tracing::warn!("a second signal: exiting at once");
            std::process::exit(130);
        }
    }
    Ok(())
}

impl Gateway {
    async fn start(config: &Config, listener: TcpListener) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let readiness = Readiness::new(metrics.clone());
        let (store_latch, sockets_latch) = (readiness.latch("store"), readiness.latch("sockets"));

        let datasets = config.runner.datasets_dir.clone();
        std::fs::create_dir_all(&datasets)
            .and_then(|()| crate::agents::install(&datasets))
            .map_err(|source| StartError::Io { path: datasets, source })?;
        let auth = Authenticator::new(&config.auth, &config.data.dir)?;
        let (own, committed) = own_events();
        let core = Core::start(config, metrics.clone(), own).await?;
        store_latch.up();
        let mut watches = core.brokers.watch(&readiness);

        let realtime =
            Realtime::new(realtime::Options::from(&config.live), core.store.clone(), auth.clone(), metrics.clone());
        let (stop_sockets, stop_runner, stop_http) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let sockets = crate::task::spawn("sockets", realtime.clone().run(stop_sockets.clone()));
        let live = live(&core, &realtime).spawn(committed, &stop_sockets);
        sockets_latch.up();

        let sampler = Sampler {
            service: core.service.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            instance: core.instance.clone(),
            interval: config.health.interval,
        };
        if !config.health.interval.is_zero() {
            watches.push(crate::task::spawn("health", sampler.run()));
        }

        let runner = runner(config, &core)?;
        let runner = crate::task::spawn("runner", runner.run(stop_runner.clone()));

        let state = AppState {
            service: core.service.clone(),
            auth,
            ledger: Arc::new(Ledger::new(core.store.clone(), core.declarations.clone())),
            metrics,
            readiness,
            rate_limits: RateLimits::new(&config.http),
            options: HttpOptions::new(config, core.instance.to_string()),
        };
        let routes = router(state).merge(realtime.routes().layer(from_fn(identify)));
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.http.listen, source })?;
        let tuning = realtime.clone();
        let listener = listener.tap_io(move |stream| {
            if let Err(error) = tuning.tune(stream) {
                tracing::debug!(%error, "the options of an accepted connection");
            }
        });
        let http = crate::http::serve(listener, routes, config.http.idle_timeout, stop_http.clone());
        let http = crate::task::spawn("http", http);
        let store_watch = watch_store(core.service.clone(), core.store.clone(), store_latch, sockets_latch);
        watches.push(crate::task::spawn("store-watch", store_watch));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            instance = %core.instance,
            epoch = core.epoch,
            development = config.is_development(),
            data = %config.data.dir.display(),
            "listening on http://{address}"
        );
        Ok(Self { core, http, sockets, live, runner, watches, stop_http, stop_sockets, stop_runner })
    }

    /// In order: nothing new comes in, runs end and are reported, sockets are told, then
    /// the core drains.
    async fn stop(self) {
        self.watches.iter().for_each(JoinHandle::abort);
        self.stop_http.cancel();
        self.stop_runner.cancel();
        ended("runner", self.runner.await);
        self.stop_sockets.cancel();
        ended("sockets", self.sockets.await);
        for task in self.live {
            ended("live", task.await);
        }
        // Connections that clients keep open do not hold up the rest.
        if let Ok(result) = tokio::time::timeout(Duration::from_secs(2), self.http).await {
            ended("http", result);
        }
        self.core.stop().await;
    }
}

fn ended(what: &str, result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(what, %error, "a task did not end well");
    }
}

fn live(core: &Core, realtime: &Realtime) -> Live {
    let broadcast = Source::Queue { name: "websocket-broadcast".into(), bindings: Vec::new(), exclusive: true };
    Live {
        realtime: realtime.clone(),
        store: core.store.clone(),
        subscriber: core.subscriber(&broadcast),
        catalogue: core.catalogue.clone(),
        metrics: core.metrics.clone(),
        instance: core.instance.clone(),
        epoch: core.epoch,
    }
}

fn runner(config: &Config, core: &Core) -> Result<Runner, StartError> {
    let wrong = |error: &dyn std::fmt::Display| StartError::Runner(error.to_string());
    let this = std::env::current_exe().map_err(|error| wrong(&error))?;
    let options = RunnerOptions::new(&config.runner, &config.agents(), &this, config.shutdown.limit);
    let commands = core.subscriber(&super::core::process_runner_subscription().source);
    // No other life of this instance has this name.
    let claimant = format!("process:{}:{}", core.instance, core.epoch);
    let control = Arc::new(ServiceControl::new(core.service.clone(), core.metrics.clone()));
    Runner::new(control, commands, claimant.into(), options).map_err(|error| wrong(&error))
}

/// Keeps the store's latch true. Aborted at shutdown; holds the sockets' latch till then.
async fn watch_store(service: Arc<EventService>, store: Arc<dyn crate::store::Store>, latch: Latch, _sockets: Latch) {
    loop {
        tokio::time::sleep(STORE_CHECK).await;
        let answers = store.ping().await.map_err(|error| error.to_string());
        let commits = service.committer().failed_within(COMMIT_FAILED).map_or(Ok(()), Err);
        match answers.and(commits) {
            Ok(()) => latch.up(),
            Err(why) => latch.down(&why),
        }
    }
}

/// TERM and INT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let watch = |kind| signal(kind).map_err(|source| StartError::Io { path: "signals".into(), source });
        Ok(Self { term: watch(SignalKind::terminate())?, int: watch(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
