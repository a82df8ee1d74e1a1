//! Samples of the system's health: one instance takes them for all and commits each as a
//! `system.health.check` event.
//!
//! Every figure is one that was measured; docs/operations.md says what each stands for.

use std::sync::Arc;
use std::time::Duration;

use crate::consumer::metrics::{FAILED, MINUTE_MODEL};
use crate::domain::factory::Cause;
use crate::domain::payload::{ComponentStates, ComponentStatus, SystemHealthCheck, SystemMetrics};
use crate::domain::{Broker, Timestamp};
use crate::service::EventService;
use crate::store::{Duty, Outcome, Unit};
use crate::telemetry::Metrics;
use crate::telemetry::readiness::{Component, ComponentState, Readiness};

/// The owner of these events: no user.
const OWNER: &str = "system";
const DAY_MS: i64 = 24 * 3_600_000;
/// A short delay makes no other instance do it, too. Those that die lose the duty at once.
const LEAST_LEASE: Duration = Duration::from_secs(10);
/// A store or an intake that takes longer is in no state to be measured.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes samples now and then.
pub(super) struct Sampler {
    pub service: Arc<EventService>,
    pub readiness: Arc<Readiness>,
    pub metrics: Arc<Metrics>,
    pub instance: Arc<str>,
    pub interval: Duration,
}

impl Sampler {
    /// Runs until it is aborted: a sample on its way is committed or not, nothing else is at stake.
    pub async fn run(self) {
        let mut answered = Answered::of(&self.metrics);
        loop {
            tokio::time::sleep(self.interval).await;
            // One instance does it for all.
            let duty = Duty { name: "health", lease: LEAST_LEASE.max(self.interval * 2) };
            if !duty.is_ours(&**self.service.store()).await {
                continue;
            }
            let sampled = tokio::time::timeout(LIMIT, self.sample(&mut answered)).await;
            if let Err(why) = sampled.unwrap_or_else(|_| Err(format!("not committed within {LIMIT:?}"))) {
                tracing::warn!(why, "no sample of the health; next try in a while");
            }
        }
    }

    async fn sample(&self, answered: &mut Answered) -> Result<(), String> {
        let now = Timestamp::now();
        let store = self.service.store();
        let load = store.workload().await.map_err(|error| error.to_string())?;
        let since = now.plus_ms(-DAY_MS).to_string();
        let failed = store.read_model_sum(MINUTE_MODEL, FAILED, &since).await.map_err(|error| error.to_string())?;
        let open: i64 = Broker::ALL.iter().map(|broker| self.metrics.outbox_backlog[*broker].get()).sum();
        let check = SystemHealthCheck {
            instance_id: self.instance.to_string(),
            check_timestamp: now,
            components: states(&self.readiness),
            metrics: SystemMetrics {
                active_jobs: i64::try_from(load.running).unwrap_or(i64::MAX),
                pending_jobs: i64::try_from(load.queued).unwrap_or(i64::MAX),
                failed_jobs_24h: failed as i64,
                average_queue_depth: open as f64 / Broker::ALL.len() as f64,
                average_response_time_ms: answered.mean_ms_since_last(&self.metrics),
            },
        };
        let draft = self.service.factory().draft(&check, &OWNER.into(), &Cause::root(), now);
        let draft = draft.map_err(|error| error.to_string())?;
        let unit = Unit { events: vec![draft], ..Unit::default() };
        match self.service.committer().background(unit).await {
            Ok(Outcome::Committed { .. }) => Ok(()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Requests answered, and the seconds that took, as of one moment.
struct Answered {
    requests: u64,
    seconds: f64,
}

impl Answered {
    fn of(metrics: &Metrics) -> Self {
        let answers = &metrics.response_seconds;
        Self { requests: answers.get_sample_count(), seconds: answers.get_sample_sum() }
    }

    /// The mean since it was last asked for; 0 when nothing was answered.
    fn mean_ms_since_last(&mut self, metrics: &Metrics) -> f64 {
        let last = std::mem::replace(self, Self::of(metrics));
        let requests = self.requests.saturating_sub(last.requests);
        if requests == 0 { 0.0 } else { (self.seconds - last.seconds) * 1e3 / requests as f64 }
    }
}

/// As this instance sees them.
fn states(readiness: &Readiness) -> ComponentStates {
    let components = readiness.components();
    // A broker that is not external is embedded, and so is what Kafka needs beside it.
    let named = |name: &str| {
        let found = |name: &str| components.iter().find(|component| component.name == name);
        status(found(name).or_else(|| found("brokers")))
    };
    ComponentStates {
        database: named("store"),
        rabbitmq: named("rabbitmq"),
        kafka: named("kafka"),
        nats: named("nats"),
        registry: named("schema-registry"),
        external_api: match readiness.check() {
            Ok(missing) if missing.is_empty() => ComponentStatus::Healthy,
            Ok(_) => ComponentStatus::Degraded,
            Err(_) => ComponentStatus::Down,
        },
    }
}

fn status(component: Option<&Component>) -> ComponentStatus {
    match component.map(|component| component.state) {
        Some(ComponentState::Up) => ComponentStatus::Healthy,
        Some(ComponentState::Degraded) => ComponentStatus::Degraded,
        Some(ComponentState::Starting | ComponentState::Down) | None => ComponentStatus::Down,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::readiness::Standing;

    #[test]
    fn components_are_what_readiness_says() {
        let readiness = Readiness::new(Metrics::new());
        let (store, kafka) = (readiness.latch("store"), readiness.optional_latch("kafka"));
        let brokers = readiness.latch("brokers");
        store.up();
        brokers.up();
        let states_then = states(&readiness);
        assert_eq!((states_then.database, states_then.kafka), (ComponentStatus::Healthy, ComponentStatus::Down));
        assert_eq!((states_then.nats, states_then.registry), (ComponentStatus::Healthy, ComponentStatus::Healthy));
        assert_eq!(states_then.external_api, ComponentStatus::Degraded, "ready, with something missing");
        kafka.set(&Standing::Degraded("two of three brokers".into()));
        let states_then = states(&readiness);
        assert_eq!(
            (states_then.kafka, states_then.external_api),
            (ComponentStatus::Degraded, ComponentStatus::Degraded)
        );
        kafka.up();
        assert_eq!(states(&readiness).external_api, ComponentStatus::Healthy);
        store.down("test");
        let states_then = states(&readiness);
        assert_eq!((states_then.database, states_then.external_api), (ComponentStatus::Down, ComponentStatus::Down));
    }

    #[test]
    fn the_mean_is_of_the_requests_since_the_last_sample() {
        let metrics = Metrics::new();
        metrics.response_seconds.observe(5.0);
        let mut answered = Answered::of(&metrics);
        assert_eq!(answered.mean_ms_since_last(&metrics), 0.0);
        metrics.response_seconds.observe(0.25);
        metrics.response_seconds.observe(0.75);
        assert_eq!(answered.mean_ms_since_last(&metrics), 500.0);
        assert_eq!(answered.mean_ms_since_last(&metrics), 0.0);
    }
}
