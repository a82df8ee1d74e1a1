//! Which message goes where: bindings, subjects, partitions.

use event_gateway::broker::embedded::EmbeddedTopology;
use event_gateway::broker::{Outgoing, PublishError, Source, Subscription};
use event_gateway::domain::Broker;

use super::{Fresh, Kafka, Nats, Rabbitmq, consumer, route, topology};
use crate::fixture::*;

fn queue(name: &str, bindings: &[(&str, &str)], exclusive: bool) -> Subscription {
    let bindings = bindings.iter().map(|(exchange, pattern)| ((*exchange).into(), (*pattern).into())).collect();
    consumer(name, Source::Queue { name: name.into(), bindings, exclusive })
}

fn to(target: &str, key: &str, sequence: i64, optional: bool) -> Outgoing {
    let mut route = route(Broker::Rabbitmq, target, key);
    route.optional = optional;
    Outgoing { event: event("alpha", sequence), route }
}

async fn rabbitmq(consumers: Vec<Subscription>) -> Fresh<Rabbitmq> {
    Fresh::with(EmbeddedTopology { consumers, ..topology::<Rabbitmq>(&[]) }).await
}

#[tokio::test]
async fn what_no_queue_takes_is_refused_or_skipped() {
    let fixture = rabbitmq(vec![queue("reader", &[("job.events", "job.#")], false)]).await;
    let publisher = fixture.publisher();
    let window = [
        to("job.events", "job.submitted", 1, false),
        to("job.events", "notifications.email", 1, false),
        to("metrics", "metrics.job", 1, false),
        to("metrics", "metrics.job", 1, true),
    ];
    let results = try_publish(&*publisher, &window).await;
    assert!(results[0].is_ok());
    assert!(
        matches!(&results[1], Err(PublishError::Permanent(why)) if why.contains("no queue is bound")),
        "{results:?}"
    );
    assert!(matches!(&results[2], Err(PublishError::Permanent(_))), "{results:?}");
    assert!(matches!(&results[3], Err(PublishError::NoQueueBound)), "{results:?}");

    // While a live reader is bound the copy is taken; when it is gone it is not.
    let optional = [to("metrics", "metrics.job", 2, true)];
    let live = subscribe(&fixture, &queue("live", &[("metrics", "metrics.#")], true)).await;
    assert!(try_publish(&*publisher, &optional).await[0].is_ok());
    drop(live);
    assert!(matches!(try_publish(&*publisher, &optional).await[0], Err(PublishError::NoQueueBound)));
}

#[tokio::test]
async fn a_queue_over_several_exchanges_gets_what_its_bindings_take_once() {
    let bindings = [("job.events", "job.*.status"), ("job.events", "#.status"), ("metrics", "metrics.summary")];
    let fixture =
        rabbitmq(vec![queue("some", &bindings, false), queue("all", &[("job.events", "#"), ("metrics", "#")], false)])
            .await;
    let window = [
        to("job.events", "job.submitted", 1, false),
        to("job.events", "job.7.status", 2, false),
        to("metrics", "metrics.job", 3, false),
        to("metrics", "metrics.summary", 4, false),
    ];
    publish(&*fixture.publisher(), &window).await;
    let mut some = subscribe(&fixture, &queue("some", &bindings, false)).await;
    let mut got = sequences(&consume(&mut *some, 2).await);
    got.sort_unstable();
    assert_eq!(got, [2, 4]);
    expect_quiet(&mut *some).await;
    let mut all = subscribe(&fixture, &queue("all", &[("job.events", "#"), ("metrics", "#")], false)).await;
    let mut got = sequences(&consume(&mut *all, 4).await);
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_queue_cannot_be_subscribed_with_other_bindings() {
    let fixture = rabbitmq(vec![queue("reader", &[("job.events", "job.#")], false)]).await;
    let other = queue("reader", &[("job.events", "#")], false);
    let lost = within(fixture.subscriber().subscribe(&other)).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("reader is declared with other logs or filters"), "{lost}");
}

#[tokio::test]
async fn a_source_of_another_broker_is_refused() {
    let fixture = rabbitmq(vec![]).await;
    let topics = consumer("reader", Source::Topics(vec!["job-lifecycle".into()]));
    let lost = within(fixture.subscriber().subscribe(&topics)).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("not a source of rabbitmq"), "{lost}");
    let unknown = queue("reader", &[("nowhere", "#")], false);
    let lost = within(fixture.subscriber().subscribe(&unknown)).await.map(drop).unwrap_err();
    assert!(lost.to_string().contains("no nowhere"), "{lost}");
}

#[tokio::test]
async fn each_runner_kind_gets_its_own_work() {
    let work = |name: &str, filter: &str| {
        consumer(name, Source::WorkQueue { stream: "COMMANDS".into(), filter: filter.into() })
    };
    let (local, remote) = (work("local", "commands.submit.process"), work("remote", "commands.submit.tapis"));
    let consumers = vec![local.clone(), remote.clone()];
    let fixture = Fresh::<Nats>::with(EmbeddedTopology { consumers, ..topology::<Nats>(&[]) }).await;
    let to = |subject: &str, sequence| Outgoing {
        event: event("alpha", sequence),
        route: route(Broker::Nats, subject, "alpha"),
    };
    let window = [to("commands.submit.process", 1), to("commands.submit.tapis", 2), to("commands.submit.process", 3)];
    publish(&*fixture.publisher(), &window).await;
    let mut inbound = subscribe(&fixture, &local).await;
    let got = consume(&mut *inbound, 2).await;
    assert_eq!(sequences(&got), [1, 3]);
    assert_eq!(&*got[0].key, "commands.submit.process");
    let mut inbound = subscribe(&fixture, &remote).await;
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [2]);
    expect_quiet(&mut *inbound).await;
}

#[tokio::test]
async fn a_key_stays_in_its_partition() {
    let fixture = Fresh::<Kafka>::start(&[]).await;
    let mut used = std::collections::BTreeSet::new();
    for n in 0..20 {
        let key = format!("key-{n}");
        let window = [outgoing(&fixture, &key, 1), outgoing(&fixture, &key, 2)];
        let positions = publish(&*fixture.publisher(), &window).await;
        assert_eq!(positions[0].partition, positions[1].partition);
        used.insert(positions[0].partition);
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}
