//! Following one job over Socket.IO, through lost connections, without missing an event.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::exit::{Failure, Outcome};
use super::output::{Format, plain, print, print_json_line};
use super::session::CALL_LIMIT;
use crate::client::{Api, Incoming, Socket, SocketError};
use crate::domain::job::{Job, JobStatus};
use crate::domain::{Id, Timestamp};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// A connection that stays away longer ends the command.
const RECONNECT_LIMIT: Duration = Duration::from_secs(60);

/// A `job_update` as sockets get it.
#[derive(Clone, Debug, Deserialize)]
pub struct Update {
    pub event_id: Id,
    pub r#type: String,
    pub job_id: Option<Id>,
    pub timestamp: Timestamp,
    pub channel: String,
    pub offset: i64,
    #[serde(default)]
    pub data: Value,
}

/// The answer to joining or resuming a channel.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Joined {
    pub joined: bool,
    /// The channel's last offset, after `events`.
    pub offset: i64,
    pub events: Vec<Update>,
    /// Present when too much was missed: start over from its snapshot.
    pub resync: Option<Value>,
    pub error: Option<JoinError>,
}

/// Why a channel was not joined.
#[derive(Clone, Debug, Deserialize)]
pub struct JoinError {
    pub code: String,
    pub message: String,
}

/// Prints the job's events until it has ended. Ends well only if it completed.
pub async fn follow(api: &Api, id: Id, output: Format) -> Outcome {
    let mut watch = Watch { api, id, output, offset: 0, printed: HashSet::new() };
    let followed = async {
        let mut down_since: Option<tokio::time::Instant> = None;
        loop {
            let before = watch.offset;
            match watch.session().await {
                Ok(status) => return Ok(status),
                Err(SessionError::Fatal(failure)) => return Err(failure),
                Err(SessionError::Lost(error)) => {
                    // Whoever got something was connected: the limit is for one outage.
                    if watch.offset > before {
                        down_since = None;
                    }
                    let since = *down_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() > RECONNECT_LIMIT {
                        return Err(error.into());
                    }
                    eprintln!("{error}; connecting again");
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
        }
    };
    let status = tokio::select! {
        status = followed => status?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
    };
    match status {
        JobStatus::Completed => Ok(()),
        other => Err(Failure::failed(format!("the job is {other}"))),
    }
}

enum SessionError {
    Fatal(Failure),
    /// Worth connecting again.
    Lost(SocketError),
}

impl From<SocketError> for SessionError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Refused(_) => Self::Fatal(error.into()),
            other => Self::Lost(other),
        }
    }
}

struct Watch<'a> {
    api: &'a Api,
    id: Id,
    output: Format,
    offset: i64,
    printed: HashSet<Id>,
}

impl Watch<'_> {
    /// One connection; ends when the job has.
    async fn session(&mut self) -> Result<JobStatus, SessionError> {
        // Existence and ownership first: the refusal is clearer than a socket's.
        let job = self.job().await.map_err(SessionError::Fatal)?;
        let auth = json!({ "token": self.api.token() });
        let mut socket = Socket::connect(self.api.base(), "/messaging", &auth, CONNECT_LIMIT).await?;
        let join = json!({ "jobId": job.id, "lastOffset": self.offset, "acks": true });
        let answer = socket.call("join_job_channel", &join, CALL_LIMIT).await?;
        let joined: Joined = serde_json::from_value(answer)
            .map_err(|error| SessionError::Lost(SocketError::Protocol(error.to_string())))?;
        if let Some(error) = joined.error {
            return Err(SessionError::Fatal(Failure::failed(format!("the job cannot be joined: {}", error.message))));
        }
        if let Some(resync) = joined.resync {
            self.say_gap(&resync).map_err(SessionError::Fatal)?;
        }
        for update in joined.events {
            if let Some(status) = self.show(update)? {
                return Ok(status);
            }
        }
        self.offset = self.offset.max(joined.offset);
        // It may have ended without an event that is still kept.
        let job = self.job().await.map_err(SessionError::Fatal)?;
        if job.is_final() && self.printed.is_empty() {
            return Ok(job.status);
        }
        loop {
            let Incoming::Event(event) = socket.next().await? else { continue };
            match event.name.as_str() {
                "job_update" => {
                    let update: Update = serde_json::from_value(event.data)
                        .map_err(|error| SessionError::Lost(SocketError::Protocol(error.to_string())))?;
                    if update.channel == format!("job:{}", self.id)
                        && let Some(status) = self.show(update)?
                    {
                        socket.close().await;
                        return Ok(status);
                    }
                }
                "telemetry_update" if event.data["job_id"] == json!(self.id) && self.output == Format::Json => {
                    print_json_line(&event.data).map_err(SessionError::Fatal)?;
                }
                "resync" if event.data["channel"] == json!(format!("job:{}", self.id)) => {
                    self.offset = event.data["to"].as_i64().unwrap_or(self.offset);
                    self.say_gap(&event.data).map_err(SessionError::Fatal)?;
                    let job = self.job().await.map_err(SessionError::Fatal)?;
                    if job.is_final() {
                        return Ok(job.status);
                    }
                }
                "auth_expiring" => eprintln!("the token expires at {}", event.data["at"]),
                _ => {}
            }
        }
    }

    async fn job(&self) -> Result<Job, Failure> {
        Ok(self.api.json(self.api.get(&Api::path(&["jobs", &self.id.to_string()]))).await?)
    }

    fn say_gap(&self, resync: &Value) -> Outcome {
        match self.output {
            Format::Json => print_json_line(&json!({ "resync": resync })),
            Format::Text => print("…  some updates were skipped\n"),
        }
    }

    /// Prints an update once; the status the job has ended with, if it has.
    fn show(&mut self, update: Update) -> Result<Option<JobStatus>, SessionError> {
        self.offset = self.offset.max(update.offset);
        if !self.printed.insert(update.event_id) {
            return Ok(None);
        }
        let shown = match self.output {
            Format::Json => print_json_line(&json!({
                "event_id": update.event_id, "type": update.r#type, "job_id": update.job_id,
                "timestamp": update.timestamp, "offset": update.offset, "data": update.data,
            })),
            Format::Text => print(&line(&update)),
        };
        shown.map_err(SessionError::Fatal)?;
        Ok(match update.r#type.as_str() {
            "job.completed" => Some(JobStatus::Completed),
            "job.cancelled" => Some(JobStatus::Cancelled),
            "job.failed" if update.data["final"] == json!(true) => Some(JobStatus::Failed),
            _ => None,
        })
    }
}

/// `09:30:00.123  RUNNING  25 %  fitting gains`
fn line(update: &Update) -> String {
    let data = &update.data;
    let text = |name: &str| data[name].as_str().map(plain).unwrap_or_default();
    let what = match update.r#type.as_str() {
        "job.status.changed" => {
            let progress = data["progress"].as_f64().map(|p| format!("  {:.0} %", p * 100.0)).unwrap_or_default();
            let reason = data["reason"].as_str().map(|reason| format!("  {}", plain(reason))).unwrap_or_default();
            format!("{}{progress}{reason}", text("new_status"))
        }
        "job.submitted" => format!("submitted: {} on {}", text("agent"), text("dataset_id")),
        "job.completed" => {
            let seconds = data["execution_time_ms"].as_f64().unwrap_or(0.0) / 1000.0;
            format!("completed in {seconds:.1} s: {}", text("output_location"))
        }
        "job.failed" => {
            let retry = data["next_retry_timestamp"].as_str().map(|at| format!("; next attempt at {}", plain(at)));
            format!("failed: {} ({}){}", text("error_message"), text("error_code"), retry.unwrap_or_default())
        }
        "job.cancelled" => format!("cancelled by {}: {}", text("cancelled_by"), text("reason")),
        other => plain(other),
    };
    let time = update.timestamp.to_string();
    format!("{}  {what}\n", time.get(11..23).unwrap_or(&time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_one_line_that_cannot_control_the_terminal() {
        let update = Update {
            event_id: Id::new(),
            r#type: "job.status.changed".to_owned(),
            job_id: None,
            timestamp: Timestamp::parse("2026-11-21T09:30:00.123Z").unwrap(),
            channel: String::new(),
            offset: 2,
            data: json!({"new_status": "RUNNING", "progress": 0.25, "reason": "fit\u{1b}[2J\nting"}),
        };
        assert_eq!(line(&update), "09:30:00.123  RUNNING  25 %  fit [2J ting\n");
    }
}
