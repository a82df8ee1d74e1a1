//! What the external brokers must have, declared or compared without a gateway. Embedded
//! ones have it as soon as they are opened.

use std::fmt::Display;
use std::time::Duration;

use super::brokers::external::External;
use super::core::{StartError, durable};
use crate::broker::kafka::Kafka;
use crate::broker::nats::{self, NatsTopology};
use crate::broker::rabbitmq;
use crate::config::{BrokerMode, Config};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;

/// The brokers that are not embedded.
pub fn external(config: &Config) -> Vec<Broker> {
    Broker::ALL.into_iter().filter(|broker| config.broker_mode(*broker) == BrokerMode::External).collect()
}

/// Declares what is missing, as a gateway does when it starts. Returns who did not answer
/// within `limit`, and why.
///
/// # Errors
/// Something is there with other properties: every difference.
pub async fn apply(
    config: &Config,
    catalogue: &Catalogue,
    limit: Duration,
) -> Result<Vec<(Broker, String)>, StartError> {
    let external = External::open(config, catalogue, &durable()).await?;
    let away = external.settle(limit).await;
    external.shutdown().await;
    Ok(away)
}

/// What `broker` lacks or has with other properties; nothing is declared.
///
/// # Errors
/// It does not answer, or a setting cannot be used.
pub async fn check(config: &Config, catalogue: &Catalogue, broker: Broker) -> Result<Vec<String>, String> {
    let durable = durable();
    match broker {
        Broker::Rabbitmq => {
            let topology = rabbitmq::Topology::new(&config.rabbitmq, catalogue, &durable);
            rabbitmq::check(&config.rabbitmq, &topology).await.map_err(said)
        }
        Broker::Kafka => Kafka::check(&config.kafka, &config.registry, catalogue, &durable).await.map_err(said),
        Broker::Nats => {
            let topology = NatsTopology::from_catalogue(catalogue, durable);
            nats::check(&config.nats, &topology).await.map_err(said)
        }
    }
}

fn said(why: impl Display) -> String {
    why.to_string()
}
