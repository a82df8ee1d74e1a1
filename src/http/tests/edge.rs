//! What every answer has in common: ids, limits, panics, CORS, compression.

use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use serde_json::json;

use super::*;
use crate::http::edge::{Edge, edge};
use crate::telemetry::metrics::Rejected;

async fn panics() -> StatusCode {
    panic!("a secret of the inside")
}

/// A gateway whose routes misbehave.
async fn misbehaving(limit: Duration, open: usize) -> Gateway {
    let mut gateway = Gateway::start().await;
    let edge_state = Edge::new(gateway.metrics.clone(), limit, open);
    gateway.router = Router::new()
        .route("/panic", get(panics))
        .route("/slow", get(std::future::pending::<()>).post(std::future::pending::<()>))
        .route("/bare", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/livez", get(|| async {}))
        .layer(from_fn_with_state(edge_state, edge));
    gateway
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let gateway = Gateway::start().await;
    for path in ["/api/v1/me", "/api/v1/nothing", "/livez", "/", "/api/openapi.json"] {
        let own = gateway.get(path).send().await;
        assert!(own.header("x-request-id").unwrap().parse::<crate::domain::Id>().is_ok(), "{path}");
        let given = gateway.get(path).header("x-request-id", "build-7/step:3").send().await;
        assert_eq!(given.header("x-request-id"), Some("build-7/step:3"), "{path}");
    }
    for bad in ["", "with space", "<script>", &"x".repeat(129)] {
        let reply = gateway.get("/livez").header("x-request-id", bad).send().await;
        assert_ne!(reply.header("x-request-id"), Some(bad), "{bad:?}");
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_that_tells_nothing_of_the_inside() {
    let gateway = misbehaving(Duration::from_secs(5), 10).await;
    let reply = gateway.get("/panic").send().await;
    reply.problem(500, "internal");
    assert!(!String::from_utf8_lossy(&reply.body).contains("secret"), "{reply:?}");
    assert_eq!(gateway.metrics.rejected[Rejected::Internal].get(), 1);
}

#[tokio::test]
async fn what_takes_too_long_says_whether_to_repeat_it() {
    let gateway = misbehaving(Duration::from_millis(20), 10).await;
    assert_eq!(gateway.get("/slow").send().await.problem(503, "timeout")["retry_safe"], true);
    let post = || gateway.call(Method::POST, "/slow");
    assert_eq!(post().send().await.problem(503, "timeout")["retry_safe"], false);
    assert_eq!(post().header("idempotency-key", "k").send().await.problem(503, "timeout")["retry_safe"], true);
    assert_eq!(gateway.metrics.rejected[Rejected::Timeout].get(), 3);
}

#[tokio::test]
async fn more_open_requests_than_allowed() {
    let gateway = misbehaving(Duration::from_secs(60), 1).await;
    let slow = gateway.get("/slow").send();
    tokio::pin!(slow);
    assert!(futures_util::poll!(&mut slow).is_pending());
    let problem = gateway.get("/slow").send().await.problem(503, "overloaded");
    assert_eq!(problem["retry_safe"], true);
    assert_eq!(gateway.get("/livez").send().await.status, StatusCode::OK, "health is always answered");
}

#[tokio::test]
async fn a_user_has_an_allowance_and_those_who_act_for_many_have_none() {
    let set = vec![("auth.jwt_secret", SECRET), ("http.rate_limit", "1"), ("http.rate_burst", "3")];
    let gateway = Gateway::with(Setup { set, ..Setup::default() }).await;
    for _ in 0..3 {
        gateway.get("/api/v1/me").send().await.ok();
    }
    let refused = gateway.post("/api/v1/jobs", external_job()).send().await;
    assert_eq!(refused.problem(429, "rate-limited")["retry_safe"], true);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(gateway.written().await, (0, 0));
    assert_eq!(gateway.metrics.rejected[Rejected::RateLimited].get(), 1);

    gateway.get("/api/v1/me").as_user("bob").send().await.ok();
    for role in [Role::Operator, Role::Worker] {
        for _ in 0..10 {
            gateway.get("/api/v1/me").as_role(role).send().await.ok();
        }
    }
    // Health asks for no user.
    for _ in 0..10 {
        gateway.get("/livez").send().await.ok();
    }
}

#[tokio::test]
async fn no_limit_when_none_is_wanted() {
    let set = vec![("auth.jwt_secret", SECRET), ("http.rate_limit", "0"), ("http.rate_burst", "1")];
    let gateway = Gateway::with(Setup { set, ..Setup::default() }).await;
    for _ in 0..10 {
        gateway.get("/api/v1/me").send().await.ok();
    }
}

#[tokio::test]
async fn bare_errors_of_libraries_become_problems() {
    let gateway = misbehaving(Duration::from_secs(5), 10).await;
    gateway.call(Method::POST, "/bare").send().await.problem(413, "body-too-large");
    gateway.get("/bare").send().await.problem(405, "method-not-allowed");
    gateway.get("/nowhere").send().await.problem(404, "no-such-route");
}

#[tokio::test]
async fn large_answers_are_compressed_when_asked() {
    let gateway = Gateway::start().await;
    let reply = gateway.get("/api/v1/catalogue").header("accept-encoding", "gzip").send().await;
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&reply.body[..]), &mut text).unwrap();
    assert!(text.contains("job.submitted"));
    let small = gateway.get("/api/v1/me").header("accept-encoding", "gzip").send().await;
    assert_eq!(small.header("content-encoding"), None);
}

#[tokio::test]
async fn other_origins_only_when_configured() {
    let preflight = |gateway: &Gateway| {
        let call = gateway.call(Method::OPTIONS, "/api/v1/jobs").without("authorization");
        let call = call.header("origin", "https://desk.example").header("access-control-request-method", "POST");
        let request = call.header("access-control-request-headers", "authorization,content-type,idempotency-key");
        (request.gateway.router.clone(), request.request.body(Body::empty()).unwrap())
    };
    let closed = Gateway::start().await;
    let (router, request) = preflight(&closed);
    let answer = router.oneshot(request).await.unwrap();
    assert!(answer.headers().get("access-control-allow-origin").is_none());

    let set = vec![("auth.jwt_secret", SECRET), ("http.allowed_origins", "https://desk.example")];
    let open = Gateway::with(Setup { set, ..Setup::default() }).await;
    let (router, request) = preflight(&open);
    let answer = router.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://desk.example");
    let reply = open.get("/api/v1/me").header("origin", "https://desk.example").send().await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://desk.example"));
    assert!(reply.header("access-control-expose-headers").unwrap().contains("x-request-id"));
    let foreign = open.get("/api/v1/me").header("origin", "https://evil.example").send().await;
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    // Errors are readable for them, too.
    let refused = open.get("/api/v1/me").without("authorization").header("origin", "https://desk.example").send().await;
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://desk.example"));
    refused.problem(401, "unauthenticated");
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let gateway = Gateway::start().await;
    let (store, relay) = (gateway.readiness.latch("store"), gateway.readiness.latch("relay"));
    store.up();
    let anonymous = |path: &str| gateway.get(path).without("authorization").send();
    let problem = anonymous("/readyz").await.problem(503, "not-ready");
    assert_eq!(problem["missing"][0]["name"], "relay");
    assert_eq!(problem["missing"].as_array().unwrap().len(), 1);
    relay.down("kafka at 10.0.0.7 refuses");
    let text = String::from_utf8(anonymous("/readyz").await.body.to_vec()).unwrap();
    assert!(!text.contains("10.0.0.7"), "anybody may ask: {text}");
    let components = gateway.get("/api/v1/health/components").as_role(Role::Operator).send().await.ok();
    let relay_now = &components["items"][1];
    assert_eq!(
        (&relay_now["name"], &relay_now["state"], &relay_now["why"]),
        (&json!("relay"), &json!("down"), &json!("kafka at 10.0.0.7 refuses"))
    );
    relay.up();
    assert_eq!(anonymous("/readyz").await.ok()["status"], "ready");
    assert_eq!(anonymous("/livez").await.ok()["status"], "live");
    let metrics = anonymous("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(String::from_utf8_lossy(&metrics.body).contains("event_gateway_component_up{component=\"relay\"} 1"));
}
