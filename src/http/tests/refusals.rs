//! Bad input: each is answered with a clear problem, and nothing is written.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, StatusCode};
use futures_util::{Stream, StreamExt};
use serde_json::json;

use super::*;
use crate::domain::{Id, Timestamp};

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let gateway = Gateway::start().await;
    let post = || gateway.call(Method::POST, "/api/v1/jobs").header("content-type", "application/json");
    for body in ["", "{", "[1,", "nul", "{\"agent\":\"external\"", "\u{0}\u{1}\u{2}", "{\"agent\":1e999}"] {
        let problem = post().body(body).send().await.problem(400, "malformed-body");
        assert_eq!(problem["retry_safe"], false);
    }
    post().body(&b"\xff\xfe\x00\x80"[..]).send().await.problem(400, "malformed-body");
    for body in ["[]", "[\"external\",\"d\"]", "null", "7", "\"job\""] {
        assert_eq!(post().body(body).send().await.wrong_field(), (String::new(), "invalid_type".into()));
    }
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let gateway = Gateway::start().await;
    let body = json!({
        "agent": "AnomalyDetection",
        "dataset_id": "../secret.csv",
        "name": "  ",
        "params": { "threshold": -1, "extra": true },
        "resource_request": { "num_nodes": 0, "wall_time_minutes": 9_999_999 },
        "max_retries": 101,
    });
    let fields = gateway.post("/api/v1/jobs", body).send().await.wrong_fields();
    let has = |field: &str| fields.iter().any(|(name, _)| name == field);
    for field in [
        "dataset_id",
        "name",
        "params.threshold",
        "params",
        "resource_request.num_nodes",
        "resource_request.wall_time_minutes",
        "max_retries",
    ] {
        assert!(has(field), "{field} in {fields:?}");
    }
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn fields_of_the_wrong_shape() {
    let gateway = Gateway::start().await;
    for (body, field, code) in [
        (json!({ "dataset_id": "d" }), "agent", "required"),
        (json!({ "agent": "external", "dataset_id": "d", "nmae": "x" }), "nmae", "unknown_field"),
        (json!({ "agent": 3, "dataset_id": "d" }), "agent", "invalid_type"),
        (json!({ "agent": "external", "dataset_id": "d", "priority": "urgent" }), "priority", "unknown_value"),
        (
            json!({ "agent": "external", "dataset_id": "d", "resource_request": { "num_nodes": "many" } }),
            "resource_request.num_nodes",
            "invalid_type",
        ),
        (json!({ "agent": "external", "dataset_id": "d", "params": [] }), "params", "invalid_type"),
        (json!({ "agent": "external", "dataset_id": "", "name": "n" }), "dataset_id", "out_of_range"),
        (json!({ "agent": "external", "dataset_id": "a\u{0}b", "name": "n" }), "dataset_id", "out_of_range"),
    ] {
        let reply = gateway.post("/api/v1/jobs", body.clone()).send().await;
        assert_eq!(reply.wrong_field(), (field.into(), code.into()), "{body}");
    }
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn every_field_of_the_wrong_shape_is_named_at_once() {
    let gateway = Gateway::start().await;
    let body = json!({ "nmae": "x", "priority": 3, "resource_request": { "num_nodes": "two", "nodes": 2 } });
    let mut fields = gateway.post("/api/v1/jobs", body).send().await.wrong_fields();
    fields.sort();
    let named: Vec<&str> = fields.iter().map(|(field, _)| &**field).collect();
    let all = ["agent", "dataset_id", "nmae", "priority", "resource_request.nodes", "resource_request.num_nodes"];
    assert_eq!(named, all, "{fields:?}");
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn an_answer_does_not_repeat_what_is_long() {
    let gateway = Gateway::start().await;
    let long = "x".repeat(100_000);
    let body = json!({ "agent": "AnomalyDetection", "dataset_id": "night-1.csv", "params": { "threshold": long } });
    let reply = gateway.post("/api/v1/jobs", body).send().await;
    assert_eq!(reply.wrong_field(), ("params.threshold".into(), "params_schema".into()));
    assert!(reply.json().to_string().len() < 2_000);
}

#[tokio::test]
async fn unknown_agents_say_which_there_are() {
    let gateway = Gateway::start().await;
    let reply = gateway.post("/api/v1/jobs", json!({ "agent": "Oracle", "dataset_id": "d" })).send().await;
    assert_eq!(reply.wrong_field(), ("agent".into(), "unknown_agent".into()));
    assert!(reply.json()["errors"][0]["message"].as_str().unwrap().contains("AnomalyDetection"));
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn datasets_do_not_escape_their_directory() {
    let gateway = Gateway::start().await;
    let outside = gateway.dir.path().join("secret.csv");
    for id in [
        "../secret.csv",
        "x/../../secret.csv",
        outside.to_str().unwrap(),
        "link.csv",
        ".",
        "..",
        "night-1.csv/../../secret.csv",
        "no-such-file.csv",
        "%2e%2e/secret.csv",
    ] {
        let body = json!({ "agent": "AnomalyDetection", "dataset_id": id, "params": { "threshold": 3 } });
        let reply = gateway.post("/api/v1/jobs", body).send().await;
        assert_eq!(reply.wrong_field().0, "dataset_id", "{id}");
    }
    assert_eq!(gateway.written().await, (0, 0));
    let body = json!({ "agent": "AnomalyDetection", "dataset_id": "night-1.csv", "params": { "threshold": 3 } });
    gateway.post("/api/v1/jobs", body).send().await.ok();
}

#[tokio::test]
async fn oversized_bodies_announced_or_not() {
    let gateway = Gateway::start().await;
    let large = format!("{{\"agent\":\"{}\"}}", "x".repeat(2 << 20));
    let post =
        |body: Body| gateway.call(Method::POST, "/api/v1/jobs").header("content-type", "application/json").body(body);
    post(large.clone().into()).send().await.problem(413, "body-too-large");
    // Refused by what it announces, before a byte is read.
    let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    post(endless).header("content-length", "999999999").send().await.problem(413, "body-too-large");
    // Refused while it is read.
    let chunks: Vec<Result<Bytes, std::io::Error>> =
        large.as_bytes().chunks(4096).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let (rest, read) = counted(chunks);
    post(Body::from_stream(rest)).send().await.problem(413, "body-too-large");
    assert_eq!(read.load(Ordering::Relaxed), large.len(), "an answer is lost with a connection that has bytes unread");

    let params = json!({ "x": "y".repeat(600_000) });
    let body = json!({ "agent": "external", "dataset_id": "d", "params": params });
    gateway.post("/api/v1/jobs", body).send().await.problem(413, "event-too-large");
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn a_body_that_breaks_off() {
    let gateway = Gateway::start().await;
    let chunks = [Ok(Bytes::from_static(b"{\"agent\":")), Err(std::io::Error::other("gone"))];
    let reply = gateway
        .call(Method::POST, "/api/v1/jobs")
        .header("content-type", "application/json")
        .body(Body::from_stream(futures_util::stream::iter(chunks)))
        .send()
        .await;
    reply.problem(400, "malformed-body");
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn other_content_types() {
    let gateway = Gateway::start().await;
    for path in ["/api/v1/jobs", "/api/v1/jobs/batch", "/api/v1/worker/claim", "/api/v1/events"] {
        for media in ["text/plain", "application/x-www-form-urlencoded", "application/xml"] {
            let token = gateway.token("all", &Role::ALL);
            let reply = gateway.post(path, external_job()).token(&token).header("content-type", media).send().await;
            reply.problem(415, "unsupported-media-type");
        }
    }
    gateway
        .post("/api/v1/jobs", external_job())
        .without("content-type")
        .send()
        .await
        .problem(415, "unsupported-media-type");
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn without_a_token_that_counts() {
    let gateway = Gateway::start().await;
    let forged = jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &json!({ "sub": "ada", "roles": ["operator"], "exp": Timestamp::now().0 / 1000 + 600 }),
        &jsonwebtoken::EncodingKey::from_secret(b"somebody else's secret, also long enough"),
    )
    .unwrap();
    let long_gone = jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &json!({ "sub": "ada", "exp": Timestamp::now().0 / 1000 - 600 }),
        &jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap();
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEiLCJleHAiOjk5OTk5OTk5OTl9.";
    let job = gateway.submitted().await;
    let before = gateway.written().await;
    for (path, method) in [
        ("/api/v1/jobs".to_owned(), Method::POST),
        ("/api/v1/jobs".to_owned(), Method::GET),
        (format!("/api/v1/jobs/{job}"), Method::DELETE),
        ("/api/v1/events".to_owned(), Method::POST),
        ("/api/v1/me".to_owned(), Method::GET),
    ] {
        let call = || gateway.call(method.clone(), &path).json(external_job());
        call().without("authorization").send().await.problem(401, "unauthenticated");
        for scheme in ["Basic YWRhOng=", "Bearer", "Bearer ", "token", ""] {
            call().header("authorization", scheme).send().await.problem(401, "unauthenticated");
        }
        for token in [&*forged, unsigned, "a.b.c", "x", &"y".repeat(20_000)] {
            call().token(token).send().await.problem(401, "invalid-token");
        }
        call().token(&long_gone).send().await.problem(401, "token-expired");
    }
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn roles_open_what_is_theirs_and_nothing_else() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    let before = gateway.written().await;
    let status = json!({ "attempt": 1, "status": "RUNNING" });
    use Role::{Auditor, Operator, User, Worker};
    for (method, path, body, allowed) in [
        (Method::POST, "/api/v1/jobs".to_owned(), json!({ "agent": "?", "dataset_id": "?" }), &[User, Operator][..]),
        (Method::POST, "/api/v1/jobs/batch".to_owned(), json!({ "jobs": [] }), &[User, Operator]),
        (Method::GET, "/api/v1/jobs".to_owned(), json!(null), &[User, Operator, Auditor]),
        (Method::GET, "/api/v1/jobs/summary".to_owned(), json!(null), &[User, Operator, Auditor]),
        (Method::GET, "/api/v1/events".to_owned(), json!(null), &[User, Operator, Auditor]),
        (Method::POST, "/api/v1/worker/claim".to_owned(), json!({ "max": 0 }), &[Worker, Operator]),
        (Method::POST, format!("/api/v1/jobs/{job}/heartbeat"), json!({ "attempt": 9 }), &[Worker, Operator]),
        (Method::POST, format!("/api/v1/jobs/{job}/status"), status, &[Worker, Operator]),
        (
            Method::POST,
            format!("/api/v1/jobs/{job}/metrics"),
            json!({ "attempt": 1, "samples": [] }),
            &[Worker, Operator],
        ),
        (Method::GET, "/api/v1/health/components".to_owned(), json!(null), &[Operator, Auditor]),
        (Method::GET, "/api/v1/agents".to_owned(), json!(null), &Role::ALL),
        (Method::GET, "/api/v1/catalogue".to_owned(), json!(null), &Role::ALL),
        (Method::GET, "/api/v1/me".to_owned(), json!(null), &Role::ALL),
    ] {
        for role in Role::ALL {
            let call = gateway.call(method.clone(), &path).as_role(role);
            let reply = if body.is_null() { call } else { call.json(body.clone()) }.send().await;
            if allowed.contains(&role) {
                assert_ne!(reply.status, StatusCode::FORBIDDEN, "{role} {method} {path}");
            } else {
                reply.problem(403, "forbidden");
            }
        }
    }
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn jobs_of_others_do_not_exist() {
    let gateway = Gateway::start().await;
    let job = gateway.submitted().await;
    let event = gateway.get("/api/v1/events").send().await.ok()["items"][0]["event_id"].as_str().unwrap().to_owned();
    let before = gateway.written().await;
    for (method, path) in [
        (Method::GET, format!("/api/v1/jobs/{job}")),
        (Method::DELETE, format!("/api/v1/jobs/{job}")),
        (Method::POST, format!("/api/v1/jobs/{job}/retry")),
        (Method::GET, format!("/api/v1/jobs/{job}/events")),
        (Method::GET, format!("/api/v1/jobs/{job}/metrics")),
        (Method::GET, format!("/api/v1/jobs/{job}/deliveries")),
        (Method::GET, format!("/api/v1/events/{event}/deliveries")),
    ] {
        let foreign = gateway.call(method.clone(), &path).as_user("eve").send().await;
        let mut foreign = foreign.problem(404, "not-found");
        // Not told apart from what never was.
        let nothing = path.replace(&job, &Id::new().to_string()).replace(&event, &Id::new().to_string());
        let mut missing = gateway.call(method.clone(), &nothing).as_user("eve").send().await.problem(404, "not-found");
        for body in [&mut foreign, &mut missing] {
            body.as_object_mut().unwrap().retain(|key, _| key != "instance" && key != "request_id");
        }
        assert_eq!(foreign, missing, "{method} {path}");
    }
    let list = gateway.get("/api/v1/jobs").as_user("eve").send().await.ok();
    assert_eq!(list["items"], json!([]));
    let events = gateway.get("/api/v1/events").as_user("eve").send().await.ok();
    assert_eq!(events["items"], json!([]));
    gateway.get("/api/v1/jobs?user=ada").as_user("eve").send().await.problem(403, "forbidden");
    gateway.get("/api/v1/jobs/summary?user=ada").as_user("eve").send().await.problem(403, "forbidden");
    gateway.get("/api/v1/events?user=ada").as_user("eve").send().await.problem(403, "forbidden");
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn an_auditor_reads_everything_and_changes_nothing() {
    let gateway = Gateway::start().await;
    let job = gateway.submitted().await;
    let before = gateway.written().await;
    gateway.get(&format!("/api/v1/jobs/{job}")).as_role(Role::Auditor).send().await.ok();
    let path = format!("/api/v1/jobs/{job}");
    gateway.call(Method::DELETE, &path).as_role(Role::Auditor).send().await.problem(403, "forbidden");
    // Neither as one who is also a user: it is not their job.
    let both = gateway.token("anna", &[Role::User, Role::Auditor]);
    gateway.call(Method::DELETE, &path).token(&both).send().await.problem(403, "forbidden");
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn cursors_that_are_none() {
    let gateway = Gateway::start().await;
    for _ in 0..3 {
        gateway.submitted().await;
    }
    let jobs = gateway.get("/api/v1/jobs?limit=1").send().await.ok()["next_cursor"].as_str().unwrap().to_owned();
    let events = gateway.get("/api/v1/events?limit=1").send().await.ok()["next_cursor"].as_str().unwrap().to_owned();
    let cut = &jobs[..jobs.len() - 2];
    let bad = ("cursor".to_owned(), "bad_cursor".to_owned());
    for cursor in ["x", "%00", "0", "AAAA", "..%2F..", cut, &events, &"z".repeat(5_000)] {
        let reply = gateway.get(&format!("/api/v1/jobs?cursor={cursor}")).send().await;
        assert_eq!(reply.wrong_field(), bad, "{cursor}");
    }
    assert_eq!(gateway.get(&format!("/api/v1/events?cursor={jobs}")).send().await.wrong_field(), bad);
    let job = gateway.submitted().await;
    let path = format!("/api/v1/jobs/{job}/deliveries?cursor={events}");
    assert_eq!(gateway.get(&path).send().await.wrong_field(), bad);
}

#[tokio::test]
async fn parameters_that_are_wrong() {
    let gateway = Gateway::start().await;
    let job = gateway.submitted().await;
    for (path, field, code) in [
        ("/api/v1/jobs?limit=0".to_owned(), "limit", "out_of_range"),
        ("/api/v1/jobs?limit=501".to_owned(), "limit", "out_of_range"),
        ("/api/v1/jobs?limit=many".to_owned(), "limit", "invalid_value"),
        ("/api/v1/jobs?limit=-1".to_owned(), "limit", "invalid_value"),
        ("/api/v1/jobs?status=QUEUED,DONE".to_owned(), "status", "unknown_value"),
        ("/api/v1/jobs?stauts=QUEUED".to_owned(), "stauts", "unknown_field"),
        ("/api/v1/jobs?from=yesterday".to_owned(), "from", "invalid_value"),
        ("/api/v1/jobs?tacc_system=laptop".to_owned(), "tacc_system", "unknown_value"),
        (format!("/api/v1/jobs?q={}", "x".repeat(201)), "q", "out_of_range"),
        ("/api/v1/jobs?limit=1&limit=2".to_owned(), "limit", "duplicate"),
        ("/api/v1/jobs?user=".to_owned(), "user", "empty"),
        ("/api/v1/jobs?limit=1&to".to_owned(), "to", "empty"),
        ("/api/v1/jobs?status=QUEUED,".to_owned(), "status", "unknown_value"),
        ("/api/v1/jobs/summary?limit=1".to_owned(), "limit", "unknown_field"),
        ("/api/v1/events?type=no.such.type".to_owned(), "type", "unknown_value"),
        (format!("/api/v1/jobs/{job}/events?after=-1"), "after", "out_of_range"),
        (format!("/api/v1/jobs/{job}/metrics?step=0"), "step", "out_of_range"),
    ] {
        assert_eq!(gateway.get(&path).send().await.wrong_field(), (field.into(), code.into()), "{path}");
    }
}

#[tokio::test]
async fn ids_that_are_none() {
    let gateway = Gateway::start().await;
    for id in ["1", "not-a-uuid", "%FF", "00000000-0000-0000-0000-00000000000g", "..%2F..%2Fetc"] {
        for path in [
            format!("/api/v1/jobs/{id}"),
            format!("/api/v1/jobs/{id}/events"),
            format!("/api/v1/events/{id}/deliveries"),
        ] {
            gateway.get(&path).send().await.problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn idempotency_keys_that_are_none() {
    let gateway = Gateway::start().await;
    for key in ["", " ", "with space", &"k".repeat(256), "tab\there"] {
        for path in ["/api/v1/jobs", "/api/v1/jobs/batch"] {
            let body = if path.ends_with("batch") { json!({ "jobs": [external_job()] }) } else { external_job() };
            let reply = gateway.post(path, body).header("idempotency-key", key).send().await;
            assert_eq!(reply.wrong_field(), ("Idempotency-Key".into(), "invalid_value".into()), "{key:?}");
        }
    }
    assert_eq!(gateway.written().await, (0, 0));
}

#[tokio::test]
async fn acting_for_others_is_for_operators() {
    let gateway = Gateway::start().await;
    let on_behalf = |user: &str| gateway.post("/api/v1/jobs", external_job()).header("x-on-behalf-of", user);
    on_behalf("bob").send().await.problem(403, "forbidden");
    on_behalf("bob").as_worker("w").send().await.problem(403, "forbidden");
    for user in ["", &"u".repeat(129)] {
        let reply = on_behalf(user).as_role(Role::Operator).send().await;
        assert_eq!(reply.wrong_field().0, "X-On-Behalf-Of", "{user:?}");
    }
    assert_eq!(gateway.written().await, (0, 0));
    let job = on_behalf("bob").as_role(Role::Operator).send().await.ok();
    assert_eq!(job["user_id"], "bob");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there() {
    let gateway = Gateway::start().await;
    for path in ["/api", "/api/", "/api/v1", "/api/v1/nothing", "/api/v2/jobs", "/api/v1/jobs/a/b/c/d", "/metrics/x"] {
        gateway.get(path).send().await.problem(404, "no-such-route");
    }
    for (method, path, allow) in [
        (Method::PUT, "/api/v1/jobs", "GET,HEAD,POST"),
        (Method::PATCH, "/api/v1/me", "GET,HEAD"),
        (Method::GET, "/api/v1/worker/claim", "POST"),
        (Method::POST, "/livez", "GET,HEAD"),
        (Method::POST, "/", "GET,HEAD"),
        (Method::DELETE, "/api/v1/jobs/summary", "GET,HEAD"),
    ] {
        let reply = gateway.call(method.clone(), path).send().await;
        reply.problem(405, "method-not-allowed");
        let mut allowed: Vec<&str> =
            reply.header("allow").unwrap_or_else(|| panic!("{method} {path}")).split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn transitions_that_are_not_allowed() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    let report =
        |body: Value, worker: &'static str| gateway.post(&format!("/api/v1/jobs/{job}/status"), body).as_worker(worker);
    let before = gateway.written().await;
    report(json!({ "attempt": 1, "status": "COMPLETED" }), "w").send().await.problem(409, "illegal-transition");
    report(json!({ "attempt": 2, "status": "RUNNING" }), "w").send().await.problem(409, "stale-attempt");
    report(json!({ "attempt": 1, "status": "RUNNING" }), "thief").send().await.problem(409, "not-claimant");
    gateway.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).send().await.problem(409, "illegal-transition");
    assert_eq!(gateway.written().await, before);

    report(json!({ "attempt": 1, "status": "RUNNING" }), "w").send().await.ok();
    report(json!({ "attempt": 1, "status": "COMPLETED" }), "w").send().await.ok();
    let before = gateway.written().await;
    report(json!({ "attempt": 1, "status": "RUNNING" }), "w").send().await.problem(409, "illegal-transition");
    let path = format!("/api/v1/jobs/{job}");
    gateway.call(Method::DELETE, &path).send().await.problem(409, "illegal-transition");
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn reports_that_are_wrong() {
    let gateway = Gateway::start().await;
    let job = gateway.claimed().await;
    let before = gateway.written().await;
    let sample = |interval: f64, host: &str| json!({ "sample_timestamp": "2026-11-21T09:30:00Z", "sample_interval_seconds": interval, "host": host, "metrics": {} });
    // Sums over such readings would not be numbers any more.
    let samples_with = |name: &str, value: f64| {
        let mut sample = sample(1.0, "h");
        sample["metrics"][name] = value.into();
        json!({ "attempt": 1, "samples": [sample] })
    };
    for (path, body, field) in [
        ("status", json!({ "attempt": 1, "status": "RUNNING", "progress": 1.5 }), "progress"),
        ("status", json!({ "attempt": 1, "status": "FAILED" }), "error"),
        ("status", json!({ "attempt": 1, "status": "PAUSED" }), "status"),
        ("status", json!({ "attempt": 1, "status": "RUNNING", "reason": "r".repeat(1_001) }), "reason"),
        ("status", json!({ "attempt": 1, "status": "RUNNING", "external_job_id": "j".repeat(201) }), "external_job_id"),
        (
            "status",
            json!({ "attempt": 1, "status": "FAILED", "error": { "code": "c".repeat(101), "message": "m" } }),
            "error.code",
        ),
        (
            "status",
            json!({ "attempt": 1, "status": "FAILED", "error": { "code": "c", "message": "m".repeat(4_001) } }),
            "error.message",
        ),
        (
            "status",
            json!({ "attempt": 1, "status": "COMPLETED", "result": { "result_size_bytes": -1 } }),
            "result.result_size_bytes",
        ),
        ("metrics", json!({ "attempt": 1, "samples": [] }), "samples"),
        ("metrics", json!({ "attempt": 1, "samples": vec![sample(1.0, "h"); 101] }), "samples"),
        (
            "metrics",
            json!({ "attempt": 1, "samples": [sample(1.0, "h"), sample(-1.0, "h")] }),
            "samples.1.sample_interval_seconds",
        ),
        ("metrics", json!({ "attempt": 1, "samples": [sample(1.0, &"h".repeat(201))] }), "samples.0.host"),
        ("metrics", json!({ "attempt": 1, "samples": [sample(1e9, "h")] }), "samples.0.sample_interval_seconds"),
        ("metrics", samples_with("network_in_mbps", 1e308), "samples.0.metrics.network_in_mbps"),
        ("metrics", samples_with("system_memory_used_gb", -1.0), "samples.0.metrics.system_memory_used_gb"),
        (
            "status",
            json!({ "attempt": 1, "status": "COMPLETED", "result": { "metrics": { "memory_used_gb": 1e200 } } }),
            "result.metrics.memory_used_gb",
        ),
        (
            "metrics",
            json!({ "attempt": 1, "samples": [{ "metrics": {}, "sample_interval_seconds": 1 }] }),
            "samples.0.sample_timestamp",
        ),
        ("heartbeat", json!({}), "attempt"),
        ("heartbeat", json!({ "attempt": -1 }), "attempt"),
    ] {
        let reply = gateway.post(&format!("/api/v1/jobs/{job}/{path}"), body.clone()).as_worker("w").send().await;
        assert_eq!(reply.wrong_field().0, field, "{body}");
    }
    for (body, field) in [
        (json!({ "max": 0 }), "max"),
        (json!({ "max": 501 }), "max"),
        (json!({ "max": 1, "agents": vec![""; 101] }), "agents"),
        (json!({ "max": 1, "agents": ["Oracle"] }), "agents.0"),
        (json!({ "max": 1, "agents": ["external", "AnomalyDetection"] }), "agents.1"),
    ] {
        let reply = gateway.post("/api/v1/worker/claim", body.clone()).as_worker("w").send().await;
        assert_eq!(reply.wrong_field().0, field, "{body}");
    }
    assert_eq!(gateway.written().await, before);
}

#[tokio::test]
async fn a_full_intake_refuses_and_says_when_to_come_back() {
    let gateway = Gateway::with(Setup { intake_bytes: 1024, ..Setup::default() }).await;
    let params = json!({ "x": "y".repeat(4_000) });
    let body = json!({ "agent": "external", "dataset_id": "d", "params": params });
    let problem = gateway.post("/api/v1/jobs", body).send().await.problem(503, "overloaded");
    assert_eq!(problem["retry_safe"], true);
    assert_eq!(gateway.written().await, (0, 0));
    assert_eq!(gateway.metrics.rejected[crate::telemetry::metrics::Rejected::Busy].get(), 1);
}

#[tokio::test]
async fn a_closed_store_is_not_the_callers_fault() {
    let gateway = Gateway::start().await;
    gateway.store.close().await;
    let problem = gateway.post("/api/v1/jobs", external_job()).send().await.problem(503, "store-unavailable");
    assert_eq!(problem["retry_safe"], true);
    gateway.get("/api/v1/jobs").send().await.problem(503, "store-unavailable");
}

/// The chunks, and how many of their bytes were taken.
fn counted(
    chunks: Vec<Result<Bytes, std::io::Error>>,
) -> (impl Stream<Item = Result<Bytes, std::io::Error>> + Send, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let stream = futures_util::stream::iter(chunks).inspect(move |chunk| {
        count.fetch_add(chunk.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
    });
    (stream, read)
}
