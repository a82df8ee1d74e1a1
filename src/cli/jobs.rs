//! `jobs submit | watch | list | cancel`.

use std::io::Read;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::exit::{Failure, Outcome};
use super::output::{Format, plain, print, print_json, table};
use super::session::Connection;
use super::{Global, watch};
use crate::client::{Api, ApiError};
use crate::domain::job::{Job, JobStatus, Priority, TaccSystem};
use crate::domain::{Id, Timestamp};

#[derive(Subcommand)]
pub enum Jobs {
    /// Submit a job; prints its id.
    Submit(Box<Submit>),
    /// Follow a job until it ends; exit code 0 if it completed, else 1.
    Watch(Watch),
    /// List jobs, the newest first.
    List(List),
    /// Cancel jobs.
    Cancel(Cancel),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  event-gateway jobs submit --agent AlphaCal --dataset alpha-cal/point-source-10ant.csv --watch
  event-gateway jobs submit --agent AnomalyDetection --dataset anomaly-detection/a.csv --params '{\"threshold\": 6}'
  event-gateway jobs submit --agent AlphaCal --dataset d.csv --params @params.json --gpus 2 --priority high")]
pub struct Submit {
    #[command(flatten)]
    connection: Connection,
    /// Which agent runs it; GET /api/v1/agents lists them.
    #[arg(long)]
    agent: String,
    /// The dataset it works on.
    #[arg(long, value_name = "ID")]
    dataset: String,
    /// A name to recognise it by.
    #[arg(long)]
    name: Option<String>,
    /// The agent's parameters: a JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-")]
    params: Option<String>,
    /// low, normal or high.
    #[arg(long)]
    priority: Option<Priority>,
    /// frontera, stampede3, lonestar6 or other.
    #[arg(long)]
    tacc_system: Option<TaccSystem>,
    #[arg(long)]
    nodes: Option<u32>,
    #[arg(long)]
    cores_per_node: Option<u32>,
    /// GPUs over all nodes.
    #[arg(long)]
    gpus: Option<u32>,
    #[arg(long)]
    memory_gb: Option<f64>,
    /// The job is ended when it runs longer.
    #[arg(long)]
    wall_minutes: Option<u32>,
    #[arg(long)]
    max_retries: Option<u32>,
    /// Makes sending it again harmless [default: a random one].
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Follow it until it ends.
    #[arg(long, short)]
    watch: bool,
}

#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    connection: Connection,
    id: Id,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  event-gateway jobs list --status RUNNING --status QUEUED
  event-gateway jobs list --agent AlphaCal --limit 500 --output json")]
pub struct List {
    #[command(flatten)]
    connection: Connection,
    /// QUEUED, RUNNING, COMPLETED, FAILED or CANCELLED. May be repeated.
    #[arg(long, value_delimiter = ',', value_parser = status)]
    status: Vec<JobStatus>,
    #[arg(long)]
    agent: Option<String>,
    /// Jobs of this user; for operators.
    #[arg(long)]
    owner: Option<String>,
    /// In the name or the id.
    #[arg(long, short)]
    query: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Args)]
pub struct Cancel {
    #[command(flatten)]
    connection: Connection,
    #[arg(required = true)]
    ids: Vec<Id>,
}

pub async fn run(command: Jobs, global: &Global) -> Outcome {
    match command {
        Jobs::Submit(command) => submit(*command, global.output).await,
        Jobs::Watch(command) => {
            let api = command.connection.sign_in().await?;
            watch::follow(&api, command.id, global.output).await
        }
        Jobs::List(command) => list(&command, global.output).await,
        Jobs::Cancel(command) => cancel(&command, global.output).await,
    }
}

async fn submit(command: Submit, output: Format) -> Outcome {
    let body = body(&command)?;
    let api = command.connection.sign_in().await?;
    let key = command.idempotency_key.unwrap_or_else(|| Id::new().to_string());
    let job: Job = submit_once(&api, &body, &key).await?;
    match (output, command.watch) {
        (Format::Json, false) => return print_json(&job),
        (Format::Json, true) => super::output::print_json_line(&json!({ "submitted": job }))?,
        (Format::Text, _) => print(&format!("{}\n", job.id))?,
    }
    if command.watch { watch::follow(&api, job.id, output).await } else { Ok(()) }
}

/// Sends the job until the gateway has answered; the key makes repeats harmless.
async fn submit_once(api: &Api, body: &Value, key: &str) -> Result<Job, ApiError> {
    const TRIES: u32 = 4;
    let mut tries = 0;
    loop {
        tries += 1;
        match api.json(api.post("jobs", body).header("idempotency-key", key)).await {
            Err(error) if error.is_temporary() && tries < TRIES => {
                let pause = error.retry_after().unwrap_or(Duration::from_millis(250 << tries));
                tokio::time::sleep(pause.min(Duration::from_secs(10))).await;
            }
            result => return result,
        }
    }
}

fn body(submit: &Submit) -> Result<Value, Failure> {
    let mut resources = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources.insert(name.to_owned(), value);
        }
    };
    set("num_nodes", submit.nodes.map(Value::from));
    set("cores_per_node", submit.cores_per_node.map(Value::from));
    set("gpu_count_total", submit.gpus.map(Value::from));
    set("memory_gb", submit.memory_gb.map(Value::from));
    set("wall_time_minutes", submit.wall_minutes.map(Value::from));
    let mut body = Map::from_iter([
        ("agent".to_owned(), Value::from(submit.agent.as_str())),
        ("dataset_id".to_owned(), Value::from(submit.dataset.as_str())),
    ]);
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    set("name", submit.name.as_deref().map(Value::from));
    set("priority", submit.priority.map(|priority| json!(priority)));
    set("tacc_system", submit.tacc_system.map(|system| json!(system)));
    set("max_retries", submit.max_retries.map(Value::from));
    set("params", submit.params.as_deref().map(params).transpose()?);
    set("resource_request", (!resources.is_empty()).then_some(Value::Object(resources)));
    Ok(Value::Object(body))
}

fn params(text: &str) -> Result<Value, Failure> {
    let wrong = |reason: String| Failure::usage(format!("--params: {reason}"));
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| wrong(format!("{path}: {error}")))?,
        None if text == "-" => {
            let mut read = String::new();
            std::io::stdin().read_to_string(&mut read).map_err(|error| wrong(error.to_string()))?;
            read
        }
        None => text.to_owned(),
    };
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("is not JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(wrong("must be a JSON object".to_owned())) }
}

fn status(text: &str) -> Result<JobStatus, String> {
    text.to_uppercase().parse()
}

/// A page of any list.
#[derive(Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

async fn list(command: &List, output: Format) -> Outcome {
    let api = command.connection.sign_in().await?;
    let mut jobs: Vec<Job> = Vec::new();
    let mut cursor: Option<String> = None;
    while jobs.len() < command.limit {
        let mut query: Vec<(&str, String)> = Vec::new();
        if !command.status.is_empty() {
            let all: Vec<&str> = command.status.iter().map(|status| status.as_str()).collect();
            query.push(("status", all.join(",")));
        }
        query.extend(command.agent.iter().map(|agent| ("agent", agent.clone())));
        query.extend(command.owner.iter().map(|owner| ("user", owner.clone())));
        query.extend(command.query.iter().map(|text| ("q", text.clone())));
        query.extend(cursor.iter().map(|cursor| ("cursor", cursor.clone())));
        query.push(("limit", (command.limit - jobs.len()).min(500).to_string()));
        let page: Page<Job> = api.json(api.get("jobs").query(&query)).await?;
        jobs.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    match output {
        Format::Json => print_json(&json!({ "items": jobs, "next_cursor": cursor })),
        Format::Text if jobs.is_empty() => {
            eprintln!("no jobs; submit one with: event-gateway jobs submit --agent A --dataset D");
            Ok(())
        }
        Format::Text => {
            let header = ["ID", "STATUS", "PROGRESS", "AGENT", "USER", "AGE", "NAME"];
            print(&table(&header, &jobs.iter().map(row).collect::<Vec<_>>()))
        }
    }
}

fn row(job: &Job) -> Vec<String> {
    let seconds = u64::try_from(Timestamp::now().ms_since(job.created_at) / 1000).unwrap_or(0);
    vec![
        job.id.to_string(),
        job.status.to_string(),
        job.progress.map(|progress| format!("{:.0} %", progress * 100.0)).unwrap_or_default(),
        plain(&job.agent),
        plain(&job.user_id),
        humantime::format_duration(Duration::from_secs(coarse(seconds))).to_string(),
        plain(&job.name),
    ]
}

/// Seconds without the parts that nobody reads: 3 days 4 hours, not 3 days 4 hours 12 s.
fn coarse(seconds: u64) -> u64 {
    let unit = match seconds {
        0..60 => 1,
        60..3_600 => 60,
        3_600..86_400 => 600,
        _ => 3_600,
    };
    seconds / unit * unit
}

async fn cancel(command: &Cancel, output: Format) -> Outcome {
    let api = command.connection.sign_in().await?;
    let mut results = Vec::new();
    let mut last_failure = None;
    for id in &command.ids {
        let path = Api::path(&["jobs", &id.to_string()]);
        match api.bytes(api.request(Method::DELETE, &path)).await {
            Ok(_) => results.push(json!({ "id": id, "accepted": true })),
            Err(error) => {
                results.push(json!({ "id": id, "accepted": false, "reason": error.to_string() }));
                if output == Format::Text {
                    eprintln!("{id}: {error}");
                }
                last_failure = Some(error);
            }
        }
        if output == Format::Text && last_failure.is_none() {
            print(&format!("{id}: cancel requested\n"))?;
        }
    }
    if output == Format::Json {
        print_json(&json!({ "items": results }))?;
    }
    match last_failure {
        None => Ok(()),
        Some(error) if command.ids.len() == 1 => Err(error.into()),
        Some(_) => Err(Failure::failed("not every job could be cancelled")),
    }
}
