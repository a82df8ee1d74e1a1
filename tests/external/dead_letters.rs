//! What nobody can serve, read or store leaves its queue as a dead letter, and does not hold up what
//! comes after it.

use std::time::Duration;

use event_gateway::consumer::{audit, declarations};
use event_gateway::domain::{Id, Timestamp};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::aftermath::{all_is_well, missed_by};
use crate::gateway::Gateway;
use crate::intruder::Intruder;
use crate::play::psql;
use crate::readiness::{scraped, until};
use crate::reconcile::{DATASET, QUEUE, depth, submitted};
use crate::runtime::runtime;
use crate::waiting::{MINUTE, await_that};
use crate::work_queue::nothing_waits;
use crate::world::{CLUSTER, World, jetstream, kafka};

/// Publishes to `job.events` as somebody else would; every queue that is bound has it.
async fn to_rabbitmq(world: &World, key: &str, body: &str, properties: BasicProperties) {
    let connection = Connection::connect(&world.amqp(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish("job.events".into(), key.into(), options, body.as_bytes(), properties);
    let confirmed = sent.await.unwrap().await.unwrap();
    assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "no queue is bound");
}

/// Writes to `job-lifecycle` as somebody else would.
async fn to_kafka(world: &World, body: &str) {
    let producer: FutureProducer = kafka().create().unwrap();
    let topic = format!("{}job-lifecycle", world.prefix);
    producer.send(FutureRecord::to(&topic).key("garbage").payload(body), Duration::ZERO).await.unwrap();
}

/// The headers that say which event it is: of a type that consumers of jobs know.
fn completed(id: Id, job: &str) -> BasicProperties {
    let (id, time) = (id.to_string(), Timestamp::now().to_string());
    let attributes = [
        ("specversion", "1.0"),
        ("id", &id),
        ("source", "/elsewhere"),
        ("type", "job.completed"),
        ("subject", job),
        ("time", &time),
        ("aggregatetype", "job"),
        ("sequence", "1"),
        ("userid", "ada"),
        ("correlationid", &id),
        ("schemaversion", "1"),
    ];
    let mut headers = FieldTable::default();
    for (name, text) in attributes {
        headers.insert(format!("cloudEvents_{name}").into(), AMQPValue::LongString(text.into()));
    }
    BasicProperties::default().with_headers(headers)
}

/// Dead letters of a consumer with this body that are its bytes and no headers.
fn letters(world: &World, consumer: &str, body: &str, what: &str) -> String {
    let query = format!(
        "SELECT {what} FROM backlog WHERE consumer = '{consumer}' AND state = 3 AND headers = '' \
         AND body = convert_to('{body}', 'UTF8')"
    );
    psql(&world.database, &query)
}

/// Consumers have had every event of a job that comes now, and their queues are empty.
fn consumers_go_on(gateway: &Gateway, world: &World) {
    submitted(gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    for consumer in declarations() {
        let missed = missed_by(&consumer);
        await_that(consumer.name, MINUTE, || psql(&world.database, &missed) == "0");
    }
    for queue in ["job-events-audit", "job-events-api"] {
        await_that(queue, MINUTE, || depth(world, queue) == 0);
    }
}

#[test]
fn garbage_on_the_work_queue_is_one_dead_letter_and_gone_from_jetstream() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    let garbage = format!("garbage of {}", world.prefix);
    // Others may use the stream, too: only this body counts.
    let rows = |what: &str| {
        let query = format!(
            "SELECT {what} FROM backlog WHERE consumer = 'runner-process' AND state = 3 \
             AND body = convert_to('{garbage}', 'UTF8')"
        );
        psql(&world.database, &query)
    };
    let published = jetstream(async |jetstream| {
        let sent = jetstream.publish("commands.job.submit.process", garbage.clone().into()).await.unwrap();
        sent.await.unwrap().sequence
    });

    await_that("a dead letter", MINUTE, || rows("count(*)") == "1");
    let found = rows("source || ': ' || (errors -> 0 ->> 'error')");
    for part in [
        &*format!("COMMANDS_JOB/0@{published}: "),
        "nats, stream COMMANDS_JOB, subject commands.job.submit.process: headers: the message has no headers",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    await_that("an empty consumer", MINUTE, || {
        let gone = jetstream(async |jetstream| {
            let stream = jetstream.get_stream("COMMANDS_JOB").await.unwrap();
            stream.get_raw_message(published).await.is_err()
        });
        gone && nothing_waits()
    });
    assert_eq!(rows("count(*)"), "1");

    // Where operators look.
    let metrics = scraped(&gateway);
    let dead = metrics.lines().find(|line| line.contains("dead_letters{consumer=\"runner-process\"}")).unwrap();
    assert!(!dead.ends_with(" 0"), "{dead}");
    assert!(gateway.stop().success());
}

/// PostgreSQL keeps no NUL, and no index takes a text of any length: neither can be the key by which
/// deliveries are ordered.
#[test]
fn what_the_store_refuses_with_its_headers_is_a_dead_letter_without_them() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    until(&gateway, &[]);
    let long: String = (0..600).map(|_| Id::new().to_string()).collect();
    let foreign = ["job\0of nobody", &long].map(|job| (Id::new(), job));
    let runtime = runtime();
    for (id, job) in foreign {
        runtime.block_on(to_rabbitmq(&world, "job.completed", "{}", completed(id, job)));
    }

    for consumer in ["audit", "orchestrator"] {
        await_that(consumer, MINUTE, || letters(&world, consumer, "{}", "count(*)") == "2");
        let errors = letters(&world, consumer, "{}", "string_agg(errors::text, ' ')");
        for (id, _) in foreign {
            assert!(errors.contains(&id.to_string()), "{id} is told: {errors}");
        }
    }
    consumers_go_on(&gateway, &world);
    assert_eq!(psql(&world.database, "SELECT count(*) FROM backlog"), "4");
    assert!(gateway.stop().success());
}

#[test]
fn garbage_among_events_is_a_dead_letter_of_each_consumer_that_reads_it() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    until(&gateway, &[]);
    let garbage = "\u{1}no event";
    let runtime = runtime();
    runtime.block_on(async {
        to_rabbitmq(&world, "job.garbage", garbage, BasicProperties::default()).await;
        to_kafka(&world, garbage).await;
    });

    for (consumer, why) in [("audit", "the message has no headers"), ("metrics", "the record has no headers")] {
        await_that(consumer, MINUTE, || letters(&world, consumer, garbage, "count(*)") == "1");
        let error = letters(&world, consumer, garbage, "errors -> 0 ->> 'error'");
        assert!(error.contains(why), "{consumer}: {error}");
    }
    consumers_go_on(&gateway, &world);
    assert_eq!(psql(&world.database, "SELECT count(*) FROM backlog"), "2");
    assert!(gateway.stop().success());
}

/// RabbitMQ puts it into a queue that the gateway empties; later events of its job wait behind it.
#[test]
fn what_a_reader_refuses_for_good_is_a_dead_letter_with_the_history_of_its_death() {
    let Some(world) = World::fresh() else { return };
    // The first declares the queue.
    assert!(Gateway::start(&world.settings()).stop().success());
    let mut intruder = Intruder::next_in(&world, QUEUE);
    let gateway = Gateway::start(&world.settings());
    let job = submitted(&gateway, &["--agent", CLUSTER, "--dataset", "d"]);
    intruder.refuses_one();
    let in_state = |state: u8| {
        let rows = "SELECT count(*) FROM backlog JOIN events USING (event_id) WHERE consumer = 'audit'";
        psql(&world.database, &format!("{rows} AND aggregate_id = '{job}' AND backlog.state = {state}"))
    };
    let (parked, dead) = (|| in_state(2), || in_state(3));
    await_that("a dead letter", MINUTE, || dead() == "1");
    let error = psql(&world.database, "SELECT errors -> 0 ->> 'error' FROM backlog");
    assert!(error.starts_with("rejected in queue job-events-audit"), "{error}");
    await_that("no message to drain", MINUTE, || depth(&world, "job-dlq") == 0);

    intruder.leave();
    assert_eq!(gateway.run(&["jobs", "cancel", &job]).code, 0);
    await_that("a parked event", MINUTE, || parked() == "1");
    let other = submitted(&gateway, &["--agent", CLUSTER, "--dataset", "d"]);
    let audited = format!("SELECT count(*) FROM audit_log WHERE target_resource_id = '{other}'");
    await_that("another job", MINUTE, || psql(&world.database, &audited) == "1");
    assert_eq!((dead(), psql(&world.database, "SELECT count(*) FROM backlog")), ("1".to_owned(), "2".to_owned()));
    assert!(gateway.stop().success());
}

/// They come to their consumer all the same, while somebody else sits on its queue.
#[test]
fn messages_that_expire_in_a_queue_are_handled_from_the_store() {
    let Some(world) = World::fresh() else { return };
    let settings = [&world.settings()[..], &["rabbitmq.queue_ttl=1s"]].concat();
    assert!(Gateway::start(&settings).stop().success());
    let intruder = Intruder::next_in(&world, QUEUE);
    let gateway = Gateway::start(&settings);
    // This one is in the other's hands, and the only event of its job.
    submitted(&gateway, &["--agent", CLUSTER, "--dataset", "d"]);
    await_that("a message", MINUTE, || depth(&world, QUEUE) == 1);
    for _ in 0..5 {
        submitted(&gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
    }
    let missed = missed_by(&audit::declaration());
    await_that("what has expired", MINUTE, || psql(&world.database, &missed) == "1");
    // RabbitMQ counts what is in a queue every few seconds.
    await_that("a queue without the others", MINUTE, || depth(&world, QUEUE) == 1);
    await_that("no late message", MINUTE, || depth(&world, "job-dlq") == 0);

    intruder.leave();
    await_that("the last one", MINUTE, || psql(&world.database, &missed) == "0");
    all_is_well(&gateway, &world);
    assert_eq!(psql(&world.database, "SELECT count(*) FROM backlog"), "0");
    assert!(gateway.stop().success());
}
