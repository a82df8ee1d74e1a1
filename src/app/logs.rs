//! Reads of what the configured brokers hold, beside whatever runs.

use std::sync::Arc;

use crate::broker::BrokerLog;
use crate::broker::embedded::{EmbeddedLog, EmbeddedTopology};
use crate::config::Config;
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;

/// One of each broker; nothing is declared.
pub fn open(config: &Config, catalogue: &Catalogue) -> Vec<Arc<dyn BrokerLog>> {
    let topology = EmbeddedTopology::from_catalogue(catalogue, Vec::new());
    let path = config.data.dir.join("brokers.db");
    let log = |broker| Arc::new(EmbeddedLog::new(&path, broker, &topology)) as Arc<dyn BrokerLog>;
    Broker::ALL.map(log).to_vec()
}
