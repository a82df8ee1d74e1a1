//! The process runner on the real core: the use cases, SQLite, the embedded work queue, and the
//! sample agents on the datasets that ship; with `EVENT_GATEWAY_TEST_ON=brokers` on PostgreSQL and the
//! work queue of NATS.

#[path = "support/environment.rs"]
mod environment;
#[path = "support/fresh.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fresh;
#[path = "support/home.rs"]
mod home;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::agents;
use event_gateway::app::Core;
use event_gateway::broker::{Outgoing, Source, Subscription};
use event_gateway::config::Config;
use event_gateway::consumer::live::own_events;
use event_gateway::domain::catalogue::Route;
use event_gateway::domain::factory::Cause;
use event_gateway::domain::job::{Job, JobStatus};
use event_gateway::domain::{Broker, Id, Principal, Role, Timestamp};
use event_gateway::runner::control::ServiceControl;
use event_gateway::runner::{CONSUMER, Runner, RunnerHandle, RunnerOptions};
use event_gateway::service::{Context, SubmitJob};
use event_gateway::store::EffectState;
use event_gateway::telemetry::Metrics;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::home::Home;

const LIMIT: Duration = Duration::from_secs(60);

/// Not a test: this binary as the sample agent that its job file names.
#[test]
#[ignore = "started by the runner"]
fn sample_agent() {
    let Some(job_file) = std::env::var_os("GATEWAY_JOB_FILE") else { return };
    let job: Value = serde_json::from_slice(&std::fs::read(job_file).unwrap()).unwrap();
    let agent = agents::ALL.iter().find(|agent| job["agent"] == agent.name).unwrap();
    let code = agents::main(agent.command);
    let known = [(ExitCode::SUCCESS, 0), (ExitCode::from(2), 2)];
    std::process::exit(known.iter().find(|(known, _)| *known == code).map_or(1, |(_, code)| *code));
}

struct Gateway {
    core: Core,
    handle: RunnerHandle,
    shutdown: CancellationToken,
    runner: JoinHandle<()>,
}

impl Gateway {
    async fn start(home: &Home) -> Self {
        let own_path = std::env::current_exe().unwrap();
        let mut configured: Vec<Value> = agents::ALL
            .iter()
            .map(|agent| {
                json!({
                    "name": agent.name, "runner": "process", "params_schema": (agent.params_schema)(),
                    "command": ["{self}", "--exact", "--ignored", "sample_agent"],
                })
            })
            .collect();
        let waits = r#"echo '{"progress": 0.5, "message": "waiting"}'; exec sleep 1000"#;
        configured.push(json!({ "name": "Waits", "runner": "process", "command": ["/bin/sh", "-c", waits] }));
        let configured = Value::from(configured).to_string();
        let own =
            [("runner.agents", &*configured), ("runner.builtin_agents", "false"), ("runner.sample_interval", "100ms")];
        let config = Config::defaults_in(home.path(), &[&home.settings()[..], &own].concat()).unwrap();
        agents::install(&config.runner.datasets_dir).unwrap();
        let core = Core::start(&config, Metrics::new(), own_events().0).await.unwrap();
        let mut options = RunnerOptions::new(&config.runner, &config.agents(), &own_path, Duration::from_secs(10));
        // Only commands may start and stop anything in time.
        options.poll_interval = Duration::from_secs(3600);
        options.lease = Duration::from_secs(3600);
        let queue = Source::WorkQueue { stream: "COMMANDS_JOB".into(), filter: "commands.job.submit.process".into() };
        let claimant: Arc<str> = format!("process:{}:{}", core.instance, core.epoch).into();
        let control = Arc::new(ServiceControl::new(core.service.clone(), core.metrics.clone()));
        let runner = Runner::new(control, core.subscriber(&queue), claimant, options).unwrap();
        let (handle, shutdown) = (runner.handle(), CancellationToken::new());
        let runner = event_gateway::task::spawn("runner", runner.run(shutdown.clone()));
        Self { core, handle, shutdown, runner }
    }

    async fn submit(&self, agent: &str, dataset: &str) -> Id {
        let raw = json!({ "agent": agent, "dataset_id": dataset }).to_string();
        let request: SubmitJob = serde_json::from_str(&raw).unwrap();
        let answer = self.core.service.submit(&context(), request, raw.as_bytes()).await.unwrap();
        serde_json::from_slice::<Value>(&answer.body).unwrap()["id"].as_str().unwrap().parse().unwrap()
    }

    /// Waits until the job is as wanted.
    async fn job(&self, id: Id, wanted: impl Fn(&Job) -> bool) -> Job {
        let look = async {
            loop {
                let job = self.core.store.job(id).await.unwrap().unwrap();
                if wanted(&job) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, look).await.expect("the job gets there")
    }

    async fn ended(&self, id: Id) -> Job {
        self.job(id, |job| job.status.is_terminal()).await
    }

    async fn samples(&self, id: Id) -> usize {
        self.core.store.aggregate_events("job_metrics", &id.to_string(), 0, 500).await.unwrap().len()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.runner).await.expect("the runner stops").unwrap();
        self.core.stop().await;
    }
}

fn context() -> Context {
    Context {
        principal: Principal {
            user_id: "ada".into(),
            roles: vec![Role::User],
            expires_at: Timestamp::now().plus_ms(60_000),
        },
        on_behalf_of: None,
        cause: Cause::root(),
        idempotency_key: None,
        received_at: Timestamp::now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_agents_run_on_their_datasets() {
    let home = Home::new();
    let gateway = Gateway::start(&home).await;
    for agent in agents::ALL {
        let found = gateway.core.service.agents().get(agent.name).unwrap().clone();
        let datasets = gateway.core.service.agents().datasets_of(&found).await;
        assert!(datasets.len() >= 2 && datasets.iter().all(|dataset| !dataset.description.is_empty()), "{datasets:?}");
        let id = gateway.submit(agent.name, &datasets[0].id).await;
        let job = gateway.ended(id).await;
        assert_eq!(job.status, JobStatus::Completed, "{}: {:?}", agent.name, job.error);
        let result = job.result.unwrap();
        assert!(!result.summary.is_empty() && result.result_size_bytes > 0, "{result:?}");
        assert!(Path::new(&result.output_location).starts_with(home.path().canonicalize().unwrap()));
        assert!(gateway.samples(id).await > 0);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_no_input_for_the_agent_fails_for_good_with_its_words() {
    let home = Home::new();
    let gateway = Gateway::start(&home).await;
    std::fs::write(home.path().join("datasets/nonsense.csv"), "no,numbers\nhere\n").unwrap();
    let id = gateway.submit(agents::ALL[0].name, "nonsense.csv").await;
    let job = gateway.ended(id).await;
    let error = job.error.unwrap();
    assert_eq!((error.code.as_str(), error.retriable, error.exit_code), ("bad_dataset", false, Some(2)));
    assert_eq!(job.retry_at, None);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_process_through_the_queue() {
    let home = Home::new();
    let gateway = Gateway::start(&home).await;
    std::fs::write(home.path().join("datasets/any.csv"), "1\n").unwrap();
    let id = gateway.submit("Waits", "any.csv").await;
    gateway.job(id, |job| job.progress == Some(0.5)).await;
    gateway.core.service.cancel(&context(), id).await.unwrap();
    let job = gateway.ended(id).await;
    assert_eq!(job.status, JobStatus::Cancelled);
    let idle = async {
        while gateway.handle.running() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, idle).await.expect("the run is settled");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_shutdown_interrupted_runs_again_after_the_next_start() {
    let home = Home::new();
    let gateway = Gateway::start(&home).await;
    std::fs::write(home.path().join("datasets/any.csv"), "1\n").unwrap();
    let id = gateway.submit("Waits", "any.csv").await;
    gateway.job(id, |job| job.progress == Some(0.5)).await;
    gateway.stop().await;

    let gateway = Gateway::start(&home).await;
    let job = gateway.job(id, |job| job.status == JobStatus::Running && job.progress == Some(0.5)).await;
    assert_eq!((job.attempt, job.retry_count), (2, 0));
    let events = gateway.core.store.aggregate_events("job", &id.to_string(), 0, 100).await.unwrap();
    let failures: Vec<Value> = events
        .iter()
        .filter(|event| &*event.event_type.name == "job.failed")
        .map(|event| serde_json::from_slice(&event.payload.json).unwrap())
        .collect();
    let codes: Vec<&Value> = failures.iter().map(|failure| &failure["error_code"]).collect();
    assert_eq!(codes, ["runner_stopped"]);
    gateway.stop().await;
}

/// A message that is no command, as any publisher might send one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_of_a_job_is_a_dead_letter_in_the_store() {
    let home = Home::new();
    let gateway = Gateway::start(&home).await;
    std::fs::write(home.path().join("datasets/any.csv"), "1\n").unwrap();
    let id = gateway.submit("Waits", "any.csv").await;
    gateway.job(id, |job| job.progress == Some(0.5)).await;
    let events = gateway.core.store.aggregate_events("job", &id.to_string(), 0, 1).await.unwrap();
    let subject = "commands.job.submit.process";
    let route = Route { broker: Broker::Nats, target: subject.into(), key: "any".into(), optional: false };
    let publishers = gateway.core.brokers.publishers();
    let nats = publishers.iter().find(|publisher| publisher.broker() == Broker::Nats).unwrap();
    let sent = nats.publish(&[Outgoing { event: events[0].clone(), route }]).await;
    assert!(sent[0].is_ok(), "{sent:?}");

    let dead = async {
        loop {
            let found = gateway.core.store.event_deliveries(events[0].event_id).await.unwrap().unwrap();
            if let Some(effect) = found.effects.into_iter().find(|effect| &*effect.consumer == CONSUMER) {
                return effect;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let dead = tokio::time::timeout(LIMIT, dead).await.expect("the ledger shows it");
    assert_eq!((dead.state, dead.attempts), (EffectState::Dead, 1));
    let error = dead.error.unwrap();
    for part in ["nats, stream COMMANDS_JOB, subject commands.job.submit.process", "its type is job.submitted"] {
        assert!(error.contains(part), "{error}");
    }
    let figures = gateway.core.store.figures().await.unwrap();
    assert!(figures.backlog.contains(&(CONSUMER.into(), "dead", 1)), "{:?}", figures.backlog);
    let queue = Source::WorkQueue { stream: "COMMANDS_JOB".into(), filter: subject.into() };
    let subscription = Subscription { consumer: CONSUMER.into(), source: queue.clone(), prefetch: 1, ack_wait: LIMIT };
    let mut inbound = gateway.core.subscriber(&queue).subscribe(&subscription).await.unwrap();
    let empty = async {
        while inbound.lag().await != Some(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, empty).await.expect("it has left the queue");
    drop(inbound);
    gateway.stop().await;
}
