//! What this gateway knows: agents and event types.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::extract::{Anyone, Caller};
use super::problem::Problem;
use crate::domain::catalogue::{Audience, EventType};
use crate::domain::job::RunnerKind;
use crate::domain::{Broker, Role};
use crate::service::agents::Dataset;

/// A configured agent.
#[derive(Serialize, ToSchema)]
#[schema(as = Agent)]
pub struct AgentView {
    #[schema(value_type = String)]
    name: Arc<str>,
    runner: RunnerKind,
    description: String,
    /// JSON Schema of a job's `params`.
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    params_schema: serde_json::Value,
    /// What it can work on.
    datasets: Vec<Dataset>,
    /// Any `dataset_id` goes: the data is elsewhere.
    any_dataset: bool,
    cost_per_gpu_hour_usd: f64,
}

/// All configured agents.
#[derive(Serialize, ToSchema)]
pub struct AgentList {
    items: Vec<AgentView>,
}

/// The agents that jobs can ask for, with their parameters and datasets.
#[utoipa::path(
    get,
    path = "/api/v1/agents",
    operation_id = "listAgents",
    tag = "jobs",
    responses((status = 200, description = "All of them", body = AgentList)),
)]
pub async fn agents(State(state): State<Arc<AppState>>, _: Caller<Anyone>) -> Json<AgentList> {
    let agents = state.service.agents();
    let mut items = Vec::new();
    for agent in agents.iter() {
        items.push(AgentView {
            name: agent.name.clone(),
            runner: agent.runner,
            description: agent.description.clone(),
            params_schema: agent.params_schema.clone(),
            datasets: agents.datasets_of(agent).await,
            any_dataset: agent.any_dataset,
            cost_per_gpu_hour_usd: agent.cost_per_gpu_hour_usd,
        });
    }
    Json(AgentList { items })
}

/// Where events of a type go, with `{field}` placeholders of the payload.
#[derive(Serialize, ToSchema)]
pub struct RouteView {
    broker: Broker,
    /// Exchange, topic or subject.
    target: String,
    /// Routing key or record key.
    key: String,
}

/// A type of event.
#[derive(Serialize, ToSchema)]
#[schema(as = EventType)]
pub struct EventTypeView {
    #[schema(value_type = String)]
    name: Arc<str>,
    #[schema(minimum = 1)]
    version: u32,
    #[schema(value_type = String)]
    aggregate: Arc<str>,
    /// `aggregate`: in sequence on its way; `none`.
    #[schema(value_type = String)]
    order: &'static str,
    /// Who sees it live: `job`, `user`, `role:operator`.
    #[schema(value_type = Vec<String>)]
    audience: Vec<&'static str>,
    /// Asks for something instead of saying that it happened.
    command: bool,
    /// Roles that may post it to /events.
    ingest: Vec<Role>,
    routes: Vec<RouteView>,
    /// Avro schema of the whole record.
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    schema: serde_json::Value,
}

/// Every type of event this gateway knows.
#[derive(Serialize, ToSchema)]
pub struct CatalogueView {
    items: Vec<EventTypeView>,
}

/// The types of event this gateway knows: schema, routes, audience, who may post them.
#[utoipa::path(
    get,
    path = "/api/v1/catalogue",
    operation_id = "getCatalogue",
    tag = "events",
    responses((status = 200, description = "All of them, by name", body = CatalogueView)),
)]
pub async fn catalogue(State(state): State<Arc<AppState>>, _: Caller<Anyone>) -> Result<Json<CatalogueView>, Problem> {
    let types = state.service.factory().catalogue().types();
    Ok(Json(CatalogueView { items: types.map(|event_type| view(event_type)).collect::<Result<_, _>>()? }))
}

fn view(event_type: &EventType) -> Result<EventTypeView, Problem> {
    Ok(EventTypeView {
        name: event_type.name.clone(),
        version: event_type.version,
        aggregate: event_type.aggregate.clone(),
        order: event_type.order.as_str(),
        audience: audience(event_type.audience),
        command: event_type.command,
        ingest: event_type.ingest.clone(),
        routes: event_type.route_templates().map(|(broker, target, key)| RouteView { broker, target, key }).collect(),
        schema: serde_json::from_str(event_type.schema_text())
            .map_err(|error| Problem::internal(format!("schema of {}: {error}", event_type.name)))?,
    })
}

fn audience(audience: Audience) -> Vec<&'static str> {
    let all = [(audience.job, "job"), (audience.user, "user"), (audience.operator, "role:operator")];
    all.into_iter().filter_map(|(sees, name)| sees.then_some(name)).collect()
}
