//! The HTTP floor in-process: the real router, service, committer and store; only the relay is
//! missing, so that every leg stays as committed. The store is SQLite, or PostgreSQL with
//! `EVENT_GATEWAY_TEST_ON=brokers`.

mod documented;
mod edge;
#[path = "../../../tests/support/environment.rs"]
mod environment;
mod events;
mod jobs;
mod ledger;
mod page;
#[path = "../../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "the tests of the store use the rest of it")]
mod postgres;
mod refusals;
mod session;
mod worker;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{AppState, HttpOptions, RateLimits, router};
use crate::auth::Authenticator;
use crate::config::Config;
use crate::domain::catalogue::Catalogue;
use crate::domain::factory::EventFactory;
use crate::domain::job::RunnerKind;
use crate::domain::{Event, Role};
use crate::ops::ledger::Ledger;
use crate::relay::Handoff;
use crate::runner::datasets;
use crate::service::agents::{AgentOptions, Agents, Dataset, Datasets};
use crate::service::committer::{Committer, CommitterOptions};
use crate::service::{EventService, ServiceOptions};
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{EventFilter, JobFilter, Page, Store};
use crate::telemetry::{Metrics, Readiness};

const SECRET: &str = "a secret of the tests, long enough for HS256";

/// Nobody is told of commits.
struct Nowhere;

impl Handoff for Nowhere {
    fn committed(&self, _: &[Arc<Event>]) {}
    fn waited(&self, _: Duration) {}
}

/// The datasets below one directory.
struct Below(std::path::PathBuf);

impl Datasets for Below {
    fn list(&self, _: &str) -> Vec<Dataset> {
        let found = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        found
            .map(|entry| Dataset {
                id: entry.file_name().into_string().unwrap(),
                bytes: entry.metadata().unwrap().len(),
                description: String::new(),
            })
            .collect()
    }

    fn check(&self, _: &str, id: &str) -> Result<(), String> {
        datasets::resolve(&self.0, id).map(|_| ()).map_err(|error| error.to_string())
    }
}

/// How a gateway of the tests differs from the usual one.
struct Setup {
    set: Vec<(&'static str, &'static str)>,
    intake_bytes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { set: vec![("auth.jwt_secret", SECRET)], intake_bytes: 8 << 20 }
    }
}

struct Gateway {
    router: Router,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    auth: Arc<Authenticator>,
    dir: tempfile::TempDir,
    /// Goes after the store.
    _schema: Option<postgres::Schema>,
}

/// The store that this run is on, with what it needs to be there.
async fn open_store(dir: &Path, factory: Arc<EventFactory>) -> (Arc<dyn Store>, Option<postgres::Schema>) {
    if environment::given("EVENT_GATEWAY_TEST_ON").as_deref() != Some("brokers") {
        return (Arc::new(SqliteStore::open(&dir.join("gateway.db"), factory).await.unwrap()), None);
    }
    let schema = postgres::Schema::create().await.expect("a server");
    let store = PostgresStore::open(schema.options(), factory, PostgresOptions::default()).await.unwrap();
    store.enroll("test-1", Duration::from_secs(60)).await.unwrap();
    (Arc::new(store), Some(schema))
}

impl Gateway {
    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalogue_dir = dir.path().join("catalogue");
        write_catalogue(&catalogue_dir);
        let datasets = dir.path().join("datasets");
        std::fs::create_dir(&datasets).unwrap();
        std::fs::write(datasets.join("night-1.csv"), "t,v\n0,1\n").unwrap();
        std::fs::write(dir.path().join("secret.csv"), "not for jobs").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret.csv"), datasets.join("link.csv")).unwrap();

        let config = Config::defaults_in(dir.path(), &setup.set).unwrap();
        let metrics = Metrics::new();
        let readiness = Readiness::new(metrics.clone());
        let catalogue = Catalogue::load(&[catalogue_dir]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let agents = Arc::new(Agents::new(agents(), Arc::new(Below(datasets))).unwrap());
        let limit = config.http.event_limit.as_u64() as usize;
        let factory = Arc::new(EventFactory::new(catalogue, agents.api_claimed(), limit));
        let (store, schema) = open_store(dir.path(), factory.clone()).await;
        let options = CommitterOptions { max_bytes: setup.intake_bytes, batch_rows: 256 };
        let (committer, _task) = Committer::spawn(store.clone(), Arc::new(Nowhere), options, metrics.clone());
        let service = Arc::new(EventService::new(
            store.clone(),
            committer,
            factory.clone(),
            agents,
            ServiceOptions {
                max_retries_default: 3,
                max_retries_limit: 100,
                batch_limit: 500,
                external_lease_ms: 60_000,
            },
        ));
        let declarations = crate::consumer::declarations();
        let auth = Authenticator::new(&config.auth, dir.path()).unwrap();
        let state = AppState {
            service: service.clone(),
            auth: auth.clone(),
            ledger: Arc::new(Ledger::new(store.clone(), declarations)),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            rate_limits: RateLimits::new(&config.http),
            options: HttpOptions::new(&config, "test-1"),
        };
        Self { router: router(state), store, metrics, readiness, auth, dir, _schema: schema }
    }

    fn token(&self, user: &str, roles: &[Role]) -> String {
        self.auth.issue_token(user, roles, Duration::from_secs(600)).unwrap()
    }

    /// A request as `ada`, a user.
    fn call(&self, method: Method, path: &str) -> Call<'_> {
        let token = self.token("ada", &[Role::User]);
        Call { gateway: self, request: Request::builder().method(method).uri(path), body: Body::empty() }
            .header("authorization", &format!("Bearer {token}"))
    }

    fn get(&self, path: &str) -> Call<'_> {
        self.call(Method::GET, path)
    }

    fn post(&self, path: &str, body: Value) -> Call<'_> {
        self.call(Method::POST, path).json(body)
    }

    /// What has been written so far, up to 5,000 of each: jobs, and events.
    async fn written(&self) -> (usize, usize) {
        let jobs = self.store.jobs(&JobFilter::default(), Page { before: None, limit: 5_000 }).await.unwrap();
        let events = self.store.events(&EventFilter::default(), Page { before: None, limit: 5_000 }).await.unwrap();
        (jobs.len(), events.len())
    }

    /// A job of `ada` for the external agent; its id.
    async fn submitted(&self) -> String {
        let reply = self.post("/api/v1/jobs", external_job()).send().await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// A job of `ada` that worker `w` has claimed.
    async fn claimed(&self) -> String {
        let id = self.submitted().await;
        let reply = self.post("/api/v1/worker/claim", json!({ "max": 500 })).as_worker("w").send().await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let items = reply.json()["items"].as_array().unwrap().clone();
        assert!(items.iter().any(|job| job["id"] == *id), "{items:?}");
        id
    }
}

fn external_job() -> Value {
    json!({ "agent": "external", "dataset_id": "anything at all" })
}

/// A request being put together.
struct Call<'g> {
    gateway: &'g Gateway,
    request: axum::http::request::Builder,
    body: Body,
}

#[expect(clippy::wrong_self_convention, reason = "a builder: as_worker and from_peer read as the sentence of a test")]
impl Call<'_> {
    /// Sets a header; the last one of a name counts.
    fn header(mut self, name: &str, value: &str) -> Self {
        let headers = self.request.headers_mut().unwrap();
        headers.insert(axum::http::HeaderName::try_from(name).unwrap(), value.try_into().unwrap());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.request.headers_mut().unwrap().remove(name);
        self
    }

    fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn as_user(self, user: &str) -> Self {
        let token = self.gateway.token(user, &[Role::User]);
        self.token(&token)
    }

    fn as_worker(self, user: &str) -> Self {
        let token = self.gateway.token(user, &[Role::Worker]);
        self.token(&token)
    }

    fn as_role(self, role: Role) -> Self {
        let token = self.gateway.token("somebody", &[role]);
        self.token(&token)
    }

    fn from_peer(mut self, peer: &str) -> Self {
        let peer: SocketAddr = peer.parse().unwrap();
        self.request.extensions_mut().unwrap().insert(ConnectInfo(peer));
        self
    }

    fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    async fn send(self) -> Reply {
        let request = self.request.body(self.body).unwrap();
        let path = request.uri().path().to_owned();
        let response = self.gateway.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        Reply { path, status: parts.status, headers: parts.headers, body }
    }
}

#[derive(Debug)]
struct Reply {
    path: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn ok(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.json()
    }

    /// Checks that this is a problem of `kind`, whole and consistent; the body.
    #[track_caller]
    fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["type"], format!("urn:event-gateway:problem:{slug}"), "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert_eq!(body["instance"], self.path, "{body}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{body}");
        for field in ["title", "detail"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {body}");
        }
        assert!(body["retry_safe"].is_boolean(), "{body}");
        if matches!(status, 429 | 503) {
            assert!(self.header("retry-after").is_some(), "{self:?}");
        }
        if status == 401 {
            assert!(self.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer ")), "{self:?}");
        }
        body
    }

    /// The wrong fields of a 422, each with its code.
    #[track_caller]
    fn wrong_fields(&self) -> Vec<(String, String)> {
        let body = self.problem(422, "validation-failed");
        let errors = body["errors"].as_array().unwrap_or_else(|| panic!("{body}"));
        errors
            .iter()
            .map(|error| {
                assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
                (error["field"].as_str().unwrap().to_owned(), error["code"].as_str().unwrap().to_owned())
            })
            .collect()
    }

    #[track_caller]
    fn wrong_field(&self) -> (String, String) {
        let mut fields = self.wrong_fields();
        assert_eq!(fields.len(), 1, "{fields:?}");
        fields.remove(0)
    }
}

fn agents() -> Vec<AgentOptions> {
    let external = AgentOptions {
        name: "external".into(),
        runner: RunnerKind::External,
        description: "Runs elsewhere".into(),
        params_schema: json!({ "type": "object" }),
        any_dataset: true,
        claim_api: true,
        cost_per_gpu_hour_usd: 0.35,
    };
    let local = AgentOptions {
        name: "AnomalyDetection".into(),
        runner: RunnerKind::Process,
        description: "Finds what does not belong".into(),
        params_schema: json!({
            "type": "object",
            "properties": { "threshold": { "type": "number", "minimum": 0 } },
            "required": ["threshold"],
            "additionalProperties": false
        }),
        any_dataset: false,
        claim_api: false,
        ..external.clone()
    };
    vec![external, local]
}

/// A domain of its own: a type that users may post, and a command for operators.
fn write_catalogue(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let catalogue = r#"
        [[topic]]
        name = "lab"
        partitions = 2
        retention_days = 7

        [[type]]
        name = "lab.reading.taken"
        schema = "reading.avsc"
        version = 1
        aggregate = "instrument"
        aggregate_id = "instrument_id"
        order = "aggregate"
        ingest = ["user", "operator"]
        kafka = { topic = "lab", key = "instrument_id" }

        [[type]]
        name = "lab.door.opened"
        schema = "door.avsc"
        version = 1
        aggregate = "door"
        aggregate_id = "instrument_id"
        order = "none"
        ingest = ["operator"]
        kafka = { topic = "lab", key = "instrument_id" }
    "#;
    std::fs::write(dir.join("catalogue.toml"), catalogue).unwrap();
    std::fs::write(dir.join("reading.avsc"), schema("ReadingTaken").to_string()).unwrap();
    std::fs::write(dir.join("door.avsc"), schema("DoorOpened").to_string()).unwrap();
}

/// The envelope of a built-in schema around a payload of this domain.
fn schema(name: &str) -> Value {
    let built_in = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/alert.resolved.avsc"));
    let mut schema: Value = serde_json::from_str(built_in).unwrap();
    schema["name"] = name.into();
    schema["namespace"] = "test.lab".into();
    let payload = schema["fields"].as_array_mut().unwrap().last_mut().unwrap();
    payload["type"]["name"] = format!("{name}Payload").into();
    payload["type"]["fields"] = json!([
        { "name": "instrument_id", "type": "string" },
        { "name": "value", "type": "double" },
        { "name": "note", "type": ["null", "string"], "default": null }
    ]);
    schema
}
