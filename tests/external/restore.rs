//! The database put back from a dump, as `docs/operations.md` says, while the brokers are ahead
//! of it; and brokers that have lost what the database says they have.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::instances::people::{claimed, signed_in};
use crate::play::psql;
use crate::program::Ended;
use crate::reconcile::{DATASET, broker, reconcile, submitted};
use crate::runtime::runtime;
use crate::world::{CLUSTER, World, address, brokers, jetstream, kafka};

/// Events that Kafka has confirmed; those that stay in JetStream: cancellations, and the command
/// that nobody takes.
const IN_KAFKA: &str = "SELECT event_id FROM events JOIN legs USING (position) WHERE broker = 2 AND state = 1";
const IN_STREAMS: &str = "SELECT event_id FROM events JOIN legs USING (position) WHERE broker = 3 AND state = 1 \
                          AND (event_type = 'CancelJobRequested' OR payload ->> 'agent' = 'Cluster')";
const ALL: &str = "SELECT event_id FROM events";

/// Runs a job to its end.
fn play(gateway: &Gateway) {
    submitted(gateway, &["--agent", "AnomalyDetection", "--dataset", DATASET, "--watch"]);
}

fn cancelled(gateway: &Gateway, job: &str) {
    let ended = gateway.run(&["jobs", "cancel", job]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
}

/// One of PostgreSQL's programs on one of the tests' databases.
fn postgres(program: &str, database: &str, arguments: &[&str]) {
    let mut url = url::Url::parse(&address("POSTGRES").unwrap()).unwrap();
    url.set_path(database);
    let output = Command::new(program).arg(format!("--dbname={url}")).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A dump of the database as it is now.
pub fn dumped(gateway: &Gateway, world: &World) -> PathBuf {
    let dump = gateway.program.dir().join("gateway.dump");
    postgres("pg_dump", &world.database, &["--format=custom", &format!("--file={}", dump.display())]);
    dump
}

/// Puts a dump in place of the world's database, as `docs/operations.md` says. Gateways are stopped.
pub fn put_back(world: &mut World, dump: &Path) {
    let lost = world.database.clone();
    world.use_database(&format!("{lost}_restored"));
    brokers(&["psql", &format!("CREATE DATABASE {}", world.database)]);
    postgres("pg_restore", &world.database, &[dump.to_str().unwrap()]);
    postgres("vacuumdb", &world.database, &["--analyze-only"]);
    brokers(&["psql", &format!("DROP DATABASE {lost}")]);
}

fn number(database: &str, query: &str) -> u64 {
    psql(database, query).parse().unwrap()
}

fn ids(database: &str, query: &str) -> BTreeSet<String> {
    psql(database, query).lines().map(str::to_owned).collect()
}

/// The events of these findings.
fn named(found: &Value, name: &str, kind: &str) -> BTreeSet<String> {
    let examples = broker(found, name)[kind]["examples"].as_array().unwrap();
    examples.iter().map(|finding| finding["event_id"].as_str().unwrap().to_owned()).collect()
}

pub fn count(found: &Value, name: &str, kind: &str) -> u64 {
    broker(found, name)[kind]["count"].as_u64().unwrap()
}

/// Everything that can be read is compared; asserts the numbers of these kinds, and no others.
pub fn finds(ended: &Ended, wanted: &[(&str, &str, u64)]) {
    assert_eq!(ended.code, i32::from(!wanted.is_empty()), "{}{}", ended.stdout, ended.stderr);
    let found = ended.json();
    for name in ["rabbitmq", "kafka", "nats"] {
        for kind in ["missing", "out_of_order", "unknown", "unreadable", "waiting"] {
            let wanted = wanted.iter().find(|wanted| (wanted.0, wanted.1) == (name, kind)).map_or(0, |wanted| wanted.2);
            assert_eq!(count(&found, name, kind), wanted, "{name} {kind}: {found:#}");
        }
    }
}

#[test]
fn a_database_put_back_knows_what_the_brokers_have_beyond_it() {
    let Some(mut world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    play(&gateway);
    let open = submitted(&gateway, &["--agent", "external", "--dataset", "d"]);
    finds(&reconcile(&gateway, &world, &["--wait", "60s"]), &[]);
    let dump = dumped(&gateway, &world);

    // What the dump does not have: a job that ran, one that waits in the stream, and the next
    // event of one that it has.
    play(&gateway);
    submitted(&gateway, &["--agent", CLUSTER, "--dataset", "anything"]);
    cancelled(&gateway, &open);
    finds(&reconcile(&gateway, &world, &["--wait", "60s"]), &[]);
    assert!(gateway.halt().success());
    let published = (ids(&world.database, IN_KAFKA), ids(&world.database, IN_STREAMS));

    put_back(&mut world, &dump);
    let restored = ids(&world.database, ALL);
    let kafka: BTreeSet<String> = published.0.difference(&restored).cloned().collect();
    let nats: BTreeSet<String> = published.1.difference(&restored).cloned().collect();
    assert!(kafka.len() >= 8 && !nats.is_empty(), "{kafka:?} {nats:?}");
    gateway.kill_and_restart(&world.settings());
    play(&gateway);
    // Its second event is another one now.
    cancelled(&gateway, &open);
    play(&gateway);

    let ended = reconcile(&gateway, &world, &["--wait", "60s", "--examples", "1000"]);
    finds(&ended, &[("kafka", "unknown", kafka.len() as u64), ("nats", "unknown", nats.len() as u64)]);
    assert_eq!(named(&ended.json(), "kafka", "unknown"), kafka);
    assert_eq!(named(&ended.json(), "nats", "unknown"), nats);
    let new = ids(&world.database, IN_KAFKA).difference(&restored).count();
    assert!(new >= 8, "new events are published: {new}");
    let audited = "SELECT count(*) FROM audit_log";
    let (all, once) = (number(&world.database, audited), "SELECT count(DISTINCT audit_id) FROM audit_log");
    assert_eq!(all, number(&world.database, once));
    assert!(gateway.stop().success());
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    kafka().create().unwrap()
}

fn delete_topic(name: &str) {
    let runtime = runtime();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let deleted = runtime.block_on(async { admin().delete_topics(&[name], &options).await });
    deleted.unwrap().remove(0).unwrap();
}

/// As where a site was lost: the database is put back from a dump, and a topic has nothing of what
/// it says is there.
#[test]
fn what_a_topic_has_lost_is_published_again() {
    let Some(mut world) = World::fresh() else { return };
    let mut gateway = Gateway::start(&world.settings());
    play(&gateway);
    let open = submitted(&gateway, &["--agent", "external", "--dataset", "d"]);
    finds(&reconcile(&gateway, &world, &["--wait", "60s"]), &[]);
    assert!(gateway.halt().success());
    let dump = dumped(&gateway, &world);
    put_back(&mut world, &dump);
    let lost = number(
        &world.database,
        "SELECT count(*) FROM legs JOIN events USING (position) \
         WHERE broker = 2 AND state = 1 AND event_type IN \
           ('job.submitted', 'job.status.changed', 'job.completed', 'job.failed', 'job.cancelled')",
    );
    assert!(lost >= 4, "{lost}");
    delete_topic(&format!("{}job-lifecycle", world.prefix));

    let ended = reconcile(&gateway, &world, &[]);
    finds(&ended, &[("kafka", "missing", lost)]);
    let kafka = broker(&ended.json(), "kafka").clone();
    assert_eq!((&kafka["lost"], &kafka["reopened"]), (&json!(lost), &json!(0)), "a look changes nothing");
    assert_eq!(number(&world.database, "SELECT count(*) FROM legs WHERE state = 0"), 0);

    let ended = reconcile(&gateway, &world, &["--reopen"]);
    assert_eq!(broker(&ended.json(), "kafka")["reopened"], json!(lost), "{}", ended.stdout);
    finds(&reconcile(&gateway, &world, &["--wait", "0s"]), &[("kafka", "waiting", lost)]);

    // The next gateway declares the topic and publishes all of it, and what comes later behind it.
    gateway.kill_and_restart(&world.settings());
    cancelled(&gateway, &open);
    let ended = reconcile(&gateway, &world, &["--wait", "60s", "--strict"]);
    finds(&ended, &[]);
    assert!(
        number(&world.database, "SELECT count(*) FROM owners WHERE adopted_by IS NULL AND lease_until > now()") == 1
    );
}

/// Of a stream that keeps its messages; who takes them from a work queue looks into the store.
#[test]
fn what_a_stream_has_lost_is_published_again() {
    let Some(world) = World::fresh() else { return };
    // Within it the stream would take what is published again for what it has had.
    let settings = [&world.settings()[..], &["nats.duplicate_window=1s"]].concat();
    let mut gateway = Gateway::start(&settings);
    play(&gateway);
    let running = runtime().block_on(async {
        let (user, worker) = (signed_in(&gateway, "ada", "user").await, signed_in(&gateway, "cluster", "worker").await);
        let job = claimed(&user, &worker, CLUSTER, 1).await.remove(0);
        job.progresses(&worker, 0.5).await;
        job.id
    });
    // Whoever runs it is to end it.
    cancelled(&gateway, &running);
    finds(&reconcile(&gateway, &world, &["--wait", "60s"]), &[]);
    assert!(gateway.halt().success());
    let lost = number(
        &world.database,
        "SELECT count(*) FROM legs JOIN events USING (position) \
         WHERE broker = 3 AND state = 1 AND event_type = 'CancelJobRequested'",
    );
    assert_eq!(lost, 1);
    jetstream(async |jetstream| {
        let stream = jetstream.get_stream("COMMANDS_JOB_CANCEL").await.unwrap();
        assert_eq!(stream.purge().await.unwrap().purged, lost);
    });

    finds(&reconcile(&gateway, &world, &[]), &[("nats", "missing", lost)]);
    let ended = reconcile(&gateway, &world, &["--reopen"]);
    assert_eq!(broker(&ended.json(), "nats")["reopened"], json!(lost), "{}", ended.stdout);
    finds(&reconcile(&gateway, &world, &["--wait", "0s"]), &[("nats", "waiting", lost)]);

    gateway.kill_and_restart(&settings);
    finds(&reconcile(&gateway, &world, &["--wait", "60s", "--strict"]), &[]);
    assert!(gateway.stop().success());
}
