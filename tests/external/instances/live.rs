//! Sockets of one gateway see what another commits, by way of the broadcast queue alone.
//!
//! The gateway that is watched is cut off from its store as soon as the sockets have joined: it
//! commits nothing, and can fill no hole from the store. What arrives has come through RabbitMQ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use event_gateway::client::{Api, Event, Incoming, Socket};
use event_gateway::domain::Id;
use futures_util::future::{join, join_all};
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::people::{Claimed, LIMIT, claimed, signed_in};
use crate::gateway::Gateway;
use crate::play::psql;
use crate::proxy::{Mode, Proxy};
use crate::readiness::until;
use crate::runtime::runtime_beside;
use crate::world::World;

/// Jobs whose channels are joined, and what is reported of each.
const SHOWN: usize = 3;
const REPORTS: u32 = 20;
/// Jobs that are seen in their user's channel alone.
const OTHERS: usize = 20;
/// job.submitted, job.status.changed to RUNNING and to COMPLETED, job.completed.
const OF_EACH_OTHER: usize = 4;
/// A sample of the health comes each second, once another instance has lost the duty.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// A gateway whose way to the store can be cut.
struct Side {
    name: &'static str,
    gateway: Gateway,
    store: Proxy,
}

impl Side {
    fn start(world: &World, runtime: &Runtime, name: &'static str, catalogue: &Path) -> Self {
        let mut settings = world.settings();
        let url = settings.iter().find_map(|setting| setting.strip_prefix("store.url=")).unwrap();
        let store = runtime.block_on(Proxy::before(url));
        let own = [
            format!("instance.id={name}"),
            format!("store.url={}", store.url),
            format!("catalogue.dirs={}", catalogue.display()),
        ];
        settings.extend(own.iter().map(String::as_str));
        // Nothing but what is reported happens to the jobs.
        settings.extend(["health.interval=1s", "runner.external_lease=1h"]);
        Self { name, gateway: Gateway::start(&settings), store }
    }
}

/// An alert that operators may post: of its own the gateway raises none.
const ALERT: &str = "disk.alert.raised";

fn write_catalogue(dir: &Path) {
    let catalogue = format!(
        r#"
        [[type]]
        name = "{ALERT}"
        schema = "{ALERT}.avsc"
        version = 1
        aggregate = "disk_alert"
        aggregate_id = "alert_id"
        order = "aggregate"
        ingest = ["operator"]
        audience = ["role:operator"]
        socket_event = "alert"
        rabbitmq = {{ exchange = "notifications", key = "notifications.alert", optional = true }}
        kafka = {{ topic = "system-health", key = "alert_id" }}
    "#
    );
    let schema = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/alert.raised.avsc"));
    std::fs::write(dir.join("catalogue.toml"), catalogue).unwrap();
    std::fs::write(dir.join(format!("{ALERT}.avsc")), schema.replace("AlertRaised", "DiskAlertRaised")).unwrap();
}

/// What sockets were sent, or should be: ids of events.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// By channel, with their offsets, in the order in which they came.
    numbered: BTreeMap<String, Vec<(i64, String)>>,
    /// By the socket's event: what has no offset, and may come in any order.
    passing: BTreeMap<String, Vec<String>>,
}

impl Seen {
    fn add(&mut self, event: Event) {
        let Event { name, data } = event;
        assert_ne!(name, "resync", "{data:#}");
        let id = data["event_id"].as_str().unwrap_or_else(|| panic!("{name}: {data:#}")).to_owned();
        match data["offset"].as_i64() {
            Some(offset) => {
                self.numbered.entry(data["channel"].as_str().unwrap().to_owned()).or_default().push((offset, id));
            }
            None => {
                let passing = self.passing.entry(name).or_default();
                passing.push(id);
                passing.sort();
            }
        }
    }
}

/// A page of the user `ada` and an operator's, on one gateway.
struct Screens([Socket; 2]);

impl Screens {
    /// Returns as well where the page's channels stood when it joined them.
    async fn open(gateway: &Gateway, jobs: &[Claimed]) -> (Self, BTreeMap<String, i64>) {
        let mut page = socket(&signed_in(gateway, "ada", "user").await).await;
        let desk = socket(&signed_in(gateway, "operator", "operator").await).await;
        let channels = jobs.iter().map(|job| format!("job:{}", job.id)).chain(["user:ada".to_owned()]);
        let wanted: Map<String, Value> = channels.map(|channel| (channel, Value::Null)).collect();
        let answer = page.call("resume", &json!({ "channels": wanted }), LIMIT).await.unwrap();
        let joined = answer["channels"].as_object().unwrap().iter().map(|(channel, answer)| {
            (channel.clone(), answer["offset"].as_i64().unwrap_or_else(|| panic!("{channel}: {answer:#}")))
        });
        let (joined, mut screens) = (joined.collect(), Self([page, desk]));
        screens.read_what_is_sent(&Mutex::default()).await;
        (screens, joined)
    }

    /// Reads for as long as it is polled.
    async fn read(&mut self, seen: &Mutex<Seen>) {
        join_all(self.0.iter_mut().map(async |socket| {
            loop {
                if let Incoming::Event(event) = socket.next().await.unwrap() {
                    seen.lock().add(event);
                }
            }
        }))
        .await;
    }

    /// Reads what is on its way by now: it comes before the answer to a question.
    async fn read_what_is_sent(&mut self, seen: &Mutex<Seen>) {
        for socket in &mut self.0 {
            let asked = socket.emit_with_ack("leave_job_channel", &json!({ "jobId": Id::new() }));
            loop {
                match tokio::time::timeout(LIMIT, socket.next()).await.expect("it answers").unwrap() {
                    Incoming::Event(event) => seen.lock().add(event),
                    Incoming::Ack { id, .. } if id == asked => break,
                    Incoming::Ack { .. } => {}
                }
            }
        }
    }
}

async fn socket(user: &Api) -> Socket {
    let auth = json!({ "token": user.token() });
    Socket::connect(user.base(), "/messaging", &auth, LIMIT).await.unwrap()
}

/// Reports of the jobs that are shown, other jobs of their user from the first to the last
/// event, and an alert. Returns the alert's id.
async fn commits(gateway: &Gateway, shown: &[Claimed]) -> String {
    let (ada, worker) = (signed_in(gateway, "ada", "user").await, signed_in(gateway, "worker", "worker").await);
    let reports = shown.iter().map(async |job| {
        for report in 1..=REPORTS {
            job.progresses(&worker, f64::from(report) / f64::from(REPORTS + 1)).await;
            job.is_sampled(&worker).await;
        }
    });
    let others = async {
        for job in claimed(&ada, &worker, "external", OTHERS).await {
            job.progresses(&worker, 0.5).await;
            job.completes(&worker).await;
        }
    };
    let operator = signed_in(gateway, "operator", "operator").await;
    let alert = json!({
        "specversion": "1.0", "id": Id::new(), "source": "/tests", "type": ALERT,
        "data": {
            "alert_id": Id::new(), "alert_type": "disk", "severity": "warning", "message": "it is nearly full",
            "affected_resource_id": "disk-1",
        },
    });
    let request = operator.request(Method::POST, "events").header(CONTENT_TYPE, "application/cloudevents+json");
    join(join_all(reports), others).await;
    let taken: Value = operator.json(request.json(&alert)).await.unwrap();
    taken["items"][0]["event_id"].as_str().unwrap().to_owned()
}

/// What the store has beyond where the channels were joined, and the samples of their jobs.
fn stored(world: &World, joined: &BTreeMap<String, i64>, alert: String) -> Seen {
    let mut wanted = Seen::default();
    let mut samples = Vec::new();
    for (channel, after) in joined {
        let (kind, id) = channel.split_once(':').unwrap();
        let (offset, of) = match kind {
            "user" => ("user_offset", format!("user_id = '{id}'")),
            _ => ("sequence", format!("aggregate = 'job' AND aggregate_id = '{id}'")),
        };
        let query =
            format!("SELECT {offset}, event_id FROM events WHERE {of} AND {offset} > {after} ORDER BY {offset}");
        let rows = psql(&world.database, &query);
        let rows = rows.lines().map(|row| row.split_once('|').unwrap());
        let events = rows.map(|(offset, event_id)| (offset.parse().unwrap(), event_id.to_owned()));
        wanted.numbered.insert(channel.clone(), events.collect());
        if kind == "job" {
            let query = format!(
                "SELECT event_id FROM events WHERE event_type = 'job.metrics.recorded' AND aggregate_id = '{id}'"
            );
            samples.extend(psql(&world.database, &query).lines().map(str::to_owned));
        }
    }
    samples.sort();
    assert_eq!(wanted.numbered["user:ada"].len(), SHOWN * REPORTS as usize + OF_EACH_OTHER * OTHERS);
    assert_eq!(samples.len(), SHOWN * REPORTS as usize);
    wanted.passing.insert("telemetry_update".into(), samples);
    wanted.passing.insert("alert".into(), vec![alert]);
    wanted
}

/// Samples of the health that this instance has taken.
fn statistics(world: &World, of: &str) -> BTreeSet<String> {
    let query =
        format!("SELECT event_id FROM events WHERE event_type = 'system.health.check' AND aggregate_id = '{of}'");
    psql(&world.database, &query).lines().map(str::to_owned).collect()
}

/// Waits until all that is wanted has arrived, nothing else, and one of the statistics that were not
/// known before.
async fn has_arrived(world: &World, seen: &Mutex<Seen>, wanted: &Seen, known: &BTreeSet<String>, of: &str) {
    let deadline = Instant::now() + ARRIVES_WITHIN;
    let mut told = BTreeSet::new();
    loop {
        let taken = statistics(world, of);
        let found = {
            let mut seen = seen.lock();
            told.extend(seen.passing.remove("stats_update").unwrap_or_default());
            let new = told.iter().any(|id| taken.contains(id) && !known.contains(id));
            if Instant::now() >= deadline {
                assert_eq!(*seen, *wanted, "what was seen, and what the store has");
                assert!(new, "{of} has taken {taken:?}, {told:?} were seen, {known:?} are old");
            }
            new && *seen == *wanted
        };
        if found {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn all_is_seen(runtime: &Runtime, world: &World, committing: &Side, watched: &Side) {
    for side in [committing, watched] {
        until(&side.gateway, &[]);
    }
    let gateway = &committing.gateway;
    let (shown, (mut screens, joined)) = runtime.block_on(async {
        let (ada, worker) = (signed_in(gateway, "ada", "user").await, signed_in(gateway, "worker", "worker").await);
        let shown = claimed(&ada, &worker, "external", SHOWN).await;
        let screens = Screens::open(&watched.gateway, &shown).await;
        (shown, screens)
    });
    watched.store.set(Mode::Cut);
    until(&watched.gateway, &["store"]);

    let (known, seen) = (statistics(world, committing.name), Mutex::default());
    let wanted = runtime.block_on(async {
        let arrived = async {
            let wanted = stored(world, &joined, commits(gateway, &shown).await);
            has_arrived(world, &seen, &wanted, &known, committing.name).await;
            wanted
        };
        tokio::select! {
            wanted = arrived => wanted,
            () = screens.read(&seen) => unreachable!("it reads for ever"),
        }
    });

    // Nothing comes again when the store is back, and is looked into.
    watched.store.set(Mode::Open);
    until(&watched.gateway, &[]);
    runtime.block_on(screens.read_what_is_sent(&seen));
    let mut seen = seen.into_inner();
    seen.passing.remove("stats_update");
    assert_eq!(seen, wanted, "once its store was back");
}

#[test]
fn sockets_see_what_the_other_commits_by_the_broadcast_queue_alone() {
    let Some(world) = World::fresh() else { return };
    let runtime = runtime_beside();
    let catalogue = tempfile::tempdir().unwrap();
    write_catalogue(catalogue.path());
    let [first, second] = ["first", "second"].map(|name| Side::start(&world, &runtime, name, catalogue.path()));
    all_is_seen(&runtime, &world, &first, &second);
    all_is_seen(&runtime, &world, &second, &first);
    for side in [first, second] {
        assert!(side.gateway.stop().success());
    }
}
