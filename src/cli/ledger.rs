//! `ledger`: where is my event?

use std::fmt::Write as _;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::Global;
use super::exit::{Failure, Outcome};
use super::jobs::Page;
use super::output::{Format, plain, print, print_json};
use super::session::Connection;
use crate::client::{Api, ApiError};
use crate::domain::Id;

#[derive(Args)]
#[command(after_help = "\
Each event is one line, each delivery it owes one line below:
  done      confirmed by the broker, or its effect is committed
  skipped   not owed, with the reason
  pending, retrying, parked   on its way
  dead      given up; later ones of its key wait behind it")]
pub struct Ledger {
    #[command(flatten)]
    connection: Connection,
    /// The id of a job or of an event.
    #[arg(value_name = "EVENT_OR_JOB")]
    id: Id,
}

/// An event and everything it owes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Delivered {
    pub event_id: Id,
    pub event_type: String,
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub sequence: i64,
    pub legs: Vec<Leg>,
}

/// One delivery obligation.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Leg {
    /// `broker`, `consumer` and so on.
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub target: Option<String>,
    pub state: String,
    #[serde(default)]
    pub attempts: i64,
    #[serde(default)]
    pub position: Option<String>,
    #[serde(default)]
    pub updated_at: Option<String>,
    #[serde(default)]
    pub last_error: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
}

impl Leg {
    /// Nothing is owed any more.
    pub fn is_settled(&self) -> bool {
        matches!(self.state.as_str(), "done" | "skipped")
    }
}

/// Every event of the ledger of `path`, e.g. `jobs/ID/deliveries`.
pub async fn deliveries(api: &Api, path: &str) -> Result<Vec<Delivered>, ApiError> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("limit", "500")];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page: Page<Delivered> = api.json(api.get(path).query(&query)).await?;
        all.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

pub async fn run(command: &Ledger, global: &Global) -> Outcome {
    let api = command.connection.sign_in().await?;
    let id = command.id.to_string();
    let of_job = deliveries(&api, &Api::path(&["jobs", &id, "deliveries"])).await;
    let mut events = match of_job {
        Err(error) if error.status().is_some_and(|status| status.as_u16() == 404) => {
            let of_event = deliveries(&api, &Api::path(&["events", &id, "deliveries"])).await;
            of_event.map_err(|error| match error.status() {
                Some(status) if status.as_u16() == 404 => {
                    Failure::failed(format!("there is no job and no event {id} that you may see"))
                }
                _ => error.into(),
            })?
        }
        other => other?,
    };
    events.sort_by_key(|event| event.event_id);
    match global.output {
        Format::Json => print_json(&serde_json::json!({ "items": events })),
        Format::Text => print(&text(&events)),
    }
}

fn text(events: &[Delivered]) -> String {
    let mut text = String::new();
    for event in events {
        let aggregate = format!("{}#{}", plain(&event.aggregate_type), event.sequence);
        let _ = writeln!(text, "{}  {:<24} {aggregate}", event.event_id, plain(&event.event_type));
        for leg in &event.legs {
            let target = leg.target.as_deref().map(|target| format!(" {target}")).unwrap_or_default();
            let mut line = format!("    {:<9} {} {}{target}", leg.state, leg.kind, leg.name);
            if let Some(position) = &leg.position {
                let _ = write!(line, " at {position}");
            }
            if leg.attempts > 1 {
                let _ = write!(line, ", {} attempts", leg.attempts);
            }
            if let Some(why) = leg.last_error.as_ref().or(leg.reason.as_ref()) {
                let _ = write!(line, ": {why}");
            }
            let _ = writeln!(text, "{}", plain(&line));
        }
    }
    let open = events.iter().flat_map(|event| &event.legs).filter(|leg| !leg.is_settled()).count();
    let legs: usize = events.iter().map(|event| event.legs.len()).sum();
    let _ = writeln!(text, "{} events, {legs} legs, {open} open", events.len());
    text
}
