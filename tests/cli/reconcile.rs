use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::gateway::Gateway;
use crate::program::{Ended, Program};
use crate::runtime::runtime;

const DATASET: &str = "alpha-cal/point-source-10ant.csv";
/// The records of the job in its partition of job-lifecycle, in order.
const RECORDS: &str = "SELECT records.id, headers FROM records JOIN partitions ON partitions.id = partition_id \
                       WHERE broker = 2 AND log = 'job-lifecycle' AND headers ->> 'aggregate_id' = ? \
                       ORDER BY records.id";

/// A stopped gateway that has taken a job, and then run another, the last in its partition.
struct Site {
    gateway: Gateway,
    job: String,
}

impl Site {
    fn new() -> Self {
        let mut gateway = Gateway::start(&[]);
        // The other job first: its partition may be the same, of which these tests cut the end off.
        let open = gateway.run(&["jobs", "submit", "--agent", "external", "--dataset", "d"]);
        assert_eq!(open.code, 0, "{}", open.stderr);
        let quick = r#"{"bootstrap_samples":100}"#;
        let run = ["jobs", "submit", "--agent", "AlphaCal", "--dataset", DATASET, "--params", quick, "--watch"];
        let run = gateway.run(&run);
        assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
        // Beside the running gateway, until its consumers have no more to say.
        let mut last = Value::Null;
        loop {
            let ended = gateway.run(&["reconcile", "--output", "json"]);
            assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
            let position = ended.json()["report"]["last_position"].clone();
            if position == last {
                break;
            }
            last = position;
            std::thread::sleep(Duration::from_millis(300));
        }
        assert!(gateway.halt().success());
        Self { gateway, job: run.stdout.lines().next().unwrap().to_owned() }
    }

    /// A copy of its data, changed.
    fn changed(&self, change: impl AsyncFnOnce(&mut SqliteConnection, &mut SqliteConnection, &str)) -> Copy {
        let program = Program::new();
        let (from, to) = (self.gateway.program.dir().join("data"), program.dir().join("data"));
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        let runtime = runtime();
        runtime.block_on(async {
            let (mut store, mut brokers) = (open(&to.join("gateway.db")).await, open(&to.join("brokers.db")).await);
            change(&mut store, &mut brokers, &self.job).await;
            store.close().await.unwrap();
            brokers.close().await.unwrap();
        });
        Copy(program)
    }
}

async fn open(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

async fn records(brokers: &mut SqliteConnection, job: &str) -> Vec<(i64, Value)> {
    let rows: Vec<(i64, String)> = sqlx::query_as(RECORDS).bind(job.to_owned()).fetch_all(brokers).await.unwrap();
    assert!(rows.len() >= 3, "{rows:?}");
    rows.into_iter().map(|(id, headers)| (id, serde_json::from_str(&headers).unwrap())).collect()
}

async fn set_headers(brokers: &mut SqliteConnection, id: i64, headers: &Value) {
    let update = sqlx::query("UPDATE records SET headers = ? WHERE id = ?").bind(headers.to_string()).bind(id);
    assert_eq!(update.execute(brokers).await.unwrap().rows_affected(), 1);
}

/// Appends a copy of a record to its partition, with these headers.
async fn append(brokers: &mut SqliteConnection, id: i64, headers: &Value) {
    let sql = "INSERT INTO records (id, key, headers, encoding, body, time) \
               SELECT (SELECT max(id) + 1 FROM records AS others WHERE others.partition_id = records.partition_id), \
               key, ?, encoding, body, time FROM records WHERE id = ?";
    let insert = sqlx::query(sql).bind(headers.to_string()).bind(id);
    assert_eq!(insert.execute(brokers).await.unwrap().rows_affected(), 1);
}

struct Copy(Program);

impl Copy {
    fn reconcile(&self, more: &[&str]) -> Ended {
        self.0.run(&[&["reconcile", "--output", "json"], more].concat())
    }

    /// Expects one finding of this kind about Kafka, nothing else at all, and returns it.
    fn finds(&self, kind: &str) -> Value {
        self.finds_in("kafka", kind)
    }

    /// As [`Copy::finds`], about another broker.
    fn finds_in(&self, name: &str, kind: &str) -> Value {
        let ended = self.reconcile(&[]);
        assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
        let found = ended.json();
        assert_eq!(found["clean"], json!(false));
        for broker in found["report"]["brokers"].as_array().unwrap() {
            for other in ["missing", "out_of_order", "unknown", "unreadable", "waiting", "duplicates"] {
                let wanted = u64::from(other == kind && broker["broker"] == name);
                assert_eq!(broker[other]["count"], json!(wanted), "{other}: {broker:#}");
            }
        }
        named(&found, name)[kind]["examples"][0].clone()
    }
}

fn named<'a>(found: &'a Value, name: &str) -> &'a Value {
    found["report"]["brokers"].as_array().unwrap().iter().find(|broker| broker["broker"] == name).unwrap()
}

fn kafka(found: &Value) -> &Value {
    named(found, "kafka")
}

/// What was found of the audit consumer.
fn audit(found: &Value) -> &Value {
    named(found, "rabbitmq")["consumers"].as_array().unwrap().iter().find(|found| found["name"] == "audit").unwrap()
}

/// An event of the job.
const EVENT: &str = "SELECT event_id FROM events WHERE aggregate = 'job' AND aggregate_id = ?1 AND event_type = ?2";

/// The audit consumer has never had it. Returns the event's id.
async fn forget(store: &mut SqliteConnection, job: &str, event_type: &str) -> Value {
    let id: Vec<u8> = sqlx::query_scalar(EVENT)
        .bind(job.to_owned())
        .bind(event_type.to_owned())
        .fetch_one(&mut *store)
        .await
        .unwrap();
    let delete = sqlx::query("DELETE FROM inbox WHERE consumer = 'audit' AND event_id = ?").bind(id.clone());
    assert_eq!(delete.execute(store).await.unwrap().rows_affected(), 1);
    json!(event_gateway::domain::Id(uuid::Uuid::from_slice(&id).unwrap()))
}

#[test]
fn what_the_ledger_says_and_what_the_brokers_hold_are_compared_message_by_message() {
    let site = Site::new();

    let same = site.changed(async |_, _, _| {});
    let ended = same.reconcile(&["--strict"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    for broker in ended.json()["report"]["brokers"].as_array().unwrap() {
        assert!(broker["compared"] == json!(true) && broker["legs"]["done"].as_u64().unwrap() > 0, "{broker:#}");
        assert_eq!(broker["legs"]["done"], broker["messages"], "{broker:#}");
    }
    let text = same.0.run(&["reconcile"]).stdout;
    assert!(text.starts_with("BROKER") && text.ends_with("\nclean\n"), "{text}");

    let mut event = Value::Null;
    let holed = site.changed(async |_, brokers, job| {
        let (id, headers) = records(brokers, job).await.swap_remove(1);
        event = headers;
        sqlx::query("DELETE FROM records WHERE id = ?").bind(id).execute(brokers).await.unwrap();
    });
    let missing = holed.finds("missing");
    assert_eq!((&missing["event_id"], &missing["sequence"]), (&event["event_id"], &event["sequence"]), "{missing}");
    assert_eq!(missing["key"], json!(format!("job/{}", site.job)));
    let text = holed.0.run(&["reconcile"]).stdout;
    assert!(text.contains(event["event_id"].as_str().unwrap()) && text.ends_with("NOT CLEAN\n"), "{text}");

    // What is open again waits for a gateway.
    assert_eq!(kafka(&holed.reconcile(&[]).json())["lost"], json!(1));
    let reopened = holed.reconcile(&["--reopen"]);
    assert_eq!(reopened.code, 1, "{}{}", reopened.stdout, reopened.stderr);
    assert_eq!(kafka(&reopened.json())["reopened"], json!(1));
    assert_eq!(holed.finds("waiting")["event_id"], event["event_id"]);

    let truncated = site.changed(async |_, brokers, job| {
        let last = records(brokers, job).await.pop().unwrap().0;
        sqlx::query("DELETE FROM records WHERE id = ?").bind(last).execute(brokers).await.unwrap();
    });
    assert!(truncated.finds("missing")["why"].as_str().unwrap().contains("ends at"));

    let swapped = site.changed(async |_, brokers, job| {
        let all = records(brokers, job).await;
        set_headers(brokers, all[0].0, &all[1].1).await;
        set_headers(brokers, all[1].0, &all[0].1).await;
        event = all[1].1.clone();
    });
    assert_eq!(swapped.finds("out_of_order")["event_id"], event["event_id"]);

    let foreign = site.changed(async |_, brokers, job| {
        let (id, mut headers) = records(brokers, job).await.swap_remove(0);
        headers["event_id"] = json!(event_gateway::domain::Id::new());
        event = headers;
        append(brokers, id, &event).await;
    });
    assert_eq!(foreign.finds("unknown")["event_id"], event["event_id"]);

    let reopened = site.changed(async |store, brokers, job| {
        event = records(brokers, job).await.swap_remove(0).1;
        let sql = "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL WHERE broker = 2 AND position = \
                   (SELECT position FROM events WHERE aggregate_id = ? AND aggregate = 'job' AND sequence = ?)";
        let update = sqlx::query(sql).bind(job.to_owned()).bind(event["sequence"].as_i64());
        assert_eq!(update.execute(store).await.unwrap().rows_affected(), 1);
    });
    let waiting = reopened.finds("waiting");
    assert_eq!(waiting["event_id"], event["event_id"]);
    assert!(waiting["why"].as_str().unwrap().contains("is there"), "{waiting}");
}

#[test]
fn what_a_queue_was_given_its_consumer_has_or_it_is_on_the_way_or_missing() {
    let site = Site::new();
    let mut event = Value::Null;
    let missed = site.changed(async |store, _, job| event = forget(store, job, "job.completed").await);
    let missing = missed.finds_in("rabbitmq", "missing");
    assert_eq!((&missing["event_id"], &missing["consumer"]), (&event, &json!("audit")), "{missing}");
    assert_eq!(missing["key"], json!(format!("job/{}", site.job)));
    assert!(missing["why"].as_str().unwrap().contains("job-events-audit is empty"), "{missing}");
    let text = missed.0.run(&["reconcile"]).stdout;
    assert!(text.contains("rabbitmq consumer audit: ") && text.contains(" 1 missing\n"), "{text}");
    // It can be published again, and waits for a gateway then.
    let reopened = missed.reconcile(&["--reopen"]).json();
    assert_eq!(named(&reopened, "rabbitmq")["reopened"], json!(1), "{reopened:#}");
    assert_eq!(missed.finds_in("rabbitmq", "waiting")["event_id"], event);

    // The same, but its queue was not read to the end.
    let waits = site.changed(async |store, brokers, job| {
        forget(store, job, "job.completed").await;
        let back = "UPDATE positions SET next_offset = next_offset - 1 WHERE consumer = 'job-events-audit'";
        assert_eq!(sqlx::query(back).execute(brokers).await.unwrap().rows_affected(), 1);
    });
    let ended = waits.reconcile(&[]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(audit(&ended.json())["on_the_way"], json!(1));

    // A queue of one cannot have two.
    let both = site.changed(async |store, brokers, job| {
        event = forget(store, job, "job.submitted").await;
        forget(store, job, "job.completed").await;
        let back = "UPDATE positions SET next_offset = next_offset - 1 WHERE consumer = 'job-events-audit'";
        assert_eq!(sqlx::query(back).execute(brokers).await.unwrap().rows_affected(), 1);
    });
    let missing = both.finds_in("rabbitmq", "missing");
    assert_eq!(missing["event_id"], event);
    assert!(missing["why"].as_str().unwrap().contains("1 at most"), "{missing}");
    let found = both.reconcile(&["--reopen"]).json();
    assert_eq!((&audit(&found)["on_the_way"], &named(&found, "rabbitmq")["reopened"]), (&json!(1), &json!(0)));

    // Waiting to be tried again, or dead, is not missing.
    let dead = site.changed(async |store, _, job| {
        forget(store, job, "job.completed").await;
        let sql = "INSERT INTO backlog SELECT 'audit', 'k', sequence, event_id, 3, 1, 1, NULL, occurred_at, '[]', \
                   x'7b7d', 'json', x'7b7d', 'test' FROM events \
                   WHERE aggregate = 'job' AND aggregate_id = ? AND event_type = 'job.completed'";
        assert_eq!(sqlx::query(sql).bind(job.to_owned()).execute(store).await.unwrap().rows_affected(), 1);
    });
    let ended = dead.reconcile(&[]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(audit(&ended.json())["dead"], json!(1));
}

#[test]
fn in_which_order_a_consumer_has_handled_a_job_is_told_by_what_it_did() {
    let site = Site::new();
    let mut event = Value::Null;
    // What it emitted for the two stands the other way round.
    let swapped = site.changed(async |store, _, job| {
        let sql = "SELECT e.position, e.causation_id FROM events AS e JOIN events AS c ON c.event_id = e.causation_id \
                   WHERE e.event_type = 'audit.job.lifecycle' AND c.aggregate_id = ? ORDER BY c.sequence";
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(sql).bind(job.to_owned()).fetch_all(&mut *store).await.unwrap();
        let [first, last] = rows.try_into().unwrap();
        event = json!(event_gateway::domain::Id(uuid::Uuid::from_slice(&last.1).unwrap()));
        for (position, cause) in [(first.0, last.1), (last.0, first.1)] {
            let update =
                sqlx::query("UPDATE events SET causation_id = ? WHERE position = ?").bind(cause).bind(position);
            assert_eq!(update.execute(&mut *store).await.unwrap().rows_affected(), 1);
        }
    });
    let late = swapped.finds_in("rabbitmq", "out_of_order");
    assert_eq!((&late["event_id"], &late["consumer"]), (&event, &json!("audit")), "{late}");

    // The first was handled a minute later than the last.
    let late = site.changed(async |store, _, job| {
        let sql = "UPDATE inbox SET at = at + 60000 WHERE consumer = 'audit' AND event_id = (";
        let sql = format!("{sql}{EVENT})");
        let update = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(job.to_owned()).bind("job.submitted");
        assert_eq!(update.execute(store).await.unwrap().rows_affected(), 1);
    });
    assert_eq!(late.finds_in("rabbitmq", "out_of_order")["event_id"], event);
}

#[test]
fn a_repeat_is_harmless_unless_it_is_asked_for() {
    let site = Site::new();
    let repeated = site.changed(async |_, brokers, job| {
        let (id, headers) = records(brokers, job).await.swap_remove(0);
        append(brokers, id, &headers).await;
    });
    let ended = repeated.reconcile(&[]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(kafka(&ended.json())["duplicates"]["count"], json!(1));
    assert_eq!(repeated.reconcile(&["--strict"]).code, 1);

    let garbled = site.changed(async |_, brokers, job| {
        let id = records(brokers, job).await[1].0;
        set_headers(brokers, id, &json!({ "event_id": 7 })).await;
    });
    let found = garbled.reconcile(&[]).json();
    let counts = ["unreadable", "missing", "unknown"].map(|kind| kafka(&found)[kind]["count"].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 0]);
}

#[test]
fn nothing_is_reopened_under_a_gateway_that_has_the_store_alone() {
    let gateway = Gateway::start(&[]);
    let ended = gateway.run(&["reconcile", "--reopen"]);
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("is used by another gateway"), "{}", ended.stderr);
}

#[test]
fn without_a_store_there_is_nothing_to_compare() {
    let ended = Program::new().run(&["reconcile"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("there is no store at"), "{}", ended.stderr);
}
