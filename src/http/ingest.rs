//! `POST /events`: taking in CloudEvents.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::cloudevents::{self, CloudEvent};
use super::extract::{Anyone, Caller, LargeBody};
use super::problem::{Kind, Problem};
use crate::domain::Id;
use crate::service::{Ingested, ServiceError};
use crate::telemetry::metrics::Accepted;

/// What became of each event, in order.
#[derive(Serialize, ToSchema)]
pub struct IngestResult {
    items: Vec<IngestItem>,
}

/// What became of one event.
#[derive(Serialize, ToSchema)]
pub struct IngestItem {
    source: String,
    /// The event's own id.
    id: String,
    /// 202, or 422: its source and id came with other content before.
    status: u16,
    /// The id it has here.
    #[schema(required = true)]
    event_id: Option<Id>,
    /// It had been taken in before; nothing was written.
    repeated: bool,
}

/// Take in CloudEvents.
///
/// Binary (`ce-` headers), structured or batched. The catalogue says which types a role
/// may post; the gateway's own types by nobody. The owner is the caller. `source` and `id`
/// are the key that makes a repeat harmless, for as long as idempotency keys are kept. All
/// events of a batch are checked before any is written.
#[utoipa::path(
    post,
    path = "/api/v1/events",
    operation_id = "ingestEvents",
    tag = "events",
    params(
        ("ce-specversion" = Option<String>, Header, description = "Binary mode: `1.0`"),
        ("ce-id" = Option<String>, Header, description = "Binary mode"),
        ("ce-source" = Option<String>, Header, description = "Binary mode"),
        ("ce-type" = Option<String>, Header, description = "Binary mode"),
        ("ce-time" = Option<String>, Header, description = "Binary mode"),
    ),
    request_body(
        content(
            (CloudEvent = "application/cloudevents+json"),
            (Vec<CloudEvent> = "application/cloudevents-batch+json"),
            (Object = "application/json"),
        ),
        description = "The event; its payload alone in binary mode",
    ),
    responses(
        (status = 202, description = "Committed", body = IngestResult),
        (status = 207, description = "A batch of which some were refused", body = IngestResult),
        (status = 409, description = "One of these events is being taken in"),
    ),
)]
pub async fn ingest(
    State(state): State<Arc<AppState>>,
    caller: Caller<Anyone>,
    body: LargeBody,
) -> Result<Response, Problem> {
    if caller.on_behalf_of.is_some() {
        let message = "is not for events: their owner is who posts them";
        return Err(Problem::field("X-On-Behalf-Of", "unsupported", message));
    }
    let received = cloudevents::read(&body.headers, &body.raw)?;
    let names: Vec<(String, String)> =
        received.events.iter().map(|event| (event.source.clone(), event.id.clone())).collect();
    let results = state.service.ingest(&caller.context()?, received.events).await.map_err(|error| match error {
        ServiceError::Invalid(errors) if !received.batch => Problem::invalid(errors.into_iter().map(alone).collect()),
        error => error.into(),
    })?;
    let fresh = results.iter().flatten().filter(|ingested| !ingested.repeated).count();
    state.metrics.accepted[Accepted::Event].inc_by(fresh as u64);
    let refused = results.iter().any(Result::is_err);
    if refused && !received.batch {
        let detail = "an event of this source and id came with other content before; give it another id";
        return Err(Problem::new(Kind::KeyReused, detail));
    }
    let items = names.into_iter().zip(&results).map(|((source, id), result)| item(source, id, result.as_ref().ok()));
    let status = if refused { StatusCode::MULTI_STATUS } else { StatusCode::ACCEPTED };
    Ok((status, Json(IngestResult { items: items.collect() })).into_response())
}

fn item(source: String, id: String, ingested: Option<&Ingested>) -> IngestItem {
    IngestItem {
        source,
        id,
        status: if ingested.is_some() { 202 } else { 422 },
        event_id: ingested.map(|ingested| ingested.event_id),
        repeated: ingested.is_some_and(|ingested| ingested.repeated),
    }
}

/// A single event is not item 0 of anything for its sender.
fn alone(mut error: crate::service::FieldError) -> crate::service::FieldError {
    if let Some(field) = error.field.strip_prefix("events.0") {
        error.field = field.trim_start_matches('.').to_owned();
    }
    error
}
