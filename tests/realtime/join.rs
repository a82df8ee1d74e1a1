//! Joining and resuming: no gap, no repeat, whatever happens meanwhile.

use std::sync::Arc;

use event_gateway::domain::{Id, Role};
use serde_json::json;
use tokio::sync::watch;

use crate::broadcast::Mode;
use crate::client::{Client, offsets};
use crate::fresh;
use crate::gateway::Gateway;

#[tokio::test]
async fn a_join_without_offset_answers_a_snapshot() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    let answer = client.join(job, None).await;
    assert_eq!(answer["joined"], true, "{answer}");
    assert_eq!(answer["room"], format!("job:{job}"));
    assert_eq!(answer["offset"], 2);
    assert_eq!(answer["events"], json!([]));
    assert_eq!(answer["resync"]["snapshot"]["job"]["status"], "RUNNING");
    gateway.report(job, 1).await;
    let update = client.event_of(&format!("job:{job}")).await;
    assert_eq!((update.name.as_str(), update.offset()), ("job_update", 3));
    assert_eq!(update.body["type"], "job.status.changed");
    assert_eq!(update.body["job_id"], job.to_string());
    assert_eq!(update.body["user_id"], "ada");
    assert_eq!(update.body["sequence"], 3);
    assert_eq!(update.body["data"]["job_id"], job.to_string());
    assert!(update.body["event_id"].is_string() && update.body["timestamp"].is_string());
    gateway.stop().await;
}

#[tokio::test]
async fn a_join_with_offset_answers_exactly_what_was_missed() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    gateway.report(job, 8).await;
    let mut client = gateway.client("ada").await;
    let answer = client.join(job, Some(4)).await;
    assert_eq!(offsets(&answer), [5, 6, 7, 8, 9, 10]);
    assert_eq!(answer["offset"], 10);
    assert!(answer.get("resync").is_none(), "{answer}");
    let again = client.join(job, Some(10)).await;
    assert_eq!(offsets(&again), [0; 0]);
    gateway.stop().await;
}

#[tokio::test]
async fn too_much_missed_is_a_resync() {
    let gateway = Gateway::start_with(|options| options.replay.events = 5).await;
    let job = gateway.running("ada").await;
    gateway.report(job, 6).await;
    let mut client = gateway.client("ada").await;
    let answer = client.join(job, Some(2)).await;
    assert_eq!(answer["offset"], 8);
    assert_eq!(answer["resync"]["from"], 2);
    assert_eq!(answer["resync"]["to"], 8);
    assert_eq!(answer["resync"]["snapshot"]["job"]["id"], job.to_string());
    assert_eq!(answer["events"], json!([]));
    // An offset of another history is no offset.
    let answer = client.join(job, Some(99)).await;
    assert_eq!(answer["resync"]["to"], 8);
    let metrics = gateway.metrics.render();
    assert!(metrics.contains("socket_resyncs_total{reason=\"too_far_behind\"} 1"), "{metrics}");
    assert!(metrics.contains("socket_resyncs_total{reason=\"unknown_offset\"} 1"), "{metrics}");
    gateway.stop().await;
}

#[tokio::test]
async fn resume_takes_several_channels_and_answers_each() {
    let gateway = Gateway::start().await;
    let one = gateway.running("ada").await;
    let other = gateway.running("ada").await;
    let foreign = gateway.running("bob").await;
    let mut client = gateway.client("ada").await;
    let channels = json!({
        format!("job:{one}"): 1,
        format!("job:{other}"): null,
        format!("job:{foreign}"): 1,
        "user:ada": 3,
        "user:bob": 0,
        "nonsense": 1,
    });
    let answer = client.ask("resume", json!({ "channels": channels })).await;
    let of = |name: &str| answer["channels"][name].clone();
    assert_eq!(offsets(&of(&format!("job:{one}"))), [2]);
    assert_eq!(of(&format!("job:{other}"))["resync"]["snapshot"]["job"]["id"], other.to_string());
    assert_eq!(offsets(&of("user:ada")), [4]);
    for name in [format!("job:{foreign}").as_str(), "user:bob"] {
        assert_eq!(of(name)["joined"], false);
        assert_eq!(of(name)["error"]["code"], "not_found", "{name}");
    }
    assert_eq!(of("nonsense")["error"]["code"], "unknown_channel");
    gateway.report(one, 1).await;
    // Once per joined channel.
    let mut got = [client.event().await, client.event().await];
    got.sort_by_key(|event| event.channel().to_owned());
    assert_eq!((got[0].channel(), got[0].offset()), (format!("job:{one}").as_str(), 3));
    assert_eq!((got[1].channel(), got[1].offset()), ("user:ada", 5));
    assert_eq!(got[0].body["event_id"], got[1].body["event_id"]);
    assert_eq!(client.received().await, []);
    gateway.stop().await;
}

#[tokio::test]
async fn a_user_snapshot_holds_the_newest_jobs() {
    let gateway = Gateway::start().await;
    let mut last = None;
    for _ in 0..3 {
        last = Some(gateway.submit("ada").await);
    }
    let mut client = gateway.client("ada").await;
    let answer = client.ask("resume", json!({ "channels": { "user:ada": null } })).await;
    let snapshot = &answer["channels"]["user:ada"]["resync"]["snapshot"];
    assert_eq!(snapshot["jobs"].as_array().unwrap().len(), 3);
    assert_eq!(snapshot["jobs"][0]["id"], last.unwrap().to_string());
    assert_eq!(snapshot["unread"], 0);
    gateway.stop().await;
}

#[tokio::test]
async fn after_a_cut_the_rest_is_there_exactly_once() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.report(job, 3).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&4) {
        seen.push(client.event_of(&name).await.offset());
    }
    client.cut();
    gateway.report(job, 5).await;
    let mut client = gateway.client("ada").await;
    let answer = client.ask("resume", json!({ "channels": { &name: 4 } })).await;
    seen.extend(offsets(&answer["channels"][&name]));
    gateway.report(job, 2).await;
    while seen.last() != Some(&12) {
        seen.push(client.event_of(&name).await.offset());
    }
    assert_eq!(seen, (3..=12).collect::<Vec<_>>());
    gateway.stop().await;
}

/// How far each of several sockets has read a channel. A socket that falls behind by as many
/// updates as are buffered for it is told to start over, which is not what is tested here: whoever
/// commits waits for the last of them, however slow the machine.
struct Readers {
    read: watch::Sender<Vec<i64>>,
}

impl Readers {
    /// Updates that may be committed and not read: well below what a join buffers.
    const AHEAD: i64 = 128;

    fn new(count: usize, read: i64) -> Self {
        Self { read: watch::Sender::new(vec![read; count]) }
    }

    /// The reader has read `offset`; `i64::MAX` when it reads no more.
    fn note(&self, reader: usize, offset: i64) {
        self.read.send_modify(|read| read[reader] = offset);
    }

    /// Waits until `offset` may be committed; false when nobody reads any more.
    async fn wait(&self, offset: i64) -> bool {
        let last = |read: &Vec<i64>| read.iter().copied().min().expect("readers");
        let mut read = self.read.subscribe();
        let read = read.wait_for(|read| offset - last(read) <= Self::AHEAD).await.expect("the sender is here");
        last(&read) < i64::MAX
    }
}

/// Commits go on as fast as they are read while sockets join, leave and join again; what each
/// gets must continue its offsets without a gap or a repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_join_among_commits_misses_nothing_and_repeats_nothing() {
    const JOINS: usize = 1_000;
    const JOINERS: usize = 4;
    if fresh::left_out(
        "it commits as fast as it can, which fills the broadcast queue of a real broker: sockets then resync",
    ) {
        return;
    }
    let gateway = Arc::new(Gateway::start().await);
    let job = gateway.running("ada").await;
    let readers = Arc::new(Readers::new(JOINERS, 2));
    let mut tasks = Vec::new();
    // Two committers, so that the queue's order is not the store's.
    for _ in 0..2 {
        let (gateway, readers) = (gateway.clone(), readers.clone());
        tasks.push(event_gateway::task::spawn("test", async move {
            let mut committed = 2;
            while readers.wait(committed).await {
                let events = gateway.commit(vec![gateway.progress(job)]).await;
                committed = events[0].sequence;
            }
        }));
    }
    for reader in 0..JOINERS {
        let (gateway, readers) = (gateway.clone(), readers.clone());
        tasks.push(event_gateway::task::spawn("test", async move {
            let mut client = gateway.operator().await;
            let mut cursor = 2;
            for round in 0..JOINS / JOINERS {
                cursor = join_and_follow(&mut client, job, cursor, round, |offset| readers.note(reader, offset)).await;
            }
            readers.note(reader, i64::MAX);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = gateway.metrics.render();
    for reason in ["slow_reader", "too_far_behind", "expired", "unknown_offset"] {
        assert!(metrics.contains(&format!("socket_resyncs_total{{reason=\"{reason}\"}} 0")), "{metrics}");
    }
}

/// Joins from `cursor`, reads a few live updates, leaves; tells and returns the last offset read.
async fn join_and_follow(client: &mut Client, job: Id, cursor: i64, round: usize, note: impl Fn(i64)) -> i64 {
    let name = format!("job:{job}");
    let answer = client.join(job, Some(cursor)).await;
    assert_eq!(answer["joined"], true, "round {round}: {answer}");
    assert!(answer.get("resync").is_none(), "round {round}: {answer}");
    let mut last = cursor;
    for offset in offsets(&answer) {
        assert_eq!(offset, last + 1, "round {round}: in the answer");
        last = offset;
    }
    assert_eq!(answer["offset"], last, "round {round}");
    note(last);
    for _ in 0..3 {
        let event = client.event_of(&name).await;
        assert_eq!(event.offset(), last + 1, "round {round}: live after the answer: {event:?}");
        last = event.offset();
        note(last);
    }
    let left = client.ask("leave_job_channel", json!({ "jobId": job })).await;
    assert_eq!(left["left"], true);
    // What came before the answer to the leave still counts.
    for event in client.received().await {
        if event.channel() == name {
            assert_eq!(event.offset(), last + 1, "round {round}: before the leave: {event:?}");
            last = event.offset();
        }
    }
    note(last);
    last
}

#[tokio::test]
async fn a_member_that_joins_again_goes_on_without_a_gap() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.report(job, 2).await;
    assert_eq!(client.event_of(&name).await.offset(), 3);
    assert_eq!(client.event_of(&name).await.offset(), 4);
    let answer = client.join(job, Some(3)).await;
    assert_eq!(offsets(&answer), [4]);
    gateway.report(job, 1).await;
    assert_eq!(client.event_of(&name).await.offset(), 5);
    let rest: Vec<_> = client.received().await.into_iter().filter(|event| event.channel() == name).collect();
    assert_eq!(rest, []);
    gateway.stop().await;
}

#[tokio::test]
async fn a_join_is_whole_while_the_queue_delivers_nothing() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    gateway.broadcast.set_mode(Mode::Lose);
    gateway.report(job, 3).await;
    let mut client = gateway.client("ada").await;
    let answer = client.join(job, Some(2)).await;
    assert_eq!(offsets(&answer), [3, 4, 5]);
    let mut other = Client::connect(gateway.address, &gateway.token("olga", Role::Operator)).await.unwrap();
    assert_eq!(offsets(&other.join(job, Some(4)).await), [5]);
    gateway.stop().await;
}
