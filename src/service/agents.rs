//! The configured agents: what a job may ask for, and with which parameters.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::error::FieldError;
use crate::domain::job::RunnerKind;

/// A dataset an agent can work on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Dataset {
    /// The relative path that `dataset_id` names.
    pub id: String,
    pub bytes: u64,
    pub description: String,
}

/// Where datasets are looked up. Blocking: called off the async threads.
pub trait Datasets: Send + Sync + 'static {
    /// All datasets of one agent.
    fn list(&self, agent: &str) -> Vec<Dataset>;
    /// Is there such a dataset, within the configured directory?
    fn check(&self, agent: &str, id: &str) -> Result<(), String>;
}

/// One configured agent.
#[derive(Debug)]
pub struct Agent {
    pub name: Arc<str>,
    pub runner: RunnerKind,
    pub description: String,
    /// JSON Schema of `params`.
    pub params_schema: Value,
    validator: jsonschema::Validator,
    /// Any `dataset_id` goes: the data is elsewhere.
    pub any_dataset: bool,
    /// Claimed through the worker API: nobody is woken by NATS.
    pub claim_api: bool,
    pub cost_per_gpu_hour_usd: f64,
}

/// How an agent is configured.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub name: String,
    pub runner: RunnerKind,
    pub description: String,
    pub params_schema: Value,
    pub any_dataset: bool,
    pub claim_api: bool,
    pub cost_per_gpu_hour_usd: f64,
}

/// All agents by name.
pub struct Agents {
    agents: BTreeMap<Arc<str>, Arc<Agent>>,
    datasets: Arc<dyn Datasets>,
}

impl Agents {
    /// # Errors
    /// Names the agents whose `params_schema` is no JSON Schema.
    pub fn new(options: Vec<AgentOptions>, datasets: Arc<dyn Datasets>) -> Result<Self, Vec<String>> {
        let mut agents = BTreeMap::new();
        let mut problems = Vec::new();
        for option in options {
            match jsonschema::validator_for(&option.params_schema) {
                Ok(validator) => {
                    let name: Arc<str> = option.name.into();
                    let agent = Agent {
                        name: name.clone(),
                        runner: option.runner,
                        description: option.description,
                        params_schema: option.params_schema,
                        validator,
                        any_dataset: option.any_dataset,
                        claim_api: option.claim_api,
                        cost_per_gpu_hour_usd: option.cost_per_gpu_hour_usd,
                    };
                    agents.insert(name, Arc::new(agent));
                }
                Err(error) => problems.push(format!("runner.agents: params_schema of {}: {error}", option.name)),
            }
        }
        if problems.is_empty() { Ok(Self { agents, datasets }) } else { Err(problems) }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Agent>> {
        self.agents.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents.values()
    }

    /// Agents whose jobs nobody is woken for.
    pub fn api_claimed(&self) -> HashSet<Arc<str>> {
        self.agents.values().filter(|agent| agent.claim_api).map(|agent| agent.name.clone()).collect()
    }

    pub fn names_of(&self, runner: RunnerKind) -> Vec<Arc<str>> {
        self.agents.values().filter(|agent| agent.runner == runner).map(|agent| agent.name.clone()).collect()
    }

    /// The datasets of an agent, read off the async threads.
    pub async fn datasets_of(&self, agent: &Arc<Agent>) -> Vec<Dataset> {
        if agent.any_dataset {
            return Vec::new();
        }
        let (datasets, name) = (self.datasets.clone(), agent.name.clone());
        tokio::task::spawn_blocking(move || datasets.list(&name)).await.unwrap_or_default()
    }

    /// Checks agent, dataset and parameters of a submission; `None` with errors appended
    /// when it is wrong.
    pub async fn check(
        &self,
        agent: &str,
        dataset_id: &str,
        params: &Value,
        errors: &mut Vec<FieldError>,
    ) -> Option<Arc<Agent>> {
        let Some(found) = self.agents.get(agent) else {
            let known: Vec<&str> = self.agents.keys().map(|name| &**name).collect();
            errors.push(FieldError::new(
                "agent",
                "unknown_agent",
                format!("'{agent}' is not configured; one of {}", known.join(", ")),
            ));
            return None;
        };
        for problem in found.validator.iter_errors(params).take(20) {
            let path = problem.instance_path().to_string().trim_start_matches('/').replace('/', ".");
            let field = if path.is_empty() { "params".to_owned() } else { format!("params.{path}") };
            // The value itself may be long, and each problem would repeat it.
            errors.push(FieldError::new(field, "params_schema", problem.masked().to_string()));
        }
        if dataset_id.is_empty() || dataset_id.len() > 500 || dataset_id.chars().any(char::is_control) {
            errors.push(FieldError::new(
                "dataset_id",
                "out_of_range",
                "must have 1 to 500 characters without control characters",
            ));
        } else if !found.any_dataset {
            let (datasets, name, id) = (self.datasets.clone(), found.name.clone(), dataset_id.to_owned());
            let checked = tokio::task::spawn_blocking(move || datasets.check(&name, &id)).await;
            if let Err(why) = checked.unwrap_or_else(|_| Err("the dataset could not be checked".into())) {
                errors.push(FieldError::new("dataset_id", "unknown_dataset", why));
            }
        }
        Some(found.clone())
    }
}
