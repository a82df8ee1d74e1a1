//! Joining and resuming: no gap, no repeat, whatever happens meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_gateway::domain::{Id, Role};
use serde_json::json;

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

/// Commits go on as fast as they can while sockets join, leave and join again; what each
/// gets must continue its offsets without a gap or a repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_join_among_commits_misses_nothing_and_repeats_nothing() {
    const JOINS: usize = 1_000;
    if fresh::left_out(
        "it commits as fast as it can, which fills the broadcast queue of a real broker: sockets then resync",
    ) {
        return;
    }
    let gateway = Arc::new(Gateway::start().await);
    let job = gateway.running("ada").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    // Two committers, so that the queue's order is not the store's.
    for _ in 0..2 {
        let (gateway, stop) = (gateway.clone(), stop.clone());
        tasks.push(event_gateway::task::spawn("test", async move {
            while !stop.load(Ordering::Relaxed) {
                gateway.commit(vec![gateway.progress(job)]).await;
            }
        }));
    }
    let mut joiners = Vec::new();
    for _ in 0..4 {
        let gateway = gateway.clone();
        joiners.push(event_gateway::task::spawn("test", async move {
            let mut client = gateway.operator().await;
            let mut cursor = 2;
            for round in 0..JOINS / 4 {
                cursor = join_and_follow(&mut client, job, cursor, round).await;
            }
        }));
    }
    for joiner in joiners {
        joiner.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = gateway.metrics.render();
    for reason in ["slow_reader", "too_far_behind", "expired", "unknown_offset"] {
        assert!(metrics.contains(&format!("socket_resyncs_total{{reason=\"{reason}\"}} 0")), "{metrics}");
    }
}

/// Joins from `cursor`, reads a few live updates, leaves; returns the last offset read.
async fn join_and_follow(client: &mut Client, job: Id, cursor: i64, round: usize) -> i64 {
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
    for _ in 0..3 {
        let event = client.event_of(&name).await;
        assert_eq!(event.offset(), last + 1, "round {round}: live after the answer");
        last = event.offset();
    }
    let left = client.ask("leave_job_channel", json!({ "jobId": job })).await;
    assert_eq!(left["left"], true);
    // What came before the answer to the leave still counts.
    for event in client.received().await {
        if event.channel() == name {
            assert_eq!(event.offset(), last + 1, "round {round}: before the leave");
            last = event.offset();
        }
    }
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
