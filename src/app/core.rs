//! Everything below the front ends: store, brokers, committer, relay, consumers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::brokers::Brokers;
use crate::broker::embedded::EmbeddedError;
use crate::broker::{Source, Subscriber, Subscription};
use crate::config::Config;
use crate::consumer::live::OwnEvents;
use crate::consumer::{self, ConsumerParts, Declaration, dead_letter, declaration, orchestrator, overdue};
use crate::domain::catalogue::Catalogue;
use crate::domain::factory::EventFactory;
use crate::domain::job::RunnerKind;
use crate::domain::{Broker, Event};
use crate::relay::{Handoff, Held, LeaseEnd, LeaseKeeper, Marks, Relay, RelayOptions};
use crate::runner::datasets;
use crate::service::agents::{AgentOptions, Agents, Dataset, Datasets};
use crate::service::committer::{Committer, CommitterOptions};
use crate::service::{EventService, ServiceOptions};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Lock(#[from] super::lock::LockError),
    #[error("the catalogue contradicts itself:\n  {}", .0.join("\n  "))]
    Catalogue(Vec<String>),
    #[error("the configuration is wrong:\n  {}", .0.join("\n  "))]
    Config(Vec<String>),
    #[error("consumers: {}", .0.join("; "))]
    Consumers(Vec<String>),
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("embedded brokers: {0}")]
    Embedded(#[from] EmbeddedError),
    #[error("brokers:\n  {}", .0.join("\n  "))]
    Brokers(Vec<String>),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("sign-in: {0}")]
    Auth(#[from] crate::auth::SetupError),
    #[error("cannot listen on {address}: {source}; is another program using the port?")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("runner: {0}")]
    Runner(String),
}

/// The name of the durable consumer that wakes the process runner.
pub const PROCESS_RUNNER: &str = crate::runner::CONSUMER;

/// The running core.
pub struct Core {
    pub store: Arc<dyn Store>,
    pub service: Arc<EventService>,
    pub catalogue: Arc<Catalogue>,
    pub brokers: Arc<Brokers>,
    pub declarations: Vec<Declaration>,
    pub instance: Arc<str>,
    pub epoch: i64,
    pub metrics: Arc<Metrics>,
    tasks: CoreTasks,
}

struct CoreTasks {
    consumers: Vec<JoinHandle<()>>,
    relay: Vec<JoinHandle<()>>,
    committer: JoinHandle<()>,
    lease: JoinHandle<()>,
    stop_consumers: CancellationToken,
    stop_relay: CancellationToken,
    stop_lease: CancellationToken,
}

/// Who gets what was committed.
struct Takers {
    relay: Arc<Relay>,
    own: OwnEvents,
}

impl Handoff for Takers {
    fn committed(&self, events: &[Arc<Event>]) {
        self.own.committed(events);
        self.relay.committed(events);
    }

    fn waited(&self, longest: Duration) {
        self.relay.waited(longest);
    }
}

/// Datasets on the disk of this gateway.
struct LocalDatasets {
    root: PathBuf,
    agents: Vec<(String, PathBuf)>,
}

impl Datasets for LocalDatasets {
    fn list(&self, agent: &str) -> Vec<Dataset> {
        let below = self.agents.iter().find(|(name, _)| name == agent).map(|(_, below)| below.as_path());
        datasets::list_below(&self.root, below.unwrap_or(Path::new("")), agent)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, agent, "datasets cannot be listed");
                Vec::new()
            })
            .into_iter()
            .map(|found| Dataset {
                id: found.id,
                bytes: found.bytes,
                description: found.description.unwrap_or_default(),
            })
            .collect()
    }

    fn check(&self, _agent: &str, id: &str) -> Result<(), String> {
        datasets::resolve(&self.root, id).map(|_| ()).map_err(|error| error.to_string())
    }
}

fn agents(config: &Config) -> Result<Agents, StartError> {
    let configured = config.agents();
    let local = LocalDatasets {
        root: config.runner.datasets_dir.clone(),
        agents: configured.iter().map(|agent| (agent.name.clone(), agent.datasets.clone())).collect(),
    };
    let options = configured
        .into_iter()
        .map(|agent| AgentOptions {
            claim_api: agent.runner == RunnerKind::External && agent.claim == crate::config::Claim::Api,
            name: agent.name,
            runner: agent.runner,
            description: agent.description,
            params_schema: agent.params_schema,
            any_dataset: agent.any_dataset,
            cost_per_gpu_hour_usd: agent.cost_per_gpu_hour_usd.unwrap_or(config.runner.cost_per_gpu_hour_usd),
        })
        .collect();
    Agents::new(options, Arc::new(local)).map_err(StartError::Config)
}

/// The subscription that wakes the process runner; declared before anything is published.
pub fn process_runner_subscription() -> Subscription {
    Subscription {
        consumer: PROCESS_RUNNER.into(),
        source: Source::WorkQueue { stream: "COMMANDS_JOB".into(), filter: "commands.job.submit.process".into() },
        prefetch: 64,
        ack_wait: Duration::from_secs(30),
    }
}

impl Core {
    /// Opens store and brokers, makes up for what a crash lost, and starts everything. What is
    /// committed is left in `own`, too.
    ///
    /// # Errors
    /// Nothing runs when it fails.
    pub async fn start(config: &Config, metrics: Arc<Metrics>, own: OwnEvents) -> Result<Self, StartError> {
        let catalogue = Catalogue::load(&config.catalogue.dirs)
            .map_err(|errors| StartError::Catalogue(errors.iter().map(ToString::to_string).collect()))?;
        let agents = Arc::new(agents(config)?);
        let limit = config.http.event_limit.as_u64() as usize;
        let factory = Arc::new(EventFactory::new(catalogue.clone(), agents.api_claimed(), limit));

        let store = super::store::open(config, factory.clone()).await?;
        let instance: Arc<str> = config.instance.id.as_str().into();
        let (keeper, enrolment) = LeaseKeeper::enroll(store.clone(), instance.clone(), config.instance.lease).await?;
        let lease = keeper.watch();
        let stop_lease = CancellationToken::new();
        // A start that fails does not go on renewing it.
        let starting = stop_lease.clone().drop_guard();
        let lease_task = crate::task::spawn("lease", keep_lease(keeper, stop_lease.clone()));

        let options = RelayOptions {
            lanes: config.relay.lanes,
            lane_capacity: Held {
                events: config.relay.lane_capacity,
                bytes: usize::try_from(config.relay.lane_bytes.as_u64()).unwrap_or(usize::MAX),
            },
            window: config.relay.window,
            spacing: config.relay.spacing,
        };
        let relay = Relay::new(&Broker::ALL, options, metrics.clone());
        let (committer, committer_task) = Committer::spawn(
            store.clone(),
            Arc::new(Takers { relay: relay.clone(), own }),
            CommitterOptions {
                max_bytes: config.intake.max_bytes.as_u64() as usize,
                batch_rows: config.intake.batch_rows,
            },
            metrics.clone(),
        );
        let service = Arc::new(EventService::new(
            store.clone(),
            committer.clone(),
            factory.clone(),
            agents,
            ServiceOptions {
                max_retries_default: config.jobs.max_retries_default,
                max_retries_limit: config.jobs.max_retries_limit,
                batch_limit: 500,
                external_lease_ms: config.runner.external_lease.as_millis() as i64,
            },
        ));

        let declarations = consumer::declarations();
        declaration::check(&declarations, &catalogue).map_err(StartError::Consumers)?;
        let brokers = Brokers::open(config, &catalogue, durable(), &*store).await?;

        let stop_relay = CancellationToken::new();
        let marks: Arc<dyn Marks> = Arc::new(committer.clone());
        let housekeeping = super::housekeeping::Housekeeping {
            store: store.clone(),
            metrics: metrics.clone(),
            consumers: declarations.iter().map(|declaration| declaration.name).chain([PROCESS_RUNNER]).collect(),
        };
        // Before a lane subtracts what it has published.
        housekeeping.figures().await;
        let relay_tasks = relay.spawn(&brokers.publishers(), &store, &marks, &lease, options, &stop_relay);

        let stop_consumers = CancellationToken::new();
        let parts = ConsumerParts {
            catalogue: catalogue.clone(),
            committer: committer.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
        };
        let mut consumers = Vec::new();
        let (mut owners, mut owed) = (Vec::new(), Vec::new());
        let retry_soon = Arc::default();
        let timer = orchestrator::Timer { service: service.clone(), retry_soon: Arc::clone(&retry_soon) };
        let with = consumer::Parts { service: service.clone(), factory, retry_soon };
        for consumer in &consumer::ALL {
            let handler = (consumer.build)(&with);
            let declaration = handler.declaration();
            let subscriber = brokers.subscriber(&declaration.source);
            let tasks = consumer::spawn(handler, subscriber, &parts, &stop_consumers);
            consumers.extend(tasks.handles);
            let (retry_soon, drained) = (tasks.retry_soon, tasks.drained);
            if matches!(declaration.source, Source::Queue { .. }) {
                owners.push(dead_letter::Owner { declaration: declaration.clone(), retry_soon: retry_soon.clone() });
            }
            owed.push(overdue::Owed { declaration, retry_soon, drained });
        }
        if let Some(source) = brokers.dead_letters() {
            consumers.push(dead_letter::spawn(source, owners, &parts, &stop_consumers));
        }
        let overdue = overdue::Options { after: config.consumer.overdue_after, keep: config.retention.keep };
        consumers.push(overdue::spawn(owed, overdue, &parts, &stop_consumers));
        consumers.push(crate::task::spawn("orchestrator-timer", timer.run(stop_consumers.child_token())));
        consumers.push(crate::task::spawn("housekeeping", housekeeping.run(stop_consumers.child_token())));
        let keeper = super::retention::Keeper {
            store: store.clone(),
            metrics: metrics.clone(),
            retention: super::retention::Retention::new(config, &catalogue),
            interval: config.retention.interval,
        };
        consumers.push(crate::task::spawn("retention", keeper.run(stop_consumers.child_token())));

        starting.disarm();
        Ok(Self {
            store,
            service,
            catalogue,
            brokers: Arc::new(brokers),
            declarations,
            instance,
            epoch: enrolment.epoch,
            metrics,
            tasks: CoreTasks {
                consumers,
                relay: relay_tasks.handles,
                committer: committer_task,
                lease: lease_task,
                stop_consumers,
                stop_relay,
                stop_lease,
            },
        })
    }

    /// Where a kind of source is read from.
    pub fn subscriber(&self, source: &Source) -> Arc<dyn Subscriber> {
        self.brokers.subscriber(source)
    }

    /// Stops in order: consumers finish their batch, lanes their window, the committer what
    /// waits; then the brokers and the store close. The front ends have stopped already.
    pub async fn stop(self) {
        let tasks = self.tasks;
        tasks.stop_consumers.cancel();
        join_all("consumer", tasks.consumers).await;
        tasks.stop_relay.cancel();
        join_all("relay", tasks.relay).await;
        self.service.committer().close();
        join_all("committer", vec![tasks.committer]).await;
        tasks.stop_lease.cancel();
        join_all("lease", vec![tasks.lease]).await;
        self.brokers.shutdown().await;
        self.store.close().await;
    }
}

/// Ends the gateway in order when another of the same name has taken over.
async fn keep_lease(keeper: LeaseKeeper, stop: CancellationToken) {
    if keeper.run(stop).await == LeaseEnd::Replaced
        && let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM)
    {
        tracing::error!(%error, "the gateway cannot end itself");
    }
}

async fn join_all(what: &str, handles: Vec<JoinHandle<()>>) {
    for handle in handles {
        if let Err(error) = handle.await {
            tracing::error!(what, %error, "a task did not end well");
        }
    }
}

/// Every durable subscription of a gateway.
pub(super) fn durable() -> Vec<Subscription> {
    let subscription = |declaration: Declaration| Subscription {
        consumer: declaration.name.into(),
        source: declaration.source,
        prefetch: 1,
        ack_wait: Duration::from_secs(30),
    };
    consumer::declarations().into_iter().map(subscription).chain([process_runner_subscription()]).collect()
}
