//! Joins, resumes and resyncs: how a socket gets from what it knows to what is live.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::frame::Frame;
use super::hub::OPERATORS;
use super::packet;
use super::request::{Failure, Joined, ResyncNotice, Resynced, SnapshotBody};
use super::room::Room;
use super::session::{RETRY, Session};
use super::update::Update;
use crate::domain::{Channel, Id};
use crate::store::{ChannelState, Replay, StoreError};
use crate::telemetry::facts::SocketResynced;
use crate::telemetry::metrics::Resync;

/// How often a head is read again that another join has overtaken.
pub(super) const ATTEMPTS: usize = 5;
/// Channels that get their snapshots together after a slow reader has read again.
const RECOVERED_AT_ONCE: usize = 8;

/// A channel and the last offset the client has.
pub(super) type Wanted = (Channel, Option<i64>);

impl Session {
    /// Joins channels, buffering first. Answer them, then call [`Session::go_live`].
    pub async fn join(&mut self, wanted: &[Wanted]) -> BTreeMap<String, (Joined, Option<ChannelState>)> {
        let mut answers = BTreeMap::new();
        let mut allowed = Vec::new();
        for (channel, cursor) in wanted {
            match self.check(channel).await {
                Ok(owner) => allowed.push((channel.clone(), *cursor, owner)),
                Err(error) => {
                    let room = channel.to_string();
                    answers.insert(room.clone(), (Joined::failed(Some(room), error), None));
                }
            }
        }
        let mut entered = Vec::new();
        let mut members = self.job_rooms();
        for (channel, cursor, owner) in allowed {
            let name = channel.to_string();
            let known = self.rooms.contains_key(&channel);
            let counts = !known && matches!(channel, Channel::Job(_));
            if counts && members >= self.shared.options.max_rooms {
                let message = format!("a socket may be in {} rooms; leave one first", self.shared.options.max_rooms);
                let error = Failure::new("too_many_rooms", message);
                answers.insert(name.clone(), (Joined::failed(Some(name), error), None));
                continue;
            }
            members += usize::from(counts);
            let room = self.shared.hub.enter(&channel, &self.link);
            if let Some(owner) = owner {
                room.set_owner(owner);
            }
            // It starts anew here and now.
            self.lost.remove(&channel);
            self.rooms.insert(channel.clone(), room.clone());
            entered.push(Entered { channel, cursor, room, known });
        }
        match self.read(&entered).await {
            Ok(states) => {
                for (entered, state) in entered.iter().zip(states) {
                    let joined = self.joined(entered, &state);
                    answers.insert(entered.channel.to_string(), (joined, Some(state)));
                }
            }
            Err(failure) => {
                for entered in entered {
                    let name = entered.channel.to_string();
                    if !entered.room.abandon(&self.link, entered.known, &self.shared) {
                        self.leave(&entered.channel);
                    }
                    answers.insert(name.clone(), (Joined::failed(Some(name), failure.clone()), None));
                }
            }
        }
        answers
    }

    /// After the answer is in the queue: what is newer than it follows.
    pub fn go_live(&mut self, states: impl Iterator<Item = ChannelState>) {
        for state in states {
            if let Some(room) = self.rooms.get(&state.channel).cloned() {
                self.complete(&state.channel, &room, state.head);
            }
        }
    }

    fn job_rooms(&self) -> usize {
        self.rooms.keys().filter(|channel| matches!(channel, Channel::Job(_))).count()
    }

    /// May this client see the channel? What is somebody else's does not exist. Returns a
    /// job's owner.
    async fn check(&self, channel: &Channel) -> Result<Option<Arc<str>>, Failure> {
        match channel {
            Channel::User(user) if self.principal.may_read(user) => Ok(None),
            Channel::User(_) => Err(Failure::new("not_found", "there is no such channel")),
            Channel::Job(id) => {
                let owner = self.owner(channel, *id).await?;
                match owner {
                    Some(owner) if self.principal.may_read(&owner) => Ok(Some(owner)),
                    _ => Err(Failure::new("not_found", "there is no such job")),
                }
            }
        }
    }

    async fn owner(&self, channel: &Channel, job: Id) -> Result<Option<Arc<str>>, Failure> {
        if let Some(owner) = self.shared.hub.room(channel).and_then(|room| room.owner().cloned()) {
            return Ok(Some(owner));
        }
        match self.shared.store.job(job).await {
            Ok(job) => Ok(job.map(|job| job.user_id)),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Head and replay of all entered channels in one snapshot, none older than what the
    /// rooms have delivered meanwhile.
    async fn read(&self, entered: &[Entered]) -> Result<Vec<ChannelState>, Failure> {
        let wanted: Vec<Wanted> = entered.iter().map(|entered| (entered.channel.clone(), entered.cursor)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        for _ in 0..ATTEMPTS {
            let states = self
                .shared
                .store
                .channels(&wanted, self.shared.options.replay)
                .await
                .map_err(|error| unavailable(&error))?;
            let mut covered = true;
            for (entered, state) in entered.iter().zip(&states) {
                if !entered.room.covers(&self.link, state.head) {
                    covered = false;
                    // Buffer from the start: an overflowed buffer is of no use.
                    entered.room.enter(&self.link);
                }
            }
            if covered {
                return Ok(states);
            }
        }
        Err(Failure::unavailable())
    }

    fn joined(&self, entered: &Entered, state: &ChannelState) -> Joined {
        let name = state.channel.to_string();
        let mut joined =
            Joined { joined: true, room: Some(name.clone()), offset: Some(state.head), ..Joined::default() };
        match &state.replay {
            Replay::Events(events) => {
                joined.events = events
                    .iter()
                    .filter_map(|event| {
                        let update = Update::of_event(event);
                        let envelope = update.envelope(&name, update.offset_in(&state.channel));
                        RawValue::from_string(envelope).ok()
                    })
                    .collect();
                self.shared.metrics.socket_deliveries.inc_by(joined.events.len() as u64);
            }
            Replay::Snapshot(snapshot) => {
                if let Some(cursor) = entered.cursor {
                    let reason = self.reason(cursor, state.head);
                    self.resynced(&state.channel, reason);
                }
                joined.resync =
                    Some(Resynced { from: entered.cursor, to: state.head, snapshot: snapshot.clone().into() });
            }
        }
        joined
    }

    /// Why a client with this cursor got a snapshot.
    fn reason(&self, cursor: i64, head: i64) -> Resync {
        if cursor < 0 || cursor > head { Resync::UnknownOffset } else { Resync::TooFarBehind }
    }

    fn resynced(&self, channel: &Channel, reason: Resync) {
        SocketResynced { user_id: &self.principal.user_id, channel, reason }.record(&self.shared.metrics);
    }

    /// The reader reads again: every channel it has lost starts anew with a snapshot.
    pub async fn recover(&mut self) {
        for (channel, (last, why)) in self.link.recover() {
            // Where it was before counts, if it was lost twice.
            self.leave(&channel);
            self.lost.entry(channel).or_insert((last, why));
        }
        if std::mem::take(&mut self.lost_operators) {
            let notice =
                ResyncNotice { channel: OPERATORS.into(), from: None, to: None, snapshot: SnapshotBody::Nothing {} };
            self.link.push(&Frame::kept(packet::event("resync", &packet::json(&notice))));
            self.shared.metrics.socket_resyncs[Resync::SlowReader].inc();
            self.enter_operators();
        }
        let some: Vec<Channel> = self.lost.keys().take(RECOVERED_AT_ONCE).cloned().collect();
        let mut entered = Vec::with_capacity(some.len());
        for channel in some {
            let room = self.shared.hub.enter(&channel, &self.link);
            self.rooms.insert(channel.clone(), room.clone());
            entered.push(Entered { channel, cursor: None, room, known: false });
        }
        match self.read(&entered).await {
            Ok(states) => {
                self.retry_at = None;
                for state in states {
                    self.resync(state);
                }
            }
            Err(_) => {
                for entered in entered {
                    self.leave(&entered.channel);
                }
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    fn resync(&mut self, state: ChannelState) {
        let Some((from, why)) = self.lost.remove(&state.channel) else { return };
        let snapshot = match state.replay {
            Replay::Snapshot(snapshot) => snapshot.into(),
            Replay::Events(_) => SnapshotBody::Nothing {},
        };
        let notice =
            ResyncNotice { channel: state.channel.to_string(), from: Some(from), to: Some(state.head), snapshot };
        self.link.push(&Frame::kept(packet::event("resync", &packet::json(&notice))));
        self.resynced(&state.channel, why);
        if let Some(room) = self.rooms.get(&state.channel).cloned() {
            self.complete(&state.channel, &room, state.head);
        }
    }
}

/// A channel whose updates are being buffered.
struct Entered {
    channel: Channel,
    cursor: Option<i64>,
    room: Arc<Room>,
    /// The socket was in this room before.
    known: bool,
}

fn unavailable(error: &StoreError) -> Failure {
    tracing::warn!(%error, "a join could not read the store");
    Failure::unavailable()
}
