//! The queue in RabbitMQ, in a virtual host of the test's own and behind a proxy that it can cut.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::rabbitmq::{RabbitMq, Topology};
use event_gateway::broker::{Outgoing, PublishError, Publisher, Subscriber};
use event_gateway::config::Config;
use event_gateway::config::setting::Secret;
use event_gateway::domain::catalogue::Catalogue;
use event_gateway::domain::{Broker, Event};

use crate::client::PATIENCE;
use crate::proxy::{Mode, Proxy};

pub struct Rabbit {
    cluster: RabbitMq,
    publisher: Arc<dyn Publisher>,
    proxy: Proxy,
}

impl Rabbit {
    /// `config` is that of the world; of its servers the first is used.
    pub async fn open(config: &Config, catalogue: &Catalogue) -> Self {
        let url = config.rabbitmq.urls.0[0].expose();
        let proxy = Proxy::before(url).await;
        let mut config = config.rabbitmq.clone();
        config.urls.0 = vec![Secret::new(&*proxy.url)];
        // No queues of effects: nobody here would empty them.
        let cluster = RabbitMq::open(&config, Topology::new(&config, catalogue, &[])).await.expect("RabbitMQ");
        Self { publisher: cluster.publisher(), cluster, proxy }
    }

    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.cluster.subscriber()
    }

    pub fn set_away(&self, away: bool) {
        self.proxy.set(if away { Mode::Cut } else { Mode::Open });
    }

    /// Publishes it where the relay would, until that is confirmed. Whether a queue took it.
    pub async fn send(&self, event: &Arc<Event>) -> bool {
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let mut route = routes.into_iter().find(|route| route.broker == Broker::Rabbitmq).expect("a route");
        // Where nobody has subscribed, no queue is to take it.
        route.optional = true;
        let window = [Outgoing { event: event.clone(), route }];
        let sending = async {
            loop {
                match self.publisher.publish(&window).await.remove(0) {
                    Ok(_) => return true,
                    Err(PublishError::NoQueueBound) => return false,
                    Err(PublishError::Permanent(why)) => panic!("{why}"),
                    // It connects again.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, sending).await.expect("RabbitMQ confirms it")
    }

    pub async fn stop(&self) {
        self.cluster.shutdown().await;
    }
}
