//! Agents: the programs that jobs ask for, and who runs them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use config::{Value, ValueKind};
use serde::Deserialize;
use serde_json::json;

use super::setting::FromSetting;
use crate::agents::{self, SampleAgent};
use crate::domain::job::RunnerKind;

/// The token in a command that stands for this executable.
const SELF: &str = "{self}";

/// How an external agent's worker learns of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// It asks the worker API.
    Api,
    /// A JetStream message wakes it; it then claims through the worker API.
    Jetstream,
}

/// One configured agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    pub name: String,
    pub description: String,
    pub runner: RunnerKind,
    /// Program and arguments; `{self}` is this executable. Empty unless the runner is `process`.
    pub command: Vec<String>,
    /// JSON Schema of a job's `params`.
    pub params_schema: serde_json::Value,
    /// The agent's datasets: a directory below `runner.datasets_dir`; empty: all of it.
    pub datasets: PathBuf,
    /// A job may name any dataset, known here or not.
    pub any_dataset: bool,
    pub claim: Claim,
    /// `None`: `runner.cost_per_gpu_hour_usd`.
    pub cost_per_gpu_hour_usd: Option<f64>,
}

impl Agent {
    /// The command with `{self}` replaced by `this`.
    pub fn argv(&self, this: &Path) -> Vec<OsString> {
        self.command.iter().map(|part| if part == SELF { this.into() } else { part.into() }).collect()
    }

    /// The agents that ship with the gateway: the sample agents, and `external`.
    pub fn builtin() -> Vec<Agent> {
        let sample = |sample: &SampleAgent| Agent {
            name: sample.name.to_owned(),
            description: sample.description.to_owned(),
            runner: RunnerKind::Process,
            command: vec![SELF.to_owned(), "agent".to_owned(), sample.command.to_owned()],
            params_schema: (sample.params_schema)(),
            datasets: PathBuf::new(),
            any_dataset: false,
            claim: Claim::Api,
            cost_per_gpu_hour_usd: None,
        };
        let external = Agent {
            name: "external".to_owned(),
            description: "Runs elsewhere: a worker claims the job and reports through the worker API.".to_owned(),
            runner: RunnerKind::External,
            command: Vec::new(),
            params_schema: any_object(),
            datasets: PathBuf::new(),
            any_dataset: true,
            claim: Claim::Api,
            cost_per_gpu_hour_usd: None,
        };
        agents::ALL.iter().map(sample).chain([external]).collect()
    }
}

/// The agents of `[[runner.agents]]`, without the built-in ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agents(pub Vec<Agent>);

impl Agents {
    /// The built-in agents unless `with_builtin` is false, then these; a name given here
    /// replaces the built-in agent of that name.
    pub fn all(&self, with_builtin: bool) -> Vec<Agent> {
        let configured: BTreeSet<&str> = self.0.iter().map(|agent| agent.name.as_str()).collect();
        let builtin = if with_builtin { Agent::builtin() } else { Vec::new() };
        let kept = builtin.into_iter().filter(|agent| !configured.contains(agent.name.as_str()));
        kept.chain(self.0.iter().cloned()).collect()
    }
}

impl FromSetting for Agents {
    const KIND: &'static str = "[[runner.agents]] tables with name, runner, command and so on";

    fn from_value(value: &Value) -> Result<Self, String> {
        match &value.kind {
            ValueKind::Array(items) => {
                let tables = items.iter().map(|item| item.clone().try_deserialize());
                read(tables.map(|table| table.map_err(|error: config::ConfigError| error.to_string())))
            }
            ValueKind::String(text) => Self::from_text(text),
            _ => Err("is not a list of tables".to_owned()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let items: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(|error| format!("is not a JSON array: {error}"))?;
        read(items.into_iter().map(|item| serde_json::from_value(item).map_err(|error| error.to_string())))
    }
}

/// An agent as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    runner: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    command: Vec<String>,
    params_schema: Option<serde_json::Value>,
    #[serde(default)]
    datasets: PathBuf,
    #[serde(default)]
    any_dataset: bool,
    claim: Option<Claim>,
    cost_per_gpu_hour_usd: Option<f64>,
}

/// Reads all tables and says everything that is wrong with any of them.
fn read(tables: impl Iterator<Item = Result<Table, String>>) -> Result<Agents, String> {
    let (mut agents, mut wrong) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for (index, table) in tables.enumerate() {
        let agent = match table {
            Ok(table) => {
                let name = table.name.clone();
                if !names.insert(name.clone()) {
                    wrong.push(format!("agent {name}: there are two of this name"));
                }
                agent(table).map_err(|reasons| reasons.into_iter().map(|r| format!("agent {name}: {r}")).collect())
            }
            Err(reason) => Err(vec![format!("agent number {}: {reason}", index + 1)]),
        };
        match agent {
            Ok(agent) => agents.push(agent),
            Err(reasons) => wrong.extend::<Vec<_>>(reasons),
        }
    }
    if wrong.is_empty() { Ok(Agents(agents)) } else { Err(wrong.join("; ")) }
}

fn agent(table: Table) -> Result<Agent, Vec<String>> {
    let mut wrong = Vec::new();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if table.name.is_empty() || table.name.len() > 64 || !table.name.chars().all(fits) {
        wrong.push("name must be 1 to 64 letters, digits, '.', '_' or '-'".to_owned());
    }
    let runner = match table.runner.as_str() {
        "process" => RunnerKind::Process,
        "external" => RunnerKind::External,
        other => {
            let why = if other == "tapis" { "this version has no Tapis runner" } else { "there is no such runner" };
            wrong.push(format!("runner '{other}': {why}; use process or external"));
            RunnerKind::External
        }
    };
    let is_process = table.runner == "process";
    if is_process && table.command.first().is_none_or(String::is_empty) {
        wrong.push("a process needs command = [\"program\", \"argument\", ...]".to_owned());
    }
    if !is_process && !table.command.is_empty() {
        wrong.push("command is for runner = \"process\" only".to_owned());
    }
    if is_process && table.claim.is_some() {
        wrong.push("claim is for runner = \"external\" only".to_owned());
    }
    if is_process && table.any_dataset {
        wrong.push("any_dataset is for runner = \"external\" only: a process reads a file that exists".to_owned());
    }
    if table.datasets.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        wrong.push("datasets must be a path below runner.datasets_dir, without '..'".to_owned());
    }
    if table.cost_per_gpu_hour_usd.is_some_and(|cost| !(0.0..=10_000.0).contains(&cost)) {
        wrong.push("cost_per_gpu_hour_usd must be between 0 and 10000".to_owned());
    }
    let params_schema = params_schema(table.params_schema).unwrap_or_else(|reason| {
        wrong.push(format!("params_schema: {reason}"));
        any_object()
    });
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Agent {
        name: table.name,
        description: table.description,
        runner,
        command: table.command,
        params_schema,
        datasets: table.datasets,
        any_dataset: table.any_dataset,
        claim: table.claim.unwrap_or(Claim::Api),
        cost_per_gpu_hour_usd: table.cost_per_gpu_hour_usd,
    })
}

/// A schema given inline, or the path of a JSON file with it; none: any object.
fn params_schema(given: Option<serde_json::Value>) -> Result<serde_json::Value, String> {
    let schema = match given {
        None => return Ok(any_object()),
        Some(serde_json::Value::String(path)) => {
            let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
            serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?
        }
        Some(inline) => inline,
    };
    jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    Ok(schema)
}

fn any_object() -> serde_json::Value {
    json!({ "type": "object" })
}
