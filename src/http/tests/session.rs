//! Who one is, and the development sign-in.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::*;

async fn development() -> Gateway {
    Gateway::with(Setup { set: Vec::new(), ..Setup::default() }).await
}

fn sign_in(gateway: &Gateway) -> Call<'_> {
    gateway
        .call(Method::POST, "/api/v1/session/dev")
        .without("authorization")
        .from_peer("127.0.0.1:50000")
        .header("host", "127.0.0.1:8080")
}

#[tokio::test]
async fn the_page_learns_how_to_sign_in() {
    let token = Gateway::start().await;
    let info = token.get("/api/v1/session").without("authorization").send().await.ok();
    assert_eq!(info, json!({ "mode": "token", "version": env!("CARGO_PKG_VERSION"), "instance_id": "test-1" }));
    let info = development().await.get("/api/v1/session").without("authorization").send().await.ok();
    assert_eq!(info["mode"], "development");
}

#[tokio::test]
async fn one_click_signs_in() {
    let gateway = development().await;
    let reply = sign_in(&gateway).send().await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let issued = reply.ok();
    assert_eq!((&issued["user_id"], &issued["roles"]), (&json!("developer"), &json!(["operator"])));
    let me = gateway.get("/api/v1/me").token(issued["token"].as_str().unwrap()).send().await.ok();
    assert_eq!((&me["user_id"], &me["roles"]), (&issued["user_id"], &issued["roles"]));
    assert!(me["expires_at"].as_str() <= issued["expires_at"].as_str());

    let ada = sign_in(&gateway).json(json!({ "user": "ada", "role": "user" })).send().await.ok();
    assert_eq!((&ada["user_id"], &ada["roles"]), (&json!("ada"), &json!(["user"])));
    sign_in(&gateway).json(json!({})).send().await.ok();
}

#[tokio::test]
async fn only_from_this_machine_by_its_own_name() {
    let gateway = development().await;
    for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(sign_in(&gateway).from_peer(peer).send().await.status, StatusCode::OK, "{peer}");
    }
    for peer in ["192.168.0.9:1", "[2001:db8::1]:1"] {
        sign_in(&gateway).from_peer(peer).send().await.problem(403, "forbidden");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:8080"] {
        sign_in(&gateway).header("host", host).send().await.problem(403, "forbidden");
    }
    sign_in(&gateway).header("x-forwarded-for", "192.168.0.9").send().await.problem(403, "forbidden");
    let unknown = gateway.call(Method::POST, "/api/v1/session/dev").send().await;
    unknown.problem(403, "forbidden");
}

#[tokio::test]
async fn not_where_tokens_come_from_elsewhere() {
    let gateway = Gateway::start().await;
    sign_in(&gateway).send().await.problem(404, "not-found");
}

#[tokio::test]
async fn sign_ins_that_are_wrong() {
    let gateway = development().await;
    for (body, field) in [
        (json!({ "user": "" }), "user"),
        (json!({ "user": "u".repeat(129) }), "user"),
        (json!({ "role": "root" }), "role"),
        (json!({ "admin": true }), "admin"),
    ] {
        assert_eq!(sign_in(&gateway).json(body).send().await.wrong_field().0, field);
    }
    sign_in(&gateway)
        .body("user=ada")
        .header("content-type", "application/x-www-form-urlencoded")
        .send()
        .await
        .problem(415, "unsupported-media-type");
}
