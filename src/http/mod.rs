//! The HTTP floor: a file per resource, problem details for every error, OpenAPI from the
//! code, and the page.
//!
//! [`router`] is everything but Socket.IO, which `app` lays beside it; [`serve()`] answers
//! connections with both.

mod agents;
mod asyncapi;
mod cloudevents;
mod cursor;
mod edge;
mod events;
mod extract;
mod health;
mod history;
mod ingest;
mod jobs;
mod json;
pub mod openapi;
mod page;
pub mod problem;
mod rate;
mod serve;
mod session;
mod shape;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::get;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Authenticator;
use crate::config::Config;
use crate::ops::ledger::Ledger;
use crate::service::EventService;
use crate::telemetry::{Metrics, Readiness};
use edge::Edge;
pub use edge::identify;
pub use rate::RateLimits;
pub use serve::serve;

/// What the routes work with.
pub struct AppState {
    pub service: Arc<EventService>,
    pub auth: Arc<Authenticator>,
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    pub rate_limits: RateLimits,
    pub options: HttpOptions,
}

/// Limits and facts of the HTTP floor.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    pub instance_id: String,
    /// Bytes of a body; of a batch.
    pub body_limit: usize,
    pub batch_body_limit: usize,
    pub request_timeout: Duration,
    /// Requests that may be open at once.
    pub max_in_flight: usize,
    /// Pages of other origins that may call; `*`: all.
    pub allowed_origins: Vec<String>,
    /// How long a development sign-in lasts.
    pub development_ttl: Duration,
}

impl HttpOptions {
    pub fn new(config: &Config, instance_id: impl Into<String>) -> Self {
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        Self {
            instance_id: instance_id.into(),
            body_limit: bytes(config.http.body_limit),
            batch_body_limit: bytes(config.http.batch_body_limit),
            request_timeout: config.http.request_timeout,
            max_in_flight: config.http.max_in_flight,
            allowed_origins: config.http.allowed_origins.clone(),
            development_ttl: config.auth.development_ttl,
        }
    }
}

/// Every route, with the layers around them.
pub fn router(state: AppState) -> Router {
    let edge = Edge::new(state.metrics.clone(), state.options.request_timeout, state.options.max_in_flight);
    let cors = cors(&state.options.allowed_origins);
    let (api, document) = api().split_for_parts();
    let asyncapi = asyncapi::document(state.service.factory().catalogue());
    let router = api
        .route("/api/openapi.json", get(openapi::handler(document.to_json().unwrap_or_default())))
        .route("/api/asyncapi.json", get(openapi::handler(asyncapi.to_string())))
        .with_state(Arc::new(state))
        .merge(openapi::browser())
        .fallback_service(page::router());
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn_with_state(edge, edge::edge))
}

/// All routes of the API with their documentation.
fn api() -> OpenApiRouter<Arc<AppState>> {
    // Answers worth compressing. What is written often has small answers and goes without.
    let reads = OpenApiRouter::new()
        .routes(routes!(session::session))
        .routes(routes!(session::me))
        .routes(routes!(agents::agents))
        .routes(routes!(agents::catalogue))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::summary))
        .routes(routes!(jobs::get))
        .routes(routes!(history::events))
        .routes(routes!(history::metrics))
        .routes(routes!(history::deliveries))
        .routes(routes!(events::list))
        .routes(routes!(events::deliveries))
        .routes(routes!(health::components))
        .routes(routes!(health::metrics))
        .layer(compression());
    let rest = OpenApiRouter::new()
        .routes(routes!(session::development))
        .routes(routes!(jobs::submit))
        .routes(routes!(jobs::submit_batch))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(ingest::ingest))
        .routes(routes!(worker::claim))
        .routes(routes!(worker::heartbeat))
        .routes(routes!(worker::status))
        .routes(routes!(worker::metrics))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz));
    openapi::finish(OpenApiRouter::with_openapi(openapi::base()).merge(reads).merge(rest))
}

/// gzip from one kilobyte on.
fn compression() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(SizeAbove::new(1024)))
}

/// Other origins, if any are allowed. Tokens travel in a header, never in a cookie, so
/// credentials are not allowed.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            extract::IDEMPOTENCY_KEY,
            extract::X_ON_BEHALF_OF,
            edge::X_REQUEST_ID,
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers([header::LOCATION, header::RETRY_AFTER, jobs::IDEMPOTENT_REPLAY, edge::X_REQUEST_ID])
        .max_age(Duration::from_secs(600));
    Some(layer)
}

/// Headers of everything a browser shows.
fn for_browsers(router: Router, policy: &'static str) -> Router {
    router.layer(map_response(move |mut response: axum::response::Response| async move {
        for (name, value) in [
            (header::CONTENT_SECURITY_POLICY, policy),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }))
}
