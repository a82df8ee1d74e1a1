//! The task of one connection: lets the client in, answers it one request at a time, keeps
//! its queue moving, and ends its rights when its token does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engineioxide::{DisconnectReason, Str};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::frame::Frame;
use super::hub::UserSlot;
use super::link::{Link, Lost};
use super::packet::{self, Incoming};
use super::request::{Expiring, Token};
use super::room::Room;
use crate::auth::AuthError;
use crate::domain::{Channel, Principal, Role, Timestamp};
use crate::telemetry::metrics::Resync;

/// Refused tries to come in before the connection is closed.
const TRIES: u32 = 3;
/// A client that takes nothing for so long at the end has gone.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// How long a store that could not be read is left alone before the next try.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// A client that is in.
pub(super) struct Session {
    pub shared: Arc<Shared>,
    pub link: Arc<Link>,
    pub principal: Principal,
    pub rooms: HashMap<Channel, Arc<Room>>,
    pub is_operator: bool,
    /// Channels to be started anew with a snapshot, from which offset and why.
    pub lost: Lost,
    /// Lost the operators' room, which has no history.
    pub lost_operators: bool,
    /// Not before: the store could not be read.
    pub retry_at: Option<Instant>,
    pub last_seen: Option<Instant>,
    warned: bool,
    _slot: UserSlot,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client left the namespace; it may come in again.
    Left,
    /// The transport is gone.
    Gone,
    /// Its token has expired.
    Expired,
    /// It does not read.
    Stalled,
    Stopping,
}

/// Why a client is kept out.
struct Refusal {
    code: &'static str,
    message: String,
}

/// Runs one connection to its end.
pub(super) async fn run(shared: Arc<Shared>, link: Arc<Link>) {
    let mut tries = 0;
    loop {
        let waited = tokio::time::timeout(shared.options.connect_timeout, connect_packet(&link)).await;
        let Ok(Some(auth)) = waited else {
            link.close(DisconnectReason::TransportClose);
            break;
        };
        match Box::pin(admit(&shared, &link, auth)).await {
            Ok(session) => {
                let end = session.serve().await;
                tracing::debug!(link = link.id, ?end, "socket left");
                match end {
                    End::Left => {}
                    End::Gone => break,
                    End::Expired => {
                        // It would only come back with the same token by itself: it must not.
                        link.push(&Frame::kept(packet::disconnect()));
                    }
                    End::Stalled => {
                        link.close(DisconnectReason::HeartbeatTimeout);
                        break;
                    }
                    End::Stopping => {
                        // The transport is closed, not the namespace: clients then come
                        // back by themselves and resume.
                        link.close(DisconnectReason::ClosingServer);
                        break;
                    }
                }
            }
            Err(refusal) => {
                tracing::debug!(link = link.id, code = refusal.code, "socket refused: {}", refusal.message);
                let text = packet::connect_error(packet::NAMESPACE, refusal.code, &refusal.message);
                link.push(&Frame::kept(text));
                tries += 1;
                if tries >= TRIES || link.is_stopping() {
                    flush(&link, Instant::now() + Duration::from_secs(1)).await;
                    link.close(DisconnectReason::TransportClose);
                    break;
                }
            }
        }
    }
    shared.links.lock().remove(&link.id);
}

/// Waits for the client to ask for the namespace. `None`: it will not any more.
async fn connect_packet(link: &Arc<Link>) -> Option<Option<Str>> {
    loop {
        while let Some(incoming) = link.next_incoming() {
            match incoming {
                Incoming::Connect { auth } => return Some(auth),
                Incoming::ElsewhereConnect { namespace } => refuse_namespace(link, &namespace),
                // Late packets of a session that has just ended.
                Incoming::Request(_) | Incoming::Ack { .. } | Incoming::Disconnect => {}
            }
        }
        if link.is_closed() || link.is_stopping() {
            return None;
        }
        link.drain();
        link.woken().await;
    }
}

fn refuse_namespace(link: &Arc<Link>, namespace: &str) {
    let message = format!("there is no such namespace; the gateway's is {}", packet::NAMESPACE);
    link.push(&Frame::kept(packet::connect_error(namespace, "invalid_namespace", &message)));
}

/// Authenticates, counts, and greets.
async fn admit(shared: &Arc<Shared>, link: &Arc<Link>, auth: Option<Str>) -> Result<Session, Refusal> {
    let refuse = |code, message: &str| Err(Refusal { code, message: message.to_owned() });
    if shared.is_closing() {
        return refuse("shutting_down", "the gateway is stopping; connect again in a moment");
    }
    let Some(token) = token(link, auth.as_deref()) else {
        return refuse("unauthenticated", "no token: send auth: {token} with the handshake, or a Bearer header");
    };
    let principal = match shared.auth.authenticate(&token).await {
        Ok(principal) => principal,
        Err(error) => return Err(Refusal { code: auth_code(&error), message: error.to_string() }),
    };
    let unlimited = principal.has(Role::Operator) || principal.has(Role::Worker);
    let limit = (!unlimited).then_some(shared.options.max_connections_per_user);
    let Some(slot) = shared.hub.connect_user(&principal.user_id, limit) else {
        let limit = shared.options.max_connections_per_user;
        let message = format!("{} holds {limit} connections already; close one first", principal.user_id);
        return refuse("too_many_connections", &message);
    };
    let Some(engine) = link.engine() else { return refuse("gone", "the connection is gone") };
    link.push(&Frame::kept(packet::connected(&engine.id.to_string())));
    shared.metrics.sockets_connected.inc();
    let mut session = Session {
        shared: shared.clone(),
        link: link.clone(),
        principal,
        rooms: HashMap::new(),
        is_operator: false,
        lost: HashMap::new(),
        lost_operators: false,
        retry_at: None,
        last_seen: None,
        warned: false,
        _slot: slot,
    };
    session.enter_operators();
    session.enter_own_channel().await;
    Ok(session)
}

/// The handshake's `auth: {token}`, else a Bearer header.
fn token(link: &Link, auth: Option<&str>) -> Option<String> {
    let given: Option<Token> = auth.and_then(|auth| serde_json::from_str(auth).ok());
    if let Some(token) = given.and_then(|given| given.token) {
        return Some(token);
    }
    let engine = link.engine()?;
    let header = engine.req_parts.headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// What programs are told about a token that was not accepted.
pub(super) fn auth_code(error: &AuthError) -> &'static str {
    match error {
        AuthError::Expired => "token_expired",
        error if error.is_temporary() => "unavailable",
        _ => "invalid_token",
    }
}

impl Session {
    async fn serve(mut self) -> End {
        let mut progress = (self.link.progress(), Instant::now());
        loop {
            self.link.drain();
            if self.link.is_closed() {
                return End::Gone;
            }
            if self.link.is_stopping() {
                let deadline = Instant::now() + self.shared.options.shutdown_limit;
                flush(&self.link, deadline).await;
                return End::Stopping;
            }
            let now = Timestamp::now();
            if now >= self.principal.expires_at {
                return End::Expired;
            }
            self.warn_of_expiry(now);
            self.leave_if_slow();
            if self.may_recover() {
                Box::pin(self.recover()).await;
                continue;
            }
            if self.link.may_answer()
                && !self.link.is_overrun()
                && let Some(incoming) = self.link.next_incoming()
            {
                if Box::pin(self.take(incoming)).await {
                    return End::Left;
                }
                continue;
            }
            // A reader that takes nothing for so long is dead, whatever its TCP says.
            let now = Instant::now();
            let read = self.link.progress();
            if read != progress.0 || !self.link.is_waiting() {
                progress = (read, now);
            }
            let patience = self.shared.options.ping_interval + self.shared.options.ping_timeout;
            if now.duration_since(progress.1) >= patience {
                return End::Stalled;
            }
            let until = self.wake_at(progress.1 + patience);
            tokio::select! {
                () = self.link.woken() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// When there is something to do even if nobody wakes this task.
    fn wake_at(&self, stalled_at: Instant) -> Instant {
        let now = (Instant::now(), Timestamp::now());
        let at = |time: Timestamp| now.0 + Duration::from_millis(time.ms_since(now.1).unsigned_abs());
        let expiry = if self.warned { self.principal.expires_at } else { self.warning_time() };
        // A far future overflows the clock's arithmetic; an hour is as good.
        let mut until = at(expiry.min(now.1.plus_ms(3_600_000)));
        if self.link.is_waiting() {
            until = until.min(stalled_at);
        }
        if let Some(retry_at) = self.retry_at.filter(|at| *at > now.0) {
            until = until.min(retry_at);
        }
        until
    }

    fn warning_time(&self) -> Timestamp {
        let ahead = i64::try_from(self.shared.options.expiry_warning.as_millis()).unwrap_or(i64::MAX);
        self.principal.expires_at.plus_ms(ahead.saturating_neg())
    }

    fn warn_of_expiry(&mut self, now: Timestamp) {
        if self.warned || now < self.warning_time() {
            return;
        }
        self.warned = true;
        let at = Expiring { at: self.principal.expires_at };
        self.link.push(&Frame::kept(packet::event("auth_expiring", &packet::json(&at))));
    }

    /// A new token for the same user.
    pub fn renew(&mut self, principal: Principal) {
        self.principal = principal;
        self.warned = false;
    }

    /// Joins or leaves the operators as the token says.
    pub fn enter_operators(&mut self) {
        let operator = self.principal.has(Role::Operator);
        if operator && !self.is_operator {
            self.shared.hub.enter_operators(&self.link);
        } else if !operator && self.is_operator {
            self.shared.hub.leave_operators(&self.link);
        }
        self.is_operator = operator;
    }

    /// Everyone is in their own channel from the start, at its present head.
    async fn enter_own_channel(&mut self) {
        let channel = Channel::User(self.principal.user_id.clone());
        let room = self.shared.hub.enter(&channel, &self.link);
        self.rooms.insert(channel.clone(), room.clone());
        for _ in 0..super::join::ATTEMPTS {
            match self.shared.store.channel_heads(std::slice::from_ref(&channel)).await {
                Ok(heads) => {
                    let head = heads.first().copied().unwrap_or(0);
                    if room.covers(&self.link, head) {
                        self.complete(&channel, &room, head);
                        return;
                    }
                    room.enter(&self.link);
                }
                Err(error) => {
                    tracing::warn!(%error, "a user's channel could not be read; it is tried again");
                    break;
                }
            }
        }
        self.leave(&channel);
        self.lost.insert(channel, (0, Resync::TooFarBehind));
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// The client knows everything up to `head`: live from here on.
    pub fn complete(&mut self, channel: &Channel, room: &Arc<Room>, head: i64) {
        if !room.complete(&self.link, head, &self.shared) {
            self.rooms.remove(channel);
            self.shared.hub.leave(channel, &self.link);
        }
        if room.has_hole() {
            self.shared.hub.suspect(channel);
        }
    }

    pub fn leave(&mut self, channel: &Channel) -> Option<i64> {
        self.rooms.remove(channel)?;
        self.shared.hub.leave(channel, &self.link)
    }

    /// A reader that is too slow is out of all rooms at once; what it lost is kept as
    /// offsets only.
    fn leave_if_slow(&mut self) {
        if !self.link.is_overrun() || self.rooms.is_empty() && !self.is_operator {
            return;
        }
        let rooms = std::mem::take(&mut self.rooms);
        tracing::info!(user_id = %self.principal.user_id, rooms = rooms.len(), "a slow reader loses its rooms");
        for channel in rooms.into_keys() {
            if let Some(last) = self.shared.hub.leave(&channel, &self.link) {
                self.lost.entry(channel).or_insert((last, Resync::SlowReader));
            }
        }
        if self.is_operator {
            self.shared.hub.leave_operators(&self.link);
            self.is_operator = false;
            self.lost_operators = true;
        }
    }

    fn may_recover(&mut self) -> bool {
        let something = self.link.has_lost() || self.link.is_overrun() || !self.lost.is_empty() || self.lost_operators;
        let due = self.retry_at.is_none_or(|at| Instant::now() >= at);
        something && due && self.link.has_room()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for channel in self.rooms.keys() {
            self.shared.hub.leave(channel, &self.link);
        }
        if self.is_operator {
            self.shared.hub.leave_operators(&self.link);
        }
        self.shared.metrics.sockets_connected.dec();
    }
}

/// Waits until the client's transport has taken everything, or the deadline, or for as
/// long as it goes on taking something: a client that has gone without a word takes nothing.
async fn flush(link: &Arc<Link>, deadline: Instant) {
    loop {
        link.drain();
        if link.is_flushed() || link.is_closed() {
            return;
        }
        let before = link.progress();
        let patience = deadline.min(Instant::now() + FLUSH_PATIENCE);
        let woken = tokio::time::timeout_at(patience, link.woken()).await.is_ok();
        if Instant::now() >= deadline || !woken && link.progress() == before {
            tracing::debug!(link = link.id, "a socket did not read its last updates in time");
            return;
        }
    }
}
