//! Who gets in, for how long, and how a stay is prolonged.

use std::time::Duration;

use event_gateway::domain::{Role, Timestamp};
use serde_json::json;

use crate::client::{Client, Packet};
use crate::gateway::{Gateway, until};

#[tokio::test]
async fn without_a_good_token_nobody_gets_in() {
    let gateway = Gateway::start().await;
    let good = gateway.token("ada", Role::User);
    let forged = format!("{}x", &good[..good.len() - 1]);
    let cases = [
        (json!({ "token": "garbage" }), "invalid_token"),
        (json!({ "token": forged }), "invalid_token"),
        (json!({ "token": "" }), "invalid_token"),
        (json!({}), "unauthenticated"),
        (json!({ "token": 7 }), "unauthenticated"),
        (json!("text"), "unauthenticated"),
        (json!({ "token": null }), "unauthenticated"),
    ];
    for (auth, code) in cases {
        let error = Client::connect_with(gateway.address, auth.clone(), &[]).await.err().unwrap();
        assert_eq!(error["data"]["code"], code, "{auth}: {error}");
        assert!(error["message"].is_string());
    }
    assert_eq!(gateway.metrics.sockets_connected.get(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_bearer_header_is_as_good() {
    let gateway = Gateway::start().await;
    let bearer = format!("Bearer {}", gateway.token("ada", Role::User));
    let mut client = Client::connect_with(gateway.address, json!({}), &[("authorization", &bearer)]).await.unwrap();
    client.received().await;
    gateway.submit("ada").await;
    assert_eq!(client.event().await.channel(), "user:ada");
    gateway.stop().await;
}

#[tokio::test]
async fn an_expired_token_is_named_so() {
    let gateway = Gateway::start().await;
    // Older than the forgiven difference of clocks.
    let claims = json!({ "sub": "ada", "roles": ["user"], "exp": Timestamp::now().0 / 1000 - 60 });
    let token = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &claims,
        &jsonwebtoken::EncodingKey::from_secret(crate::gateway::SECRET.as_bytes()),
    )
    .unwrap();
    let error = Client::connect(gateway.address, &token).await.err().unwrap();
    assert_eq!(error["data"]["code"], "token_expired", "{error}");
    gateway.stop().await;
}

#[tokio::test]
async fn rights_end_with_the_token_after_a_warning() {
    let gateway = Gateway::start_with(|options| options.expiry_warning = Duration::from_secs(1)).await;
    let job = gateway.running("ada").await;
    let channel = event_gateway::domain::Channel::Job(job);
    let token = gateway.token_for("ada", Role::User, Duration::from_secs(3));
    let mut client = Client::connect(gateway.address, &token).await.unwrap();
    client.join(job, None).await;
    let warning = client.event().await;
    assert_eq!(warning.name, "auth_expiring");
    let at = Timestamp::parse(warning.body["at"].as_str().unwrap()).unwrap();
    let left = at.ms_since(Timestamp::now());
    assert!((1..=1_000).contains(&left), "{left}");
    assert_eq!(gateway.realtime.progress(&channel).len(), 1);
    let packet = client.packet().await;
    assert!(matches!(packet, Packet::Disconnect), "{packet:?}");
    let late = Timestamp::now().ms_since(at);
    assert!(Timestamp::now() >= at && late < 500, "{late}");
    assert_eq!(gateway.realtime.progress(&channel), []);
    assert_eq!(gateway.metrics.sockets_connected.get(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_new_token_prolongs_the_stay() {
    let gateway = Gateway::start_with(|options| options.expiry_warning = Duration::from_secs(1)).await;
    let job = gateway.running("ada").await;
    let token = gateway.token_for("ada", Role::User, Duration::from_secs(2));
    let mut client = Client::connect(gateway.address, &token).await.unwrap();
    client.join(job, None).await;
    let warning = client.event().await;
    assert_eq!(warning.name, "auth_expiring");
    let expiry = Timestamp::parse(warning.body["at"].as_str().unwrap()).unwrap();
    let answer = client.ask("auth_refresh", json!({ "token": gateway.token("ada", Role::User) })).await;
    assert_eq!(answer["refreshed"], true, "{answer}");
    assert_eq!(answer["left"], json!([]));
    assert!(Timestamp::parse(answer["expires_at"].as_str().unwrap()).unwrap() > expiry);
    until("the old token's end", || Timestamp::now() > expiry.plus_ms(100)).await;
    gateway.report(job, 1).await;
    assert_eq!(client.event_of(&format!("job:{job}")).await.offset(), 3);
    gateway.stop().await;
}

#[tokio::test]
async fn a_refresh_is_for_the_same_user_only() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ada").await;
    let other = client.ask("auth_refresh", json!({ "token": gateway.token("bob", Role::User) })).await;
    assert_eq!(other["error"]["code"], "other_user");
    let garbage = client.ask("auth_refresh", json!({ "token": "garbage" })).await;
    assert_eq!(garbage["error"]["code"], "invalid_token");
    let nothing = client.ask("auth_refresh", json!({})).await;
    assert_eq!(nothing["error"]["code"], "invalid_payload");
    gateway.submit("ada").await;
    assert_eq!(client.event().await.channel(), "user:ada", "still in");
    gateway.stop().await;
}

#[tokio::test]
async fn a_lesser_token_closes_what_it_does_not_open() {
    let gateway = Gateway::start().await;
    let foreign = gateway.running("bob").await;
    let mut client = Client::connect(gateway.address, &gateway.token("ada", Role::Operator)).await.unwrap();
    assert_eq!(client.join(foreign, None).await["joined"], true);
    let answer = client.ask("auth_refresh", json!({ "token": gateway.token("ada", Role::User) })).await;
    assert_eq!(answer["left"], json!([format!("job:{foreign}")]));
    assert_eq!(client.join(foreign, None).await["error"]["code"], "not_found");
    gateway.stop().await;
}

#[tokio::test]
async fn a_foreign_job_does_not_exist() {
    let gateway = Gateway::start().await;
    let foreign = gateway.running("bob").await;
    let mut client = gateway.client("ada").await;
    let answer = client.join(foreign, None).await;
    assert_eq!((&answer["joined"], &answer["error"]["code"]), (&json!(false), &json!("not_found")));
    // Not even when its owner is in the room, and not in other words than a missing one.
    let mut owner = gateway.client("bob").await;
    assert_eq!(owner.join(foreign, None).await["joined"], true);
    assert_eq!(client.join(foreign, None).await["error"], answer["error"]);
    assert_eq!(client.join(event_gateway::domain::Id::new(), None).await["error"], answer["error"]);
    let mut auditor = Client::connect(gateway.address, &gateway.token("eve", Role::Auditor)).await.unwrap();
    assert_eq!(auditor.join(foreign, None).await["joined"], true, "auditors read everything");
    gateway.stop().await;
}

#[tokio::test]
async fn only_trusted_pages_may_connect() {
    let gateway = Gateway::start_with(|options| options.allowed_origins = vec!["https://portal.example".into()]).await;
    let own = format!("http://{}", gateway.address);
    for origin in ["https://portal.example", own.as_str()] {
        assert!(Client::open(gateway.address, &[("origin", origin)]).await.is_ok(), "{origin}");
    }
    let refused = Client::open(gateway.address, &[("origin", "https://evil.example")]).await.err().unwrap();
    assert!(refused.contains("403"), "{refused}");
    gateway.stop().await;
}

#[tokio::test]
async fn who_does_not_come_in_is_closed() {
    let gateway = Gateway::start_with(|options| options.connect_timeout = Duration::from_millis(200)).await;
    let mut idle = Client::open(gateway.address, &[]).await.unwrap();
    idle.closed().await;
    let mut wrong = Client::open(gateway.address, &[]).await.unwrap();
    wrong.send("40/other,{}").await;
    wrong.closed_after_error("/other").await;
    gateway.stop().await;
}

#[tokio::test]
async fn who_leaves_may_come_in_again_on_the_same_connection() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ada").await;
    client.send("41/messaging,").await;
    until("the client to be out", || gateway.metrics.sockets_connected.get() == 0).await;
    client.send(&format!("40/messaging,{}", json!({ "token": gateway.token("ada", Role::User) }))).await;
    assert_eq!(client.event().await.name, "connect");
    client.received().await;
    gateway.stop().await;
}
