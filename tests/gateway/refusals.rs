//! Bad input over real connections: each is answered with a clear problem, the gateway lives
//! on, and nothing is written anywhere. (`src/http/tests/refusals.rs` has every variant.)

use std::collections::BTreeMap;
use std::time::Duration;

use event_gateway::client::{Socket, SocketError};
use event_gateway::domain::{Id, Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::home::Home;
use super::process::{Gateway, SECRET, token, until};
use super::store::{Database, OWED, Place};

/// What a request can have written to, in a word per table.
const FIGURES: [(&str, &str); 9] = [
    ("jobs", "SELECT CAST(count(*) AS text) FROM jobs"),
    ("last change of a job", "SELECT CAST(max(updated_at) AS text) FROM jobs"),
    ("heads", "SELECT CAST(sum(last) AS text) FROM heads"),
    ("events", "SELECT CAST(count(*) AS text) FROM events"),
    ("legs", "SELECT CAST(count(*) AS text) FROM legs"),
    ("idempotency", "SELECT CAST(count(*) AS text) FROM idempotency"),
    ("inbox", "SELECT CAST(count(*) AS text) FROM inbox"),
    ("backlog", "SELECT CAST(count(*) AS text) FROM backlog"),
    ("audit_log", "SELECT CAST(count(*) AS text) FROM audit_log"),
];

async fn figures(store: &mut Database) -> BTreeMap<&'static str, Vec<[String; 1]>> {
    let mut figures = BTreeMap::new();
    for (table, sql) in FIGURES {
        figures.insert(table, store.rows(sql).await);
    }
    figures
}

/// Jobs of ada that wait: more than a socket may join.
const WAITING: usize = 120;

/// A gateway with a job of ada that worker w runs, some that wait, and everything that follows
/// from them written.
struct Scene {
    gateway: Gateway,
    store: Database,
    job: String,
    waiting: Vec<String>,
    before: BTreeMap<&'static str, Vec<[String; 1]>>,
    /// Goes last.
    home: Home,
}

impl Scene {
    async fn new() -> Self {
        let home = Home::new();
        let gateway = Gateway::start(&home).await;
        let (ada, worker) = (token("ada", Role::User), token("w", Role::Worker));
        let job = json!({ "agent": "external", "dataset_id": "survey/1" });
        let (status, job) = gateway.call(Method::POST, "/api/v1/jobs", &ada, Some(&job)).await;
        assert_eq!(status, 201, "{job}");
        let job = job["id"].as_str().unwrap().to_owned();
        gateway.call(Method::POST, "/api/v1/worker/claim", &worker, Some(&json!({ "max": 1 }))).await;
        let started = json!({ "attempt": 1, "status": "RUNNING" });
        let path = format!("/api/v1/jobs/{job}/status");
        assert_eq!(gateway.call(Method::POST, &path, &worker, Some(&started)).await.0, 202);
        let more = json!({ "jobs": vec![json!({ "agent": "external", "dataset_id": "survey/1" }); WAITING] });
        let (status, more) = gateway.call(Method::POST, "/api/v1/jobs/batch", &ada, Some(&more)).await;
        assert_eq!(status, 201, "{more}");
        let ids = more["items"].as_array().unwrap().iter();
        let waiting = ids.map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        let mut store = Place::of(&home).open(home.path()).await;
        until("every broker and consumer is done", async || store.count(OWED).await == 0).await;
        let before = figures(&mut store).await;
        Self { gateway, store, job, waiting, before, home }
    }

    fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        let path = path.replace("{job}", &self.job);
        let request = reqwest::Client::new().request(method, format!("{}{path}", self.gateway.url));
        request.timeout(Duration::from_secs(10)).bearer_auth(token)
    }

    fn post(&self, path: &str, token: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path, token).json(body)
    }

    /// Nothing has changed, and it still does its work.
    async fn stays_as_before(mut self) {
        assert_eq!(figures(&mut self.store).await, self.before);
        let job = json!({ "agent": "external", "dataset_id": "survey/2" });
        let (status, job) =
            self.gateway.call(Method::POST, "/api/v1/jobs", &token("ada", Role::User), Some(&job)).await;
        assert_eq!(status, 201, "{job}");
        assert!(self.gateway.stop().await);
    }
}

/// Sends it and checks that the answer is a problem of this status and type, whole; its body.
pub async fn refused(request: RequestBuilder, status: u16, slug: &str) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{response:?}");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answered = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        (answered, body["type"].as_str()),
        (status, Some(&*format!("urn:event-gateway:problem:{slug}"))),
        "{body}"
    );
    assert_eq!(body["request_id"], id);
    assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{body}");
    body
}

/// A 422 about this field, which says what is wrong with it.
async fn wrong_field(request: RequestBuilder, field: &str) {
    let body = refused(request, 422, "validation-failed").await;
    let errors = body["errors"].as_array().unwrap();
    let about: Vec<&str> =
        errors.iter().filter(|error| error["field"] == field).filter_map(|error| error["message"].as_str()).collect();
    assert!(about.iter().any(|message| message.len() > 5), "{field}: {body}");
}

fn forged(claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

#[tokio::test]
async fn bad_requests_write_nothing() {
    let scene = Scene::new().await;
    let (ada, eve, worker) = (token("ada", Role::User), token("eve", Role::User), token("w", Role::Worker));
    let good = json!({ "agent": "external", "dataset_id": "survey/3" });
    let body = |text: &'static [u8]| {
        scene.request(Method::POST, "/api/v1/jobs", &ada).header("content-type", "application/json").body(text)
    };

    // Bodies.
    for text in [&b"{\"agent\":"[..], b"", b"\xff\xfe\x00", b"{\"agent\":\"external\",}"] {
        refused(body(text), 400, "malformed-body").await;
    }
    wrong_field(body(b"{\"agent\":\"external\"}"), "dataset_id").await;
    refused(body(&[b' '; 1_100_000]), 413, "body-too-large").await;
    let large = json!({ "agent": "external", "dataset_id": "d", "params": { "x": "y".repeat(600_000) } });
    refused(scene.post("/api/v1/jobs", &ada, &large), 413, "event-too-large").await;
    let many = json!({ "jobs": vec![good.clone(); 501] });
    wrong_field(scene.post("/api/v1/jobs/batch", &ada, &many), "jobs").await;

    // Agents and datasets.
    let of = |agent: &str, dataset: &str| json!({ "agent": agent, "dataset_id": dataset });
    wrong_field(scene.post("/api/v1/jobs", &ada, &of("Oracle", "d")), "agent").await;
    let datasets = scene.home.path().join("datasets");
    std::os::unix::fs::symlink(scene.home.path().join("gateway.lock"), datasets.join("link.csv")).unwrap();
    for outside in ["../gateway.lock", "alpha-cal/../../gateway.lock", "/etc/passwd", "link.csv", "%2e%2e/gateway.lock"]
    {
        wrong_field(scene.post("/api/v1/jobs", &ada, &of("AlphaCal", outside)), "dataset_id").await;
    }

    // Transitions.
    let report = |status: &str, attempt: u32| json!({ "attempt": attempt, "status": status });
    let status = "/api/v1/jobs/{job}/status";
    refused(scene.post(status, &worker, &report("RUNNING", 2)), 409, "stale-attempt").await;
    refused(scene.post(status, &token("thief", Role::Worker), &report("COMPLETED", 1)), 409, "not-claimant").await;
    refused(scene.post("/api/v1/jobs/{job}/retry", &ada, &json!({})), 409, "illegal-transition").await;
    wrong_field(scene.post(status, &worker, &report("PAUSED", 1)), "status").await;

    // What belongs to others.
    for (method, path) in [
        (Method::GET, "/api/v1/jobs/{job}"),
        (Method::DELETE, "/api/v1/jobs/{job}"),
        (Method::POST, "/api/v1/jobs/{job}/retry"),
        (Method::GET, "/api/v1/jobs/{job}/deliveries"),
    ] {
        refused(scene.request(method, path, &eve), 404, "not-found").await;
    }
    refused(scene.request(Method::DELETE, &format!("/api/v1/jobs/{}", Id::new()), &ada), 404, "not-found").await;
    refused(scene.post(status, &ada, &report("COMPLETED", 1)), 403, "forbidden").await;

    // Tokens.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let root = json!({ "sub": "root", "roles": ["operator"], "exp": now + 600 });
    let other = forged(&root, "the secret of somebody else, long enough too");
    let expired = forged(&json!({ "sub": "ada", "exp": now - 600 }), SECRET);
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", other.split('.').nth(1).unwrap());
    for (token, slug) in [(&*other, "invalid-token"), (&*unsigned, "invalid-token"), (&*expired, "token-expired")] {
        refused(scene.post("/api/v1/jobs", token, &good), 401, slug).await;
    }

    // Cursors.
    for path in ["/api/v1/jobs", "/api/v1/events", "/api/v1/jobs/{job}/deliveries"] {
        for cursor in ["x", "AAAA", "%00%01", "99999999999999999999"] {
            wrong_field(scene.request(Method::GET, &format!("{path}?cursor={cursor}"), &ada), "cursor").await;
        }
    }
    scene.stays_as_before().await;
}

/// What it answers to these bytes until it closes; it may not just hold on. `ends`: nothing more
/// comes, which it is told.
async fn answer(scene: &Scene, bytes: &[u8], ends: bool) -> String {
    let mut stream = TcpStream::connect(scene.gateway.address()).await.unwrap();
    // It may close before it has read all.
    stream.write_all(bytes).await.ok();
    if ends {
        stream.shutdown().await.ok();
    }
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await;
    assert!(read.is_ok(), "it neither closes nor answers: {}", bytes.escape_ascii());
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn binary_junk_on_the_socket_writes_nothing() {
    let scene = Scene::new().await;
    let junk: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&junk[..], b"\0\0\0\0", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n"] {
        let said = answer(&scene, bytes, true).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{said}");
    }
    // A body that is announced as larger than any is refused by its announcement.
    let head = format!(
        "POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: 99999999999\r\n\r\n{{",
        token("ada", Role::User)
    );
    assert!(answer(&scene, head.as_bytes(), false).await.starts_with("HTTP/1.1 413"));
    // One that breaks off is not half a job.
    let head = head.replace("99999999999", "500");
    let said = answer(&scene, head.as_bytes(), true).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{said}");
    // Engine.IO: no session, no version, junk where a packet should be.
    for target in ["/socket.io/", "/socket.io/?EIO=4&transport=polling&sid=none", "/socket.io/?EIO=3&transport=polling"]
    {
        let request = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\n\0\u{1}\u{2}\u{3}"
        );
        let said = answer(&scene, request.as_bytes(), false).await;
        assert!(said.starts_with("HTTP/1.1 4") && said.contains("x-request-id: "), "{target}: {said}");
    }
    scene.stays_as_before().await;
}

#[tokio::test]
async fn ten_thousand_joins_are_a_hundred_rooms_and_write_nothing() {
    let scene = Scene::new().await;
    let limit = Duration::from_secs(20);
    let url = url::Url::parse(&scene.gateway.url).unwrap();
    let connect = async |token: String| Socket::connect(&url, "/messaging", &json!({ "token": token }), limit).await;
    for token in ["no token".to_owned(), forged(&json!({ "sub": "ada", "exp": 4_000_000_000_u64 }), "not the secret")] {
        assert!(matches!(connect(token).await, Err(SocketError::Refused(_))));
    }

    let (ada, eve) = (token("ada", Role::User), token("eve", Role::User));
    let mut socket = connect(ada).await.unwrap();
    let mut refused = 0;
    for n in 0..10_000 {
        let asked = json!({ "jobId": scene.waiting[n % WAITING], "lastOffset": 1 });
        let answer = socket.call("join_job_channel", &asked, limit).await.unwrap();
        if answer["joined"] != true {
            assert_eq!(answer["error"]["code"], "too_many_rooms", "{answer}");
            refused += 1;
        }
    }
    // In rooms that it has joined it may stay.
    assert_eq!(refused, (0..10_000).filter(|n| n % WAITING >= 100).count());

    let mut stranger = connect(eve).await.unwrap();
    for (job, code) in
        [(json!(scene.job), "not_found"), (json!("../x"), "invalid_payload"), (json!(7), "invalid_payload")]
    {
        let answer = stranger.call("join_job_channel", &json!({ "jobId": job }), limit).await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
    socket.close().await;
    stranger.close().await;
    scene.stays_as_before().await;
}
