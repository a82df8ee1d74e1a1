//! Reads of what the configured brokers hold, beside whatever runs.

use std::sync::Arc;

use super::core::StartError;
use crate::broker::BrokerLog;
use crate::broker::embedded::{EmbeddedLog, EmbeddedTopology};
use crate::broker::nats::NatsLog;
use crate::config::{BrokerMode, Config};
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;

/// One of each broker; nothing is declared.
///
/// # Errors
/// A broker does not answer, or is one that cannot be read.
pub async fn open(config: &Config, catalogue: &Catalogue) -> Result<Vec<Arc<dyn BrokerLog>>, StartError> {
    let mut logs: Vec<Arc<dyn BrokerLog>> = Vec::new();
    for broker in Broker::ALL {
        logs.push(match (config.broker_mode(broker), broker) {
            (BrokerMode::Embedded, _) => {
                let topology = EmbeddedTopology::from_catalogue(catalogue, Vec::new());
                Arc::new(EmbeddedLog::new(&config.data.dir.join("brokers.db"), broker, &topology))
            }
            (BrokerMode::External, Broker::Nats) => {
                let opened = NatsLog::open(&config.nats, catalogue.streams()).await;
                Arc::new(opened.map_err(|why| StartError::Brokers(vec![why.to_string()]))?)
            }
            (BrokerMode::External, Broker::Rabbitmq | Broker::Kafka) => {
                let why = format!("an external {broker} is not compared by this version; nothing was read");
                return Err(StartError::Brokers(vec![why]));
            }
        });
    }
    Ok(logs)
}
