//! Topics, subjects and brokers that are not as they must be.

use std::time::Duration;

use event_gateway::broker::Outgoing;
use event_gateway::broker::PublishError;
use event_gateway::broker::kafka::{Health, Kafka, KafkaError};
use event_gateway::schema_registry::{SchemaRegistry, subject};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::proxy::{Mode, Proxy};
use super::{Fresh, PARTITIONS, Site, TOPIC, consumer, event_type, route_to, topology, unique_prefix};
use crate::fixture::*;

async fn open(site: &Site, prefix: &str, set: &[(&str, &str)]) -> Result<Kafka, KafkaError> {
    let config = site.config(prefix, set);
    within(Kafka::open_with(&config.kafka, &config.registry, topology(prefix, PARTITIONS))).await
}

fn text(result: Result<Kafka, KafkaError>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_of_a_topic_is_named_with_what_to_do() {
    let Some(site) = Site::find() else { return };
    let prefix = unique_prefix();
    let name = format!("{prefix}{TOPIC}");
    let admin: AdminClient<DefaultClientContext> = site.client().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let topic = NewTopic::new(&name, 2, TopicReplication::Fixed(1))
        .set("retention.ms", "60000")
        .set("min.insync.replicas", "1")
        .set("max.message.bytes", "1000")
        .set("cleanup.policy", "compact");
    within(admin.create_topics(&[topic], &options)).await.unwrap().remove(0).unwrap();
    // A topic just created is not known to every broker at once.
    let known = async {
        loop {
            let wrong = open(&site, &prefix, &[]).await.map(|_| ()).unwrap_err();
            if !wrong.is_passing() {
                return wrong.to_string();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let wrong = within(known).await;
    within(admin.delete_topics(&[&name], &options)).await.unwrap();
    for part in [
        "the number of partitions is 2, wanted is 4; add partitions",
        "the number of replicas is 1, wanted is 3; reassign",
        "retention.ms is 60000, wanted is 86400000",
        "min.insync.replicas is 1, wanted is 2",
        "max.message.bytes is 1000, wanted is at least",
        "cleanup.policy is compact, wanted is delete",
    ] {
        assert!(wrong.contains(part), "{part} is missing in {wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_an_error_where_none_may_be_created() {
    let Some(site) = Site::find() else { return };
    let wrong = text(open(&site, &unique_prefix(), &[("kafka.create_topics", "false")]).await);
    assert!(wrong.contains("job-lifecycle is missing and kafka.create_topics is off"), "{wrong}");
    let wrong = text(open(&site, &unique_prefix(), &[("kafka.replication", "9"), ("kafka.min_insync", "2")]).await);
    assert!(wrong.contains("cannot have 9 replicas"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_again_finds_everything_as_it_was() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let second =
        open(&fresh.site, &fresh.prefix, &[("kafka.create_topics", "false"), ("kafka.register_schemas", "false")]);
    let second = second.await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(second.health().cluster, Health::Up);
    assert_eq!(second.health().registry, Health::Up);
    within(second.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_others_could_not_read_refuses_the_start() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let prefix = format!("{}other-", fresh.prefix);
    let subject = subject(&format!("{prefix}{TOPIC}"), "com.cosmic_horizons.events.JobCancelled");
    let registry = SchemaRegistry::new(&fresh.config.registry).unwrap();
    let ours = event_type("job.cancelled").schema_text().to_string();
    let released = ours.replace(r#"{"name": "reason", "type": "string"}"#, r#"{"name": "motive", "type": "string"}"#);
    registry.register(&subject, &released).await.unwrap();

    // The topic is the fixture's; the subject is of another prefix.
    let mut config = fresh.site.config(&prefix, &[]);
    config.kafka.topic_prefix.clone_from(&prefix);
    let mut topology = topology(&prefix, PARTITIONS);
    topology.topics[0].name = fresh.topic().into();
    let wrong = text(within(Kafka::open_with(&config.kafka, &config.registry, topology.clone())).await);
    for part in [&*subject, "version 1", "'reason'", "'motive'"] {
        assert!(wrong.contains(part), "{part} is missing in {wrong}");
    }
    config.registry.register_schemas = false;
    topology.types = vec![(TOPIC.into(), event_type("job.failed"))];
    let wrong = text(within(Kafka::open_with(&config.kafka, &config.registry, topology)).await);
    assert!(wrong.contains("JobFailed") && wrong.contains("kafka.register_schemas is off"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_away_at_the_start_is_awaited() {
    let Some(site) = Site::find() else { return };
    let proxy = Proxy::start(&site.registry_address(), Mode::Answer(503)).await;
    let behind = site.registry_at(proxy.port());
    let fresh =
        Fresh::with(site, &[("kafka.schema_registry_url", &behind), ("kafka.schema_registry_timeout", "1s")]).await;
    let window = [Outgoing { event: event("alpha", 1), route: route_to(TOPIC, "alpha") }];
    let refused = try_publish(&*fresh.kafka.publisher(), &window).await.remove(0);
    assert!(matches!(&refused, Err(PublishError::Down(why)) if why.contains("registry")), "{refused:?}");
    assert!(matches!(fresh.kafka.health().registry, Health::Down(_)));

    proxy.set(Mode::Forward);
    let mut health = fresh.kafka.watch();
    within(health.wait_for(|health| health.prepared && health.registry == Health::Up)).await.unwrap();
    publish(&*fresh.kafka.publisher(), &window).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_away_are_down_and_say_so() {
    let Some(site) = Site::find() else { return };
    // Nothing listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("127.0.0.1:{port}");
    let set = [("kafka.brokers", &*nobody), ("kafka.request_timeout", "1s"), ("kafka.delivery_timeout", "2s")];
    let kafka = open(&site, &unique_prefix(), &set).await.unwrap_or_else(|error| panic!("{error}"));
    let window = [Outgoing { event: event("alpha", 1), route: route_to(TOPIC, "alpha") }];
    let refused = try_publish(&*kafka.publisher(), &window).await.remove(0);
    assert!(matches!(&refused, Err(PublishError::Down(_))), "{refused:?}");
    let Health::Down(why) = kafka.health().cluster else { panic!("{:?}", kafka.health()) };
    assert!(why.contains(&nobody), "{why}");
    let lost = within(kafka.subscriber().subscribe(&consumer("reader"))).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("reader: "), "{lost}");
    within(kafka.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_readers_and_refuses_publishers() {
    let Some(site) = Site::find() else { return };
    let fresh = Fresh::with(site, &[]).await;
    let (publisher, subscriber) = (fresh.kafka.publisher(), fresh.kafka.subscriber());
    let mut inbound = within(subscriber.subscribe(&consumer("reader"))).await.unwrap();
    let waiting = event_gateway::task::spawn("reader", async move {
        let ended = inbound.receive(1).await.unwrap_err();
        let unheard = inbound.ack(&[]).await.unwrap_err();
        (ended, unheard)
    });
    tokio::task::yield_now().await;
    within(fresh.kafka.shutdown()).await;
    let (ended, unheard) = within(waiting).await.unwrap();
    assert!(ended.to_string().contains("shut down") && unheard.to_string().contains("shut down"), "{ended} {unheard}");
    assert!(within(subscriber.subscribe(&consumer("reader"))).await.is_err());
    let window = [Outgoing { event: event("alpha", 1), route: route_to(TOPIC, "alpha") }];
    assert!(matches!(&try_publish(&*publisher, &window).await[0], Err(PublishError::Down(_))));
}
