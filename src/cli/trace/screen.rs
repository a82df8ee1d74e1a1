//! The audience: sockets of the log's users, as pages would open them. Each sees its
//! user's channel, joins some of the jobs that appear there, and checks that nothing is
//! missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::super::watch::{Joined, Update};
use super::board::Board;
use crate::client::{Incoming, Socket, SocketError};

const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What all screens have seen.
#[derive(Default)]
pub struct Seen {
    pub connected: AtomicI64,
    pub updates: AtomicU64,
    /// Offsets that never came, and no resync said so.
    pub gaps: AtomicU64,
    /// The gateway said "start over from this snapshot".
    pub resyncs: AtomicU64,
    pub reconnects: AtomicU64,
}

pub struct Screen {
    pub base: Url,
    pub token: String,
    /// Job channels open at a time.
    pub rooms: usize,
    pub board: Arc<Board>,
    pub seen: Arc<Seen>,
    /// By channel, the last offset shown.
    pub cursors: HashMap<String, i64>,
}

impl Screen {
    /// Watches until `stop`, over as many connections as it takes.
    pub async fn watch(mut self, stop: CancellationToken) {
        let mut first = true;
        while !stop.is_cancelled() {
            let auth = json!({ "token": self.token });
            let session = async {
                let socket = Socket::connect(&self.base, "/messaging", &auth, CONNECT_LIMIT).await?;
                if !std::mem::take(&mut first) {
                    self.seen.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                self.seen.connected.fetch_add(1, Ordering::Relaxed);
                let ended = self.session(socket).await;
                self.seen.connected.fetch_sub(1, Ordering::Relaxed);
                ended
            };
            tokio::select! {
                ended = session => {
                    if let Err(error) = ended {
                        self.board.complain(format!("socket: {error}"));
                    }
                }
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn session(&mut self, mut socket: Socket) -> Result<(), SocketError> {
        // Channel by id of the join or resume that asks for it.
        let mut asked: HashMap<u64, Option<String>> = HashMap::new();
        if !self.cursors.is_empty() {
            let resume = socket.emit_with_ack("resume", &json!({ "channels": self.cursors, "acks": true }));
            asked.insert(resume, None);
        }
        loop {
            match socket.next().await? {
                Incoming::Ack { id, data } => match asked.remove(&id) {
                    Some(Some(channel)) => self.joined(&channel, data)?,
                    Some(None) => {
                        let channels = data.get("channels").cloned().unwrap_or(data);
                        let Value::Object(channels) = channels else { continue };
                        for (channel, answer) in channels {
                            self.joined(&channel, answer)?;
                        }
                    }
                    None => {}
                },
                Incoming::Event(event) if event.name == "job_update" => {
                    let at = Instant::now();
                    let update: Update = serde_json::from_value(event.data).map_err(unreadable)?;
                    self.seen.updates.fetch_add(1, Ordering::Relaxed);
                    let (is_new, channel) = (self.advance(&update), update.channel.clone());
                    if is_new && channel.starts_with("user:") {
                        self.on_user_channel(&update, at, &mut socket, &mut asked);
                    }
                }
                Incoming::Event(event) if event.name == "resync" => {
                    self.seen.resyncs.fetch_add(1, Ordering::Relaxed);
                    if let (Some(channel), Some(to)) = (event.data["channel"].as_str(), event.data["to"].as_i64()) {
                        self.cursors.insert(channel.to_owned(), to);
                    }
                }
                Incoming::Event(_) => {}
            }
        }
    }

    /// A new event of one of the user's jobs.
    fn on_user_channel(
        &mut self,
        update: &Update,
        at: Instant,
        socket: &mut Socket,
        asked: &mut HashMap<u64, Option<String>>,
    ) {
        let Some(job) = update.job_id else { return };
        let room = format!("job:{job}");
        if update.r#type == "job.submitted" {
            self.board.job_on_screen(job, at);
            let rooms = self.cursors.keys().filter(|channel| channel.starts_with("job:")).count();
            if rooms < self.rooms {
                self.cursors.insert(room.clone(), 0);
                let join = json!({ "jobId": job, "lastOffset": 0, "acks": true });
                asked.insert(socket.emit_with_ack("join_job_channel", &join), Some(room));
            }
        } else if is_last(update) && self.cursors.remove(&room).is_some() {
            socket.emit_with_ack("leave_job_channel", &json!({ "jobId": job }));
        }
    }

    /// The answer to a join or resume: what was missed is shown like what comes live.
    fn joined(&mut self, channel: &str, answer: Value) -> Result<(), SocketError> {
        let joined: Joined = serde_json::from_value(answer).map_err(unreadable)?;
        if let Some(error) = joined.error {
            self.board.complain(format!("a channel was not joined: {} ({})", error.message, error.code));
            self.cursors.remove(channel);
            return Ok(());
        }
        if joined.resync.is_some() {
            self.seen.resyncs.fetch_add(1, Ordering::Relaxed);
            self.cursors.entry(channel.to_owned()).and_modify(|cursor| *cursor = joined.offset);
        }
        let at = Instant::now();
        for update in &joined.events {
            let is_new = self.advance(update);
            if let Some(job) = update.job_id
                && is_new
                && channel.starts_with("user:")
                && update.r#type == "job.submitted"
            {
                self.board.job_on_screen(job, at);
            }
        }
        Ok(())
    }

    /// Moves the channel's cursor; false for what was shown before or belongs to a room
    /// that has been left.
    fn advance(&mut self, update: &Update) -> bool {
        let is_user = update.channel.starts_with("user:");
        let cursor = match self.cursors.get_mut(&update.channel) {
            Some(cursor) => cursor,
            // The user's channel has no join: it begins with the first event that comes.
            None if is_user => self.cursors.entry(update.channel.clone()).or_insert(update.offset - 1),
            None => return false,
        };
        if update.offset <= *cursor {
            return false;
        }
        let missing = update.offset - *cursor - 1;
        *cursor = update.offset;
        self.seen.gaps.fetch_add(u64::try_from(missing).unwrap_or(0), Ordering::Relaxed);
        true
    }
}

fn is_last(update: &Update) -> bool {
    match update.r#type.as_str() {
        "job.completed" | "job.cancelled" => true,
        "job.failed" => update.data["final"] == json!(true),
        _ => false,
    }
}

fn unreadable(error: serde_json::Error) -> SocketError {
    SocketError::Protocol(error.to_string())
}
