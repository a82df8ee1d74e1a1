//! The audience: sockets of the log's users, as pages would open them. Each sees its
//! user's channel, joins some of the jobs that appear there, and checks that nothing is
//! missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
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
    /// Connections that went on where a lost one had ended.
    pub reconnects: AtomicU64,
}

pub struct Screen {
    pub base: Url,
    /// Whose screen it is; the token is theirs.
    pub user: String,
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
        loop {
            let ended = tokio::select! {
                ended = self.connection() => ended,
                () = stop.cancelled() => return,
            };
            if let Err(error) = ended {
                self.board.complain(format!("socket: {error}"));
            }
            tokio::select! {
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection, from where the last one ended.
    async fn connection(&mut self) -> Result<(), SocketError> {
        let auth = json!({ "token": self.token });
        let mut socket = Socket::connect(&self.base, "/messaging", &auth, CONNECT_LIMIT).await?;
        let mut channels: HashMap<String, Option<i64>> =
            self.cursors.iter().map(|(channel, cursor)| (channel.clone(), Some(*cursor))).collect();
        // The first time there is no cursor: the answer says where the channel stands.
        channels.entry(format!("user:{}", self.user)).or_default();
        let resume = json!({ "channels": channels, "acks": true });
        let is_first = self.cursors.is_empty();
        let Resumed { channels } = read(socket.call("resume", &resume, CONNECT_LIMIT).await?)?;
        if !is_first {
            self.seen.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        for (channel, answer) in channels {
            self.joined(&channel, answer);
        }
        self.seen.connected.fetch_add(1, Ordering::Relaxed);
        let ended = self.follow(&mut socket).await;
        self.seen.connected.fetch_sub(1, Ordering::Relaxed);
        ended
    }

    async fn follow(&mut self, socket: &mut Socket) -> Result<(), SocketError> {
        // The room of each join that is not answered yet.
        let mut asked: HashMap<u64, String> = HashMap::new();
        loop {
            match socket.next().await? {
                Incoming::Ack { id, data } => {
                    if let Some(room) = asked.remove(&id) {
                        self.joined(&room, read(data)?);
                    }
                }
                Incoming::Event(event) if event.name == "job_update" => {
                    let at = Instant::now();
                    let update: Update = read(event.data)?;
                    self.seen.updates.fetch_add(1, Ordering::Relaxed);
                    if self.advance(&update) && update.channel.starts_with("user:") {
                        self.on_user_channel(&update, at, socket, &mut asked);
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
    fn on_user_channel(&mut self, update: &Update, at: Instant, socket: &mut Socket, asked: &mut HashMap<u64, String>) {
        let Some(job) = update.job_id else { return };
        let room = format!("job:{job}");
        if update.r#type == "job.submitted" {
            self.board.job_on_screen(job, at);
            let rooms = self.cursors.keys().filter(|channel| channel.starts_with("job:")).count();
            if rooms < self.rooms {
                self.cursors.insert(room.clone(), 0);
                let join = json!({ "jobId": job, "lastOffset": 0, "acks": true });
                asked.insert(socket.emit_with_ack("join_job_channel", &join), room);
            }
        } else if is_last(update) && self.cursors.remove(&room).is_some() {
            socket.emit_with_ack("leave_job_channel", &json!({ "jobId": job }));
        }
    }

    /// The answer to a join or resume: what was missed is shown like what comes live.
    fn joined(&mut self, channel: &str, answer: Joined) {
        if let Some(error) = answer.error {
            self.board.complain(format!("a channel was not joined: {} ({})", error.message, error.code));
            self.cursors.remove(channel);
            return;
        }
        if answer.resync.is_some() {
            // Without a cursor the snapshot was asked for.
            if self.cursors.contains_key(channel) {
                self.seen.resyncs.fetch_add(1, Ordering::Relaxed);
            }
            self.cursors.insert(channel.to_owned(), answer.offset);
        }
        let at = Instant::now();
        for update in &answer.events {
            let is_new = self.advance(update);
            if let Some(job) = update.job_id
                && is_new
                && channel.starts_with("user:")
                && update.r#type == "job.submitted"
            {
                self.board.job_on_screen(job, at);
            }
        }
    }

    /// Moves the channel's cursor; false for what was shown before or belongs to a room
    /// that has been left.
    fn advance(&mut self, update: &Update) -> bool {
        let Some(cursor) = self.cursors.get_mut(&update.channel) else { return false };
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

/// The answer to `resume`.
#[derive(Deserialize)]
struct Resumed {
    channels: HashMap<String, Joined>,
}

fn read<T: DeserializeOwned>(data: Value) -> Result<T, SocketError> {
    serde_json::from_value(data).map_err(|error| SocketError::Protocol(error.to_string()))
}
