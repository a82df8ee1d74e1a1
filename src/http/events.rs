//! Events: the history, and where each event is.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::cursor::{self, List};
use super::extract::{Caller, Params, PathId, Readers};
use super::history::DeliveriesPage;
use super::jobs::{page_size, store, visible_user};
use super::problem::Problem;
use crate::domain::{Event, Id, Timestamp};
use crate::store::{EventFilter, Page};

/// An event: envelope and payload.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventView {
    event_id: Id,
    #[schema(value_type = String)]
    event_type: Arc<str>,
    occurred_at: Timestamp,
    /// The same for everything that follows from one request.
    correlation_id: Id,
    /// The event that led to this one.
    #[schema(required = true)]
    causation_id: Option<Id>,
    #[schema(value_type = String)]
    aggregate_type: Arc<str>,
    #[schema(value_type = String)]
    aggregate_id: Arc<str>,
    /// Position in the aggregate, from 1, gap-free.
    #[schema(minimum = 1)]
    sequence: i64,
    #[schema(value_type = String)]
    user_id: Arc<str>,
    schema_version: u32,
    tags: Vec<String>,
    /// The channels it appears in, with its offset in each.
    offsets: BTreeMap<String, i64>,
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    payload: Box<RawValue>,
}

impl EventView {
    fn new(event: &Event) -> Result<Self, Problem> {
        let payload = serde_json::from_slice(&event.payload.json)
            .map_err(|error| Problem::internal(format!("payload of event {}: {error}", event.event_id)))?;
        Ok(Self {
            event_id: event.event_id,
            event_type: event.event_type.name.clone(),
            occurred_at: event.occurred_at,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            aggregate_type: event.event_type.aggregate.clone(),
            aggregate_id: event.aggregate_id.clone(),
            sequence: event.sequence,
            user_id: event.user_id.clone(),
            schema_version: event.event_type.version,
            tags: event.tags.clone(),
            offsets: event.offsets().into_iter().map(|(channel, offset)| (channel.to_string(), offset)).collect(),
            payload,
        })
    }

    pub fn all<'a>(events: impl IntoIterator<Item = &'a Arc<Event>>) -> Result<Vec<Self>, Problem> {
        events.into_iter().map(|event| Self::new(event)).collect()
    }
}

/// A page of events.
#[derive(Serialize, ToSchema)]
pub struct EventPage {
    pub items: Vec<EventView>,
    /// Where the next page begins; null at the end.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventListParams {
    /// An event type, e.g. `job.completed`.
    #[param(min_length = 1)]
    r#type: Option<String>,
    /// An aggregate type, or `type:id` for one aggregate, e.g. `job:0199...`.
    #[param(min_length = 1, example = "job")]
    aggregate: Option<String>,
    /// Whose events; others than one's own for operators and auditors.
    #[param(min_length = 1)]
    user: Option<String>,
    /// Occurred at or after this time.
    since: Option<Timestamp>,
    /// Occurred before this time.
    until: Option<Timestamp>,
    /// `next_cursor` of the page before.
    #[param(min_length = 1)]
    cursor: Option<String>,
    /// Events of a page, at most.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// The history, newest first.
///
/// Users see events of what is theirs, without the audit trail, so a page may have fewer
/// items than its limit; only a null `next_cursor` says that it is the last one.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    operation_id = "listEvents",
    tag = "events",
    params(EventListParams),
    responses((status = 200, description = "A page", body = EventPage)),
)]
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    Params(params): Params<EventListParams>,
) -> Result<Json<EventPage>, Problem> {
    let limit = page_size(params.limit)?;
    let before = params.cursor.map(|cursor| cursor::decode(List::Events, &cursor)).transpose()?;
    if let Some(name) = &params.r#type
        && state.service.factory().catalogue().get(name).is_none()
    {
        let message = format!("'{name}' is no event type of this gateway; GET /api/v1/catalogue lists them");
        return Err(Problem::field("type", "unknown_value", message));
    }
    let (aggregate_type, aggregate_id) = match params.aggregate {
        Some(aggregate) => match aggregate.split_once(':') {
            Some((kind, id)) => (Some(kind.to_owned()), Some(id.to_owned())),
            None => (Some(aggregate), None),
        },
        None => (None, None),
    };
    let filter = EventFilter {
        event_type: params.r#type,
        aggregate_type,
        aggregate_id,
        user: visible_user(&caller.principal, params.user)?,
        since: params.since,
        until: params.until,
    };
    // One more than asked tells whether there is a next page.
    let mut found = state.service.store().events(&filter, Page { before, limit: limit + 1 }).await.map_err(store)?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = if more { found.last().map(|event| cursor::encode(List::Events, event.position)) } else { None };
    let items = EventView::all(found.iter().filter(|event| caller.principal.may_see(event)))?;
    Ok(Json(EventPage { items, next_cursor }))
}

/// Where one event is: every leg with its state, attempts and position.
#[utoipa::path(
    get,
    path = "/api/v1/events/{id}/deliveries",
    operation_id = "getEventDeliveries",
    tag = "ledger",
    params(("id" = Id, Path, description = "The event")),
    responses((status = 200, description = "A page of one event", body = DeliveriesPage)),
)]
pub async fn deliveries(
    State(state): State<Arc<AppState>>,
    caller: Caller<Readers>,
    PathId(id): PathId,
) -> Result<Json<DeliveriesPage>, Problem> {
    let found = state.ledger.event(&caller.principal, id).await?;
    Ok(Json(DeliveriesPage { items: vec![found], next_cursor: None }))
}
