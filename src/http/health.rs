//! Alive, ready, healthy; and the metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::extract::{Caller, Overseers};
use super::problem::{Kind, Problem};
use crate::telemetry::readiness::Component;

/// The process answers.
#[derive(Serialize, ToSchema)]
pub struct Live {
    #[schema(value_type = String, example = "live")]
    status: &'static str,
}

/// Does the process answer?
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "getLiveness",
    tag = "health",
    security(()),
    responses((status = 200, description = "It does", body = Live)),
)]
pub async fn livez() -> Json<Live> {
    Json(Live { status: "live" })
}

/// Everything is up that accepting and showing needs.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    #[schema(value_type = String, example = "ready")]
    status: &'static str,
    /// Brokers that are not up: what they are to get waits in the store.
    degraded: Vec<Component>,
}

/// Are all components up that the gateway needs to accept jobs and show them?
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "health",
    security(()),
    responses(
        (status = 200, description = "They are; `degraded` lists others that are not", body = Ready),
        (status = 503, description = "`missing` lists those that are not"),
    ),
)]
pub async fn readyz(State(state): State<Arc<AppState>>) -> Result<Json<Ready>, Problem> {
    // Anybody may ask; why something is down is for operators.
    let without_why = |mut components: Vec<Component>| {
        components.iter_mut().for_each(|component| component.why.clear());
        components
    };
    match state.readiness.check() {
        Ok(degraded) => Ok(Json(Ready { status: "ready", degraded: without_why(degraded) })),
        Err(missing) => {
            let names: Vec<&str> = missing.iter().map(|component| component.name).collect();
            let problem = Problem::new(Kind::NotReady, format!("not up: {}", names.join(", ")));
            Err(problem.missing(without_why(missing)))
        }
    }
}

/// Every component of this instance.
#[derive(Serialize, ToSchema)]
pub struct Components {
    items: Vec<Component>,
}

/// Each component: its state, since when, and why.
#[utoipa::path(
    get,
    path = "/api/v1/health/components",
    operation_id = "listComponents",
    tag = "health",
    responses((status = 200, description = "All of them", body = Components)),
)]
pub async fn components(State(state): State<Arc<AppState>>, _: Caller<Overseers>) -> Json<Components> {
    Json(Components { items: state.readiness.components() })
}

/// Metrics in the Prometheus text format.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    tag = "health",
    security(()),
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain")),
)]
pub async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}
