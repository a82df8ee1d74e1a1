//! What happens to every request: its id, its time limit, its place among those that are
//! open, and its error, if it ends in one, written, counted and logged.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::problem::{Kind, Problem};
use crate::domain::Id;
use crate::telemetry::Metrics;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over.
const MAX_REQUEST_ID: usize = 128;

/// What the edge needs.
pub struct Edge {
    metrics: Arc<Metrics>,
    timeout: Duration,
    /// One permit an open request.
    open: Semaphore,
}

impl Edge {
    pub fn new(metrics: Arc<Metrics>, timeout: Duration, max_in_flight: usize) -> Arc<Self> {
        Arc::new(Self { metrics, timeout, open: Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS)) })
    }
}

/// The middleware around everything.
pub async fn edge(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = request_id(request.headers());
    request.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let repeatable = is_repeatable(&method, request.headers());

    let mut response = if let Some(_open) = permit(&edge, uri.path()) {
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
        match tokio::time::timeout(edge.timeout, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(panic)) => Problem::internal(format!("panic: {}", said(&*panic))).into_response(),
            Err(_) => timed_out(edge.timeout, repeatable).into_response(),
        }
    } else {
        Problem::new(Kind::Overloaded, "too many requests are open; try again in a moment").into_response()
    };

    if response.status().is_client_error() || response.status().is_server_error() {
        response = refuse(&edge.metrics, response, &request_id, (&method, repeatable), &uri, started);
    } else {
        tracing::debug!(
            %method,
            path = uri.path(),
            status = response.status().as_u16(),
            request_id = request_id.to_str().unwrap_or_default(),
            ms = started.elapsed().as_secs_f64() * 1e3,
            "answered"
        );
    }
    if !is_probe(uri.path()) {
        edge.metrics.response_seconds.observe(started.elapsed().as_secs_f64());
    }
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

/// Names requests that do not come by the [`edge`]: those of Socket.IO, which last as long as
/// they like.
pub async fn identify(request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

/// Health and metrics are answered however busy it is.
fn permit<'a>(edge: &'a Edge, path: &str) -> Option<Option<tokio::sync::SemaphorePermit<'a>>> {
    if is_probe(path) { Some(None) } else { edge.open.try_acquire().ok().map(Some) }
}

/// What monitoring asks.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics")
}

/// The caller's id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get(X_REQUEST_ID)
        && (1..=MAX_REQUEST_ID).contains(&given.len())
        && given.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
    {
        return given.clone();
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = Id::new().0.as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Doing it twice is doing it once.
fn is_repeatable(method: &Method, headers: &HeaderMap) -> bool {
    method.is_safe() || headers.contains_key(super::extract::IDEMPOTENCY_KEY)
}

fn timed_out(limit: Duration, repeatable: bool) -> Problem {
    let limit = humantime::format_duration(limit);
    let detail = if repeatable {
        format!("there was no answer within {limit}; try again")
    } else {
        format!("there was no answer within {limit}; look first whether it was done, or send an Idempotency-Key")
    };
    Problem::new(Kind::Timeout, detail).retry_safe(repeatable)
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

/// Gives an error answer its body. One that is not a [`Problem`] comes from a library: its
/// status says all there is to say.
fn refuse(
    metrics: &Metrics,
    response: Response,
    request_id: &HeaderValue,
    (method, repeatable): (&Method, bool),
    uri: &Uri,
    started: Instant,
) -> Response {
    let (mut parts, _) = response.into_parts();
    let mut problem = parts.extensions.remove::<Problem>().unwrap_or_else(|| {
        let problem = Problem::of_status(parts.status);
        let mut own = problem.clone().into_response();
        own.headers_mut().extend(std::mem::take(&mut parts.headers).into_iter().filter_map(|(name, value)| {
            let name = name?;
            (name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH).then_some((name, value))
        }));
        parts = own.into_parts().0;
        problem
    });
    if problem.kind == Kind::OutcomeUnknown {
        problem = problem.retry_safe(repeatable);
    }
    let request_id = request_id.to_str().unwrap_or_default();
    let body = problem.encode(uri.path(), request_id);
    metrics.rejected[problem.rejected()].inc();
    log(&problem, parts.status, request_id, method, uri, started);
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(parts, Body::from(body))
}

/// Refusals that come in floods when it is busy are counted, not told one by one.
fn log(problem: &Problem, status: StatusCode, request_id: &str, method: &Method, uri: &Uri, started: Instant) {
    let (kind, detail, cause) = (problem.kind.slug(), problem.detail(), problem.internal_cause());
    let (path, status, ms) = (uri.path(), status.as_u16(), started.elapsed().as_secs_f64() * 1e3);
    match problem.kind {
        Kind::Internal => {
            tracing::error!(%method, path, status, request_id, ms, kind, cause, "request failed");
        }
        Kind::StoreUnavailable | Kind::OutcomeUnknown | Kind::Timeout | Kind::KeysUnavailable => {
            tracing::warn!(%method, path, status, request_id, ms, kind, cause, "request failed");
        }
        Kind::Overloaded | Kind::RateLimited | Kind::Stopping | Kind::NotReady => {
            tracing::debug!(%method, path, status, request_id, ms, kind, detail, "request refused");
        }
        _ => tracing::info!(%method, path, status, request_id, ms, kind, detail, "request refused"),
    }
}
