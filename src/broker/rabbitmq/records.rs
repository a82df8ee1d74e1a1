//! What waits in the queues. Their messages cannot be read without consuming them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::connection::{Connector, ConnectorOptions};
use super::health::Part;
use super::{RabbitMqError, topology};
use crate::broker::{BrokerLog, Extent, LogError, LogReader, QueueDepth};
use crate::config;
use crate::domain::Broker;
use crate::domain::catalogue::Route;

/// What RabbitMQ tells about its queues. Declares nothing.
pub struct RabbitLog {
    connector: Connector,
    queues: Vec<Arc<str>>,
    timeout: Duration,
    /// Ends the connection.
    stop: CancellationToken,
}

impl RabbitLog {
    /// Starts connecting; asks about `queues` and the dead-letter queue.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn open(config: &config::Rabbitmq, queues: Vec<Arc<str>>) -> Result<Self, RabbitMqError> {
        let options = Arc::new(ConnectorOptions::new(config)?);
        let (timeout, stop) = (options.declare_timeout(), CancellationToken::new());
        let (connector, _) = Connector::spawn(Part::Consuming, options, None, &Arc::default(), &stop);
        let dead_letters = config.dead_letter_queue.as_str().into();
        Ok(Self { connector, queues: queues.into_iter().chain([dead_letters]).collect(), timeout, stop })
    }

    /// `None`: there is no such queue.
    async fn depth(&self, queue: &Arc<str>) -> Result<Option<QueueDepth>, String> {
        self.connector.tried_all().await;
        let session = self.connector.session()?;
        // Of its own: it may be closed by the answer.
        let channel = session.connection.create_channel().await.map_err(|why| why.to_string())?;
        match topology::depth(&channel, queue).await {
            Ok((messages, readers)) => {
                if (messages, readers) == (0, 0) {
                    topology::probe(&channel, queue).await?;
                }
                Ok(Some(QueueDepth { name: queue.clone(), messages: messages.into(), holders: readers.into() }))
            }
            Err(why) if topology::is_missing(&why) => Ok(None),
            Err(why) => Err(why.to_string()),
        }
    }
}

fn failed(what: &str, why: String) -> LogError {
    LogError { broker: Broker::Rabbitmq, what: what.to_owned(), why }
}

#[async_trait]
impl BrokerLog for RabbitLog {
    fn broker(&self) -> Broker {
        Broker::Rabbitmq
    }

    fn log_of(&self, route: &Route) -> Option<Arc<str>> {
        Some(route.target.clone())
    }

    async fn extents(&self) -> Result<Option<Vec<Extent>>, LogError> {
        Ok(None)
    }

    async fn read(&self, extent: &Extent) -> Result<Box<dyn LogReader>, LogError> {
        Err(failed(&extent.log, "queues cannot be read without consuming them".into()))
    }

    /// Those that exist. A count is of messages that are ready, not of those handed out.
    async fn queues(&self) -> Result<Vec<QueueDepth>, LogError> {
        let mut depths = Vec::new();
        for queue in &self.queues {
            let depth = tokio::time::timeout(self.timeout, self.depth(queue)).await;
            let depth = depth.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)));
            depths.extend(depth.map_err(|why| failed(queue, why))?);
        }
        Ok(depths)
    }
}

impl Drop for RabbitLog {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
