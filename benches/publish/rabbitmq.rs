//! An exchange and a quorum queue; publisher confirms, mandatory and persistent messages.

use event_gateway::broker::Publisher;
use event_gateway::broker::rabbitmq::{Queue, RabbitMq as Adapter, Topology};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Catalogue, ExchangeKind};
use event_gateway::domain::{Broker, Id};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::sample::Sample;
use crate::{Pair, variable};

const KEY: &str = "job.completed";

pub struct RabbitMq {
    window: usize,
    name: String,
    adapter: Adapter,
    publisher: std::sync::Arc<dyn Publisher>,
    sample: Sample,
    _connection: Connection,
    channel: Channel,
    properties: BasicProperties,
}

impl RabbitMq {
    pub async fn new(window: usize) -> Self {
        let urls = variable("RABBITMQ");
        let directory = tempfile::tempdir().expect("a directory");
        let set = [("rabbitmq.urls", urls.as_str()), ("rabbitmq.queue_max_length", "100000000")];
        let config = Config::defaults_in(directory.path(), &set).expect("good settings");
        let catalogue = Catalogue::load(&[]).expect("the built-in catalogue");
        let name = format!("bench-{}", Id::new());
        let mut topology = Topology::new(&config.rabbitmq, &catalogue, &[]);
        topology.exchanges = vec![(name.as_str().into(), ExchangeKind::Topic)];
        topology.queues =
            vec![Queue { name: name.as_str().into(), bindings: vec![(name.as_str().into(), "job.#".into())] }];
        let adapter = Adapter::open(&config.rabbitmq, topology).await.expect("a connection");
        assert!(adapter.health().borrow().up, "{:?}", adapter.health().borrow());
        let sample = Sample::new(Broker::Rabbitmq, &name, Some(KEY));
        let mut headers = FieldTable::default();
        for (name, text) in sample.headers("cloudEvents_") {
            headers.insert(name.into(), AMQPValue::LongString(text.into()));
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_correlation_id(Id::new().to_string().into())
            .with_type("job.status.changed".into())
            .with_headers(headers);
        let url = urls.split(',').next().expect("a server");
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let publisher = adapter.publisher();
        Self { window, name, adapter, publisher, sample, _connection: connection, channel, properties }
    }

    pub async fn end(self) {
        self.adapter.shutdown().await;
        let name = self.name.as_str();
        self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("it is there");
        self.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.expect("it is there");
    }
}

impl Pair for RabbitMq {
    async fn adapter(&self) {
        for result in self.publisher.publish(&self.sample.window(self.window)).await {
            result.expect("published");
        }
    }

    async fn bare(&self) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let body = self.sample.json();
        let mut confirms = Vec::with_capacity(self.window);
        for _ in 0..self.window {
            let properties = self.properties.clone().with_message_id(Id::new().to_string().into());
            let (exchange, key) = (self.name.as_str().into(), KEY.into());
            confirms.push(self.channel.basic_publish(exchange, key, options, &body, properties).await.expect("sent"));
        }
        for confirm in confirms {
            assert!(confirm.await.expect("confirmed").is_ack());
        }
    }

    async fn tidy(&self) {
        self.channel.queue_purge(self.name.as_str().into(), QueuePurgeOptions::default()).await.expect("it is there");
    }
}
