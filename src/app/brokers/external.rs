//! RabbitMQ, Kafka with its schema registry, and NATS JetStream, on the network.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::StartError;
use crate::broker::dead_letters::DeadLetterSource;
use crate::broker::kafka::{Kafka, KafkaHealth};
use crate::broker::nats::{Nats, NatsTopology};
use crate::broker::rabbitmq::{self, RabbitMq};
use crate::broker::{Publisher, Subscriber, Subscription};
use crate::config::{BrokerMode, Config};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;
use crate::telemetry::readiness::{Latch, Readiness, Standing};

/// Clients of those that are configured.
pub struct External {
    rabbitmq: Option<RabbitMq>,
    kafka: Option<Kafka>,
    nats: Option<Nats>,
}

impl External {
    /// Opens those whose mode is external, all at the same time. One that does not answer is
    /// no error: it is tried again for ever, and readiness names it.
    ///
    /// # Errors
    /// What waiting does not help, of all of them at once. Nothing runs then.
    pub async fn open(config: &Config, catalogue: &Catalogue, durable: &[Subscription]) -> Result<Self, StartError> {
        let is_external = |broker| config.broker_mode(broker) == BrokerMode::External;
        let rabbitmq = is_external(Broker::Rabbitmq)
            .then(|| RabbitMq::open(&config.rabbitmq, rabbitmq::Topology::new(&config.rabbitmq, catalogue, durable)));
        let kafka =
            is_external(Broker::Kafka).then(|| Kafka::open(&config.kafka, &config.registry, catalogue, durable));
        let nats = is_external(Broker::Nats)
            .then(|| Nats::open(&config.nats, NatsTopology::from_catalogue(catalogue, durable.to_vec())));
        let (rabbitmq, kafka, nats) =
            tokio::join!(OptionFuture::from(rabbitmq), OptionFuture::from(kafka), OptionFuture::from(nats));
        let mut wrong = Vec::new();
        let external = Self {
            rabbitmq: opened(rabbitmq, &mut wrong),
            kafka: opened(kafka, &mut wrong),
            nats: opened(nats, &mut wrong),
        };
        if wrong.is_empty() {
            return Ok(external);
        }
        external.shutdown().await;
        Err(StartError::Brokers(wrong))
    }

    /// `None` for a broker that is embedded.
    pub fn publisher(&self, broker: Broker) -> Option<Arc<dyn Publisher>> {
        match broker {
            Broker::Rabbitmq => self.rabbitmq.as_ref().map(RabbitMq::publisher),
            Broker::Kafka => self.kafka.as_ref().map(Kafka::publisher),
            Broker::Nats => self.nats.as_ref().map(Nats::publisher),
        }
    }

    /// `None` for a broker that is embedded.
    pub fn subscriber(&self, broker: Broker) -> Option<Arc<dyn Subscriber>> {
        match broker {
            Broker::Rabbitmq => self.rabbitmq.as_ref().map(RabbitMq::subscriber),
            Broker::Kafka => self.kafka.as_ref().map(Kafka::subscriber),
            Broker::Nats => self.nats.as_ref().map(Nats::subscriber),
        }
    }

    /// Of RabbitMQ.
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetterSource>> {
        self.rabbitmq.as_ref().map(RabbitMq::dead_letters)
    }

    /// Shows each of them in readiness, as long as the tasks run.
    pub fn watch(&self, readiness: &Arc<Readiness>) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        let latch = |name| readiness.optional_latch(name);
        if let Some(rabbitmq) = &self.rabbitmq {
            let follow = follow(rabbitmq.health(), latch("rabbitmq"), |health| {
                standing(health.up, health.trouble().unwrap_or_default())
            });
            tasks.push(crate::task::spawn("rabbitmq-readiness", follow));
        }
        if let Some(kafka) = &self.kafka {
            let cluster = follow(kafka.watch(), latch("kafka"), |health| health.cluster.clone());
            let registry = follow(kafka.watch(), latch("schema-registry"), |health| health.registry.clone());
            tasks.push(crate::task::spawn("kafka-readiness", cluster));
            tasks.push(crate::task::spawn("registry-readiness", registry));
        }
        if let Some(nats) = &self.nats {
            let follow = follow(nats.health(), latch("nats"), |health| standing(health.up, health.why.clone()));
            tasks.push(crate::task::spawn("nats-readiness", follow));
        }
        tasks
    }

    /// Waits until all of them work, but no longer than `limit`; what does not, and why.
    pub async fn settle(&self, limit: Duration) -> Vec<(Broker, String)> {
        let deadline = Instant::now() + limit;
        let mut wrong = Vec::new();
        if let Some(rabbitmq) = &self.rabbitmq {
            let why = settled(rabbitmq.health(), deadline, |health| unless(health.up, &health.why)).await;
            wrong.extend(why.map(|why| (Broker::Rabbitmq, why)));
        }
        if let Some(kafka) = &self.kafka {
            let either = |health: &KafkaHealth| wrong_with(&health.cluster).or(wrong_with(&health.registry));
            wrong.extend(settled(kafka.watch(), deadline, either).await.map(|why| (Broker::Kafka, why)));
        }
        if let Some(nats) = &self.nats {
            let why = settled(nats.health(), deadline, |health| unless(health.up, &health.why)).await;
            wrong.extend(why.map(|why| (Broker::Nats, why)));
        }
        wrong
    }

    /// Lets go of them; what is confirmed stays so.
    pub async fn shutdown(&self) {
        let rabbitmq = self.rabbitmq.as_ref().map(RabbitMq::shutdown);
        let kafka = self.kafka.as_ref().map(Kafka::shutdown);
        let nats = self.nats.as_ref().map(Nats::shutdown);
        tokio::join!(OptionFuture::from(rabbitmq), OptionFuture::from(kafka), OptionFuture::from(nats));
    }
}

fn opened<T>(result: Option<Result<T, impl Display>>, wrong: &mut Vec<String>) -> Option<T> {
    result?.map_err(|error| wrong.push(error.to_string())).ok()
}

fn unless(up: bool, why: &str) -> Option<String> {
    (!up).then(|| why.to_owned())
}

fn wrong_with(health: &Standing) -> Option<String> {
    match health {
        Standing::Up | Standing::Degraded(_) => None,
        Standing::Down(why) => Some(why.clone()),
    }
}

/// Of a component that works although there is something to say.
fn standing(up: bool, why: String) -> Standing {
    match (up, why.is_empty()) {
        (true, true) => Standing::Up,
        (true, false) => Standing::Degraded(why),
        (false, _) => Standing::Down(why),
    }
}

/// Waits until nothing is `wrong`; what still is at `deadline`.
async fn settled<T>(
    mut health: watch::Receiver<T>,
    deadline: Instant,
    wrong: impl Fn(&T) -> Option<String>,
) -> Option<String> {
    // In time or not, what it says then counts.
    let _ = tokio::time::timeout_at(deadline, health.wait_for(|health| wrong(health).is_none())).await;
    wrong(&health.borrow())
}

/// Keeps `latch` as the client stands; ends with it.
async fn follow<T>(mut health: watch::Receiver<T>, latch: Latch, standing: impl Fn(&T) -> Standing) {
    loop {
        latch.set(&standing(&health.borrow_and_update()));
        if health.changed().await.is_err() {
            return;
        }
    }
}
