//! A stream with three replicas; every message has an id and is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use event_gateway::broker::Publisher;
use event_gateway::broker::nats::{Nats as Adapter, NatsTopology};
use event_gateway::config::Config;
use event_gateway::domain::catalogue::{Stream, StreamKind};
use event_gateway::domain::{Broker, Id};

use crate::sample::Sample;
use crate::{Pair, variable};

pub struct Nats {
    window: usize,
    stream: String,
    adapter: Adapter,
    publisher: Arc<dyn Publisher>,
    sample: Sample,
    jetstream: Context,
    subject: String,
    headers: HeaderMap,
}

impl Nats {
    pub async fn new(window: usize) -> Self {
        let urls = variable("NATS");
        let (id, directory) = (Id::new(), tempfile::tempdir().expect("a directory"));
        let config = Config::defaults_in(directory.path(), &[("nats.urls", &urls)]).expect("good settings");
        let (stream, subject) = (format!("BENCH-{id}"), format!("bench.{id}"));
        let kind = StreamKind::Limits { max_age: Duration::from_secs(3600) };
        let streams = vec![Stream { name: stream.as_str().into(), subjects: vec![subject.as_str().into()], kind }];
        let adapter =
            Adapter::open(&config.nats, NatsTopology { streams, consumers: Vec::new() }).await.expect("a connection");
        let servers: Vec<String> = urls.split(',').map(str::to_owned).collect();
        let client = async_nats::connect(servers).await.expect("a connection");
        let jetstream = ContextBuilder::new().max_ack_inflight(window).build(client);
        let sample = Sample::new(Broker::Nats, &subject, None);
        let mut headers = HeaderMap::new();
        headers.insert("ce-datacontenttype", "application/json");
        for (name, text) in sample.headers("ce-") {
            headers.insert(name, text);
        }
        let publisher = adapter.publisher();
        Self { window, stream, adapter, publisher, sample, jetstream, subject, headers }
    }

    pub async fn end(self) {
        self.adapter.shutdown().await;
        self.jetstream.delete_stream(&self.stream).await.expect("it is there");
    }
}

impl Pair for Nats {
    async fn adapter(&self) {
        for result in self.publisher.publish(&self.sample.window(self.window)).await {
            result.expect("published");
        }
    }

    async fn bare(&self) {
        let mut confirms = Vec::with_capacity(self.window);
        for _ in 0..self.window {
            let mut headers = self.headers.clone();
            headers.insert("Nats-Msg-Id", Id::new().to_string());
            let (subject, body) = (self.subject.clone(), self.sample.json());
            let sent = self.jetstream.publish_with_headers(subject, headers, body).await.expect("sent");
            confirms.push(sent.into_future());
        }
        for confirm in confirms {
            assert!(!confirm.await.expect("confirmed").duplicate);
        }
    }

    async fn tidy(&self) {
        let stream = self.jetstream.get_stream(&self.stream).await.expect("it is there");
        stream.purge().await.expect("purged");
    }
}
