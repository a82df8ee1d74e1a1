//! Reads of what the configured brokers hold, beside whatever runs.

use std::fmt::Display;
use std::sync::Arc;

use super::core::{StartError, durable};
use crate::broker::BrokerLog;
use crate::broker::embedded::{EmbeddedLog, EmbeddedTopology};
use crate::broker::kafka::KafkaLog;
use crate::broker::nats::NatsLog;
use crate::broker::rabbitmq::{self, RabbitLog};
use crate::config::{BrokerMode, Config};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;

/// One of each broker; nothing is declared.
///
/// # Errors
/// A setting cannot be used, or a broker does not answer.
pub async fn open(config: &Config, catalogue: &Catalogue) -> Result<Vec<Arc<dyn BrokerLog>>, StartError> {
    let mut logs: Vec<Arc<dyn BrokerLog>> = Vec::new();
    for broker in Broker::ALL {
        logs.push(match (config.broker_mode(broker), broker) {
            (BrokerMode::Embedded, _) => {
                let topology = EmbeddedTopology::from_catalogue(catalogue, durable());
                Arc::new(EmbeddedLog::new(&config.data.dir.join("brokers.db"), broker, &topology))
            }
            (BrokerMode::External, Broker::Rabbitmq) => {
                let topology = rabbitmq::Topology::new(&config.rabbitmq, catalogue, &durable());
                let queues = topology.queues.into_iter().map(|queue| queue.name).collect();
                Arc::new(RabbitLog::open(&config.rabbitmq, queues).map_err(failed)?)
            }
            (BrokerMode::External, Broker::Kafka) => {
                Arc::new(KafkaLog::open(&config.kafka, catalogue).await.map_err(failed)?)
            }
            (BrokerMode::External, Broker::Nats) => {
                Arc::new(NatsLog::open(&config.nats, catalogue.streams()).await.map_err(failed)?)
            }
        });
    }
    Ok(logs)
}

fn failed(why: impl Display) -> StartError {
    StartError::Brokers(vec![why.to_string()])
}
