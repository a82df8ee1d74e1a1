//! Messages per second through the embedded brokers' three faces, beside a bare loop that
//! inserts the same rows with the same batch sizes.
//!
//! `cargo run --release --example embedded_throughput [messages per face] [lanes per face]`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use event_gateway::broker::embedded::{Embedded, EmbeddedTopology};
use event_gateway::broker::{Outgoing, Source, Subscription};
use event_gateway::domain::catalogue::{Catalogue, Route};
use event_gateway::domain::{Broker, EncodedPayload, Event, EventDraft, Id, Origin, Timestamp};
use hdrhistogram::Histogram;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

const WINDOW: usize = 256;
const BODY: usize = 700;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let per_face = numbers.next().transpose()?.unwrap_or(100_000);
    let lanes = numbers.next().transpose()?.unwrap_or(2);
    let directory = tempfile::tempdir_in(".")?;

    let windows = per_face.div_ceil(WINDOW * lanes);
    let total = windows * WINDOW * lanes * 3;
    let report = |what: &str, messages: usize, took: Duration, cpu: Duration| {
        let rate = messages as f64 / took.as_secs_f64();
        let each = cpu.as_secs_f64() * 1e6 / messages as f64;
        println!("{what:<34} {messages:>8} messages  {rate:>9.0}/s  {each:>5.1} us CPU each");
        rate
    };

    let (took, cpu) = bare(&directory.path().join("bare.db"), total).await?;
    let bare = report("bare multi-row inserts", total, took, cpu);
    let (took, cpu) = publish(&directory.path().join("a.db"), windows, lanes, false).await?;
    let alone = report("published, nobody reads", total, took, cpu);
    let (took, cpu) = publish(&directory.path().join("b.db"), windows, lanes, true).await?;
    let read = report("published, read and acknowledged", total, took, cpu);
    println!("ratio to the bare loop: {:.2} unread, {:.2} read", alone / bare, read / bare);
    // What a relay waits for a confirm when nothing is saturated.
    let topology = EmbeddedTopology::from_catalogue(&catalogue(), consumers());
    let embedded = Embedded::open(&directory.path().join("c.db"), topology).await?;
    let waits = pace(&embedded, Duration::from_secs(15)).await?;
    embedded.shutdown().await;
    println!(
        "confirms of 16 messages at {}/s: P50 {} us, P99 {} us, P99.9 {} us, max {} us",
        waits.len() * 16 / 15,
        waits.value_at_quantile(0.5),
        waits.value_at_quantile(0.99),
        waits.value_at_quantile(0.999),
        waits.max()
    );
    Ok(())
}

/// Publishes a window of 16 from each face every 5 ms; microseconds until each confirm.
async fn pace(embedded: &Embedded, time: Duration) -> Result<Histogram<u64>, Box<dyn std::error::Error>> {
    let catalogue = catalogue();
    let events: Vec<Arc<Event>> = (0..16).map(|n| event(&catalogue, n)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (broker, target, key) in FACES {
        let publisher = embedded.publisher(broker);
        let window = window(&events, broker, target, key);
        tasks.spawn(async move {
            let mut waits = Histogram::<u64>::new(3).expect("three digits");
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            let start = Instant::now();
            while start.elapsed() < time {
                ticks.tick().await;
                let asked = Instant::now();
                let results = publisher.publish(&window).await;
                assert!(results.iter().all(Result::is_ok));
                waits.record(asked.elapsed().as_micros() as u64).expect("it grows");
            }
            waits
        });
    }
    let mut all = Histogram::new(3)?;
    while let Some(waits) = tasks.join_next().await {
        all.add(waits?)?;
    }
    Ok(all)
}

const FACES: [(Broker, &str, &str); 3] = [
    (Broker::Rabbitmq, "job.events", "job.cancelled"),
    (Broker::Kafka, "job-lifecycle", ""),
    (Broker::Nats, "commands.job.submit.process", ""),
];

fn window(events: &[Arc<Event>], broker: Broker, target: &str, key: &str) -> Vec<Outgoing> {
    let outgoing = |event: &Arc<Event>| {
        let key = if key.is_empty() { event.aggregate_id.clone() } else { key.into() };
        Outgoing { event: event.clone(), route: Route { broker, target: target.into(), key, optional: false } }
    };
    events.iter().map(outgoing).collect()
}

/// CPU this process has used.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("own usage");
    let time = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

async fn bare(path: &Path, total: usize) -> Result<(Duration, Duration), sqlx::Error> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(8192)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .pragma("wal_autocheckpoint", "2048")
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::query(
        "CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT NOT NULL, headers TEXT NOT NULL, \
         encoding INTEGER NOT NULL, body BLOB NOT NULL, time INTEGER NOT NULL) STRICT",
    )
    .execute(&mut connection)
    .await?;
    let insert = format!(
        "INSERT INTO records (id, key, headers, encoding, body, time) VALUES {}",
        vec!["(?,?,?,?,?,?)"; WINDOW].join(",")
    );
    let sample = event(&catalogue(), 0);
    let headers: Arc<str> = serde_json::to_string(&sample.headers()).expect("headers").into();
    let key: Arc<str> = sample.aggregate_id.clone();
    let (start, cpu_before) = (Instant::now(), cpu());
    let mut id = 0i64;
    while (id as usize) < total {
        // One transaction for three windows, as when all faces publish at once.
        let mut transaction = connection.begin().await?;
        for _ in 0..3 {
            let mut query = sqlx::query(AssertSqlSafe(insert.clone()));
            for _ in 0..WINDOW {
                let body = &sample.payload.json[..];
                query = query
                    .bind(id)
                    .bind(key.clone())
                    .bind(headers.clone())
                    .bind(1)
                    .bind(body)
                    .bind(sample.occurred_at.0);
                id += 1;
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
    }
    let took = (start.elapsed(), cpu() - cpu_before);
    connection.close().await?;
    Ok(took)
}

fn catalogue() -> Arc<Catalogue> {
    Catalogue::load(&[]).expect("the built-in catalogue is sound")
}

fn event(catalogue: &Catalogue, sequence: i64) -> Arc<Event> {
    let event_type = catalogue.get("job.cancelled").expect("built in").clone();
    let id = Id::new();
    let mut json = serde_json::json!({ "job_id": id, "cancelled_by": "user", "reason": "" });
    let padding = BODY - json.to_string().len();
    json["reason"] = "r".repeat(padding).into();
    let payload = event_type.encode_json(Bytes::from(json.to_string())).expect("a sound payload");
    Arc::new(Event {
        position: sequence,
        sequence,
        user_offset: Some(sequence),
        origin: Origin::default(),
        draft: EventDraft {
            event_id: Id::new(),
            event_type,
            aggregate_id: id.to_string().into(),
            user_id: "ada".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: Some(Id::new()),
            tags: Vec::new(),
            payload: EncodedPayload { json: payload.json, avro: payload.avro },
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            skip: Vec::new(),
        },
    })
}

fn consumers() -> Vec<Subscription> {
    let consumer = |name: &str, source| Subscription {
        consumer: name.into(),
        source,
        prefetch: 1024,
        ack_wait: Duration::from_secs(30),
    };
    let bindings = vec![("job.events".into(), "job.#".into())];
    let (stream, filter) = ("COMMANDS_JOB".into(), "commands.job.submit.>".into());
    vec![
        consumer("queue", Source::Queue { name: "queue".into(), bindings, exclusive: false }),
        consumer("group", Source::Topics(vec!["job-lifecycle".into()])),
        consumer("work", Source::WorkQueue { stream, filter }),
    ]
}

async fn publish(
    path: &Path,
    windows: usize,
    lanes: usize,
    read: bool,
) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let catalogue = catalogue();
    let topology = EmbeddedTopology::from_catalogue(&catalogue, consumers());
    let embedded = Embedded::open(path, topology).await?;
    let events: Vec<Vec<Arc<Event>>> =
        (0..lanes).map(|lane| (0..WINDOW).map(|n| event(&catalogue, (lane * WINDOW + n) as i64)).collect()).collect();
    let (start, cpu_before) = (Instant::now(), cpu());
    let mut tasks = tokio::task::JoinSet::new();
    for (broker, target, key) in FACES {
        for events in &events {
            let publisher = embedded.publisher(broker);
            let window = window(events, broker, target, key);
            tasks.spawn(async move {
                for _ in 0..windows {
                    let results = publisher.publish(&window).await;
                    assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|r| r.is_err()));
                }
            });
        }
    }
    if read {
        for consumer in consumers() {
            let broker = match consumer.source {
                Source::Queue { .. } => Broker::Rabbitmq,
                Source::Topics(_) => Broker::Kafka,
                _ => Broker::Nats,
            };
            let mut inbound = embedded.subscriber(broker).subscribe(&consumer).await?;
            let mut left = windows * WINDOW * lanes;
            tasks.spawn(async move {
                while left > 0 {
                    let got = inbound.receive(256).await.expect("received");
                    left -= got.len();
                    let tokens: Vec<_> = got.iter().map(|delivery| delivery.token).collect();
                    inbound.ack(&tokens).await.expect("acknowledged");
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done?;
    }
    let took = (start.elapsed(), cpu() - cpu_before);
    embedded.shutdown().await;
    Ok(took)
}
