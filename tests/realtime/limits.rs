//! What a client may not do, and that it harms nobody when it tries.

use event_gateway::domain::{Id, Role};
use serde_json::{Value, json};

use crate::client::{Client, Packet};
use crate::gateway::{Gateway, until};

#[tokio::test]
async fn a_user_may_hold_five_connections_an_operator_any_number() {
    let gateway = Gateway::start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(gateway.client("ada").await);
    }
    let token = gateway.token("ada", Role::User);
    let error = Client::connect(gateway.address, &token).await.err().unwrap();
    assert_eq!(error["data"]["code"], "too_many_connections", "{error}");
    held.pop().unwrap().cut();
    until("the slot to be free", || gateway.metrics.sockets_connected.get() == 4).await;
    held.push(gateway.client("ada").await);
    for role in [Role::Operator, Role::Worker] {
        let token = gateway.token("olga", role);
        for _ in 0..7 {
            held.push(Client::connect(gateway.address, &token).await.unwrap());
        }
    }
    assert_eq!(gateway.metrics.sockets_connected.get(), 19);
    gateway.stop().await;
}

#[tokio::test]
async fn a_socket_may_be_in_a_hundred_rooms() {
    let gateway = Gateway::start().await;
    let mut jobs = Vec::new();
    let mut units = Vec::new();
    for _ in 0..102 {
        let (id, unit) = gateway.submission("ada");
        jobs.push(id);
        units.push(unit);
    }
    gateway.commit(units).await;
    let mut client = gateway.client("ada").await;
    for job in &jobs[..100] {
        assert_eq!(client.join(*job, Some(1)).await["joined"], true);
    }
    let refused = client.join(jobs[100], Some(1)).await;
    assert_eq!((&refused["joined"], &refused["error"]["code"]), (&json!(false), &json!("too_many_rooms")));
    // In already, own channel: neither counts.
    assert_eq!(client.join(jobs[0], Some(1)).await["joined"], true);
    let own = client.ask("resume", json!({ "channels": { "user:ada": null } })).await;
    assert_eq!(own["channels"]["user:ada"]["joined"], true);
    client.ask("leave_job_channel", json!({ "jobId": jobs[0] })).await;
    assert_eq!(client.join(jobs[100], Some(1)).await["joined"], true);
    let many: serde_json::Map<String, Value> = (0..102).map(|_| (format!("job:{}", Id::new()), json!(null))).collect();
    let refused = client.ask("resume", json!({ "channels": many })).await;
    assert_eq!(refused["error"]["code"], "too_many_rooms");
    gateway.stop().await;
}

#[tokio::test]
async fn ten_thousand_joins_at_once_are_all_answered() {
    let gateway = Gateway::start().await;
    let (_, unit) = gateway.submission("ada");
    gateway.commit(vec![unit]).await;
    let mut client = gateway.client("ada").await;
    let mut asked = Vec::new();
    for _ in 0..10_000 {
        asked.push(client.ask_later("join_job_channel", json!({ "jobId": Id::new() })).await);
    }
    let mut codes = std::collections::BTreeMap::new();
    for _ in &asked {
        let Packet::Ack(_, answer) = client.packet().await else { panic!() };
        assert_ne!(answer["joined"], true);
        *codes.entry(answer["error"]["code"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(codes.values().sum::<i32>(), 10_000);
    assert!(codes.keys().all(|code| matches!(code.as_str(), "not_found" | "too_many_requests")), "{codes:?}");
    client.received().await;
    gateway.stop().await;
}

#[tokio::test]
async fn garbage_is_answered_with_an_error_that_says_why() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ada").await;
    let garbage = [
        ("join_job_channel", json!(null)),
        ("join_job_channel", json!("x")),
        ("join_job_channel", json!([])),
        ("join_job_channel", json!({})),
        ("join_job_channel", json!({ "jobId": "../../etc/passwd" })),
        ("join_job_channel", json!({ "jobId": Id::new(), "lastOffset": "7" })),
        ("join_job_channel", json!({ "jobId": Id::new(), "lastOffset": 1.5 })),
        ("join_job_channel", json!({ "jobId": Id::new(), "lastOffset": 1e300 })),
        ("leave_job_channel", json!({ "jobId": 1 })),
        ("resume", json!({ "channels": [] })),
        ("resume", json!({ "channels": { "job:x": "y" } })),
        ("resume", json!(17)),
        ("seen", json!([1])),
        ("auth_refresh", json!("token")),
    ];
    for (event, payload) in garbage {
        let answer = client.ask(event, payload.clone()).await;
        assert_eq!(answer["error"]["code"], "invalid_payload", "{event} {payload}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(event), "{answer}");
    }
    let answer = client.ask("drop_table", json!({})).await;
    assert_eq!(answer["error"]["code"], "unknown_event");
    client.send("42/messaging,900[\"join_job_channel\"]").await;
    assert_eq!(client.answer(900).await["error"]["code"], "invalid_payload");
    let extreme = client.ask("join_job_channel", json!({ "jobId": Id::new(), "lastOffset": i64::MIN })).await;
    assert_eq!(extreme["error"]["code"], "not_found");
    gateway.stop().await;
}

#[tokio::test]
async fn extreme_offsets_are_no_offsets() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    for offset in [i64::MIN, -1, i64::MAX] {
        let answer = client.join(job, Some(offset)).await;
        assert_eq!(answer["resync"]["to"], 2, "{offset}: {answer}");
    }
    client.ask("seen", json!({ format!("job:{job}"): i64::MAX, format!("job:{}", Id::new()): i64::MIN })).await;
    let progress = gateway.realtime.progress(&event_gateway::domain::Channel::Job(job));
    assert_eq!(progress[0].seen, 2);
    gateway.stop().await;
}

#[tokio::test]
async fn junk_ends_the_connection_and_only_that() {
    let gateway = Gateway::start().await;
    let mut witness = gateway.client("ada").await;
    let junk = [
        "4",
        "49",
        "42/messaging",
        "42/messaging,",
        "42/messaging,[",
        "42/messaging,[7]",
        "451-/messaging,1[\"join_job_channel\",{\"_placeholder\":true,\"num\":0}]",
        "7",
        "\u{0}\u{0}",
        "4\u{fffd}",
    ];
    for text in junk {
        let mut client = gateway.operator().await;
        client.send(text).await;
        client.closed().await;
    }
    for bytes in [vec![], vec![0xff; 100], b"40/messaging,{}".to_vec()] {
        let mut client = gateway.operator().await;
        client.send_binary(bytes).await;
        client.closed().await;
    }
    until("the others to be gone", || gateway.metrics.sockets_connected.get() == 1).await;
    gateway.submit("ada").await;
    assert_eq!(witness.event().await.channel(), "user:ada");
    gateway.stop().await;
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_connection() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ada").await;
    let near = client.ask("seen", json!({ "x".repeat(990_000): 1 })).await;
    assert_eq!(near["seen"], true);
    client.send(&format!("42/messaging,1{}", json!(["seen", { "x".repeat(1_100_000): 1 }]))).await;
    client.closed().await;
    gateway.stop().await;
}

#[tokio::test]
async fn stopping_sends_what_is_queued_and_closes_the_transport() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    // The socket is served; from here on it does not read until the gateway has stopped.
    gateway.report(job, 200).await;
    let channel = event_gateway::domain::Channel::Job(job);
    until("the updates to be delivered", || {
        gateway.realtime.progress(&channel).first().is_some_and(|progress| progress.delivered == 202)
    })
    .await;
    gateway.stop().await;
    for offset in 3..=202 {
        assert_eq!(client.event_of(&name).await.offset(), offset);
    }
    client.closed().await;
}
