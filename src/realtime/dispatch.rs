//! One request of a client after the other.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::frame::Frame;
use super::packet::{self, Incoming, Request};
use super::request::{
    Failed, Failure, Join, Joined, Leave, Left, Refreshed, Resume, Resumed, Seen, SeenNoted, Token, parse,
};
use super::session::{Session, auth_code};
use crate::domain::{Channel, Timestamp};

/// `seen` may be sent this often.
const SEEN_EVERY: Duration = Duration::from_secs(1);
/// Clocks of client and server tick differently: a little early is not too early.
const SEEN_LEEWAY: Duration = Duration::from_millis(50);

impl Session {
    /// Takes one packet. True when the client has left.
    pub async fn take(&mut self, incoming: Incoming) -> bool {
        match incoming {
            Incoming::Request(request) => self.answer(request).await,
            Incoming::Disconnect => return true,
            Incoming::ElsewhereConnect { namespace } => {
                let text = packet::connect_error(&namespace, "invalid_namespace", "there is no such namespace");
                self.link.push(&Frame::kept(text));
            }
            // It is in already; acks are taken where they arrive.
            Incoming::Connect { .. } | Incoming::Ack { .. } => {}
        }
        false
    }

    async fn answer(&mut self, request: Request) {
        let Request { event, payload, ack } = request;
        let payload = payload.as_deref();
        match event.as_str() {
            "join_job_channel" => match parse::<Join>(&event, payload) {
                Ok(join) => self.join_job(join, ack).await,
                Err(error) => self.reply(ack, &Joined::failed(None, error)),
            },
            "leave_job_channel" => match parse::<Leave>(&event, payload) {
                Ok(leave) => self.leave_job(&leave, ack),
                Err(error) => self.fail(ack, error),
            },
            "resume" => match parse::<Resume>(&event, payload) {
                Ok(resume) => self.resume(resume, ack).await,
                Err(error) => self.fail(ack, error),
            },
            "seen" => match parse::<Seen>(&event, payload) {
                Ok(seen) => self.seen(&seen, ack),
                Err(error) => self.fail(ack, error),
            },
            "auth_refresh" => match parse::<Token>(&event, payload) {
                Ok(token) => self.refresh(token, ack).await,
                Err(error) => self.fail(ack, error),
            },
            _ => {
                let known = "join_job_channel, leave_job_channel, resume, seen, auth_refresh";
                let shown: String = event.chars().take(64).collect();
                self.fail(ack, Failure::new("unknown_event", format!("'{shown}' is not one of {known}")));
            }
        }
    }

    fn reply(&self, ack: Option<i64>, answer: &impl Serialize) {
        if let Some(id) = ack {
            self.link.push(&Frame::kept(packet::ack(id, answer)));
        }
    }

    fn fail(&self, ack: Option<i64>, error: Failure) {
        self.reply(ack, &Failed { error });
    }

    async fn join_job(&mut self, join: Join, ack: Option<i64>) {
        if join.acks {
            self.link.set_answers();
        }
        let answers = self.join(&[(Channel::Job(join.job_id), join.last_offset)]).await;
        for (_, (joined, state)) in answers {
            self.reply(ack, &joined);
            self.go_live(state.into_iter());
        }
    }

    fn leave_job(&mut self, leave: &Leave, ack: Option<i64>) {
        let channel = Channel::Job(leave.job_id);
        self.lost.remove(&channel);
        let left = self.leave(&channel).is_some();
        self.reply(ack, &Left { left, room: channel.to_string() });
    }

    async fn resume(&mut self, resume: Resume, ack: Option<i64>) {
        // The user's own channel is not one of the rooms that are limited.
        let limit = self.shared.options.max_rooms + 1;
        if resume.channels.len() > limit {
            let message = format!("{} channels asked for, a socket may be in {limit}", resume.channels.len());
            return self.fail(ack, Failure::new("too_many_rooms", message));
        }
        if resume.acks {
            self.link.set_answers();
        }
        let mut unknown = Vec::new();
        let mut wanted = Vec::new();
        for (name, cursor) in resume.channels {
            match Channel::parse(&name) {
                Some(channel) => wanted.push((name, (channel, cursor))),
                None => unknown.push(name),
            }
        }
        let channels: Vec<_> = wanted.iter().map(|(_, wanted)| wanted.clone()).collect();
        let mut answers = self.join(&channels).await;
        let mut states = Vec::new();
        let mut resumed = Resumed { channels: std::collections::BTreeMap::new() };
        // Answered under the names the client used.
        for (name, (channel, _)) in wanted {
            if let Some((joined, state)) = answers.remove(&channel.to_string()) {
                states.extend(state);
                resumed.channels.insert(name, joined);
            }
        }
        for name in unknown {
            let error = Failure::new("unknown_channel", "channels are named job:<id> or user:<id>");
            resumed.channels.insert(name, Joined::failed(None, error));
        }
        self.reply(ack, &resumed);
        self.go_live(states.into_iter());
    }

    fn seen(&mut self, seen: &Seen, ack: Option<i64>) {
        let now = Instant::now();
        if self.last_seen.is_some_and(|last| now.duration_since(last) + SEEN_LEEWAY < SEEN_EVERY) {
            return self.fail(ack, Failure::new("rate_limited", "seen is taken once a second; send the latest then"));
        }
        self.last_seen = Some(now);
        for (name, offset) in seen {
            if let Some(room) = Channel::parse(name).and_then(|channel| self.rooms.get(&channel)) {
                room.set_seen(&self.link, *offset);
            }
        }
        self.reply(ack, &SeenNoted { seen: true });
    }

    async fn refresh(&mut self, token: Token, ack: Option<i64>) {
        let Some(token) = token.token else {
            return self.fail(ack, Failure::new("invalid_payload", "auth_refresh: missing field `token`"));
        };
        let principal = match self.shared.auth.authenticate(&token).await {
            Ok(principal) => principal,
            Err(error) => return self.fail(ack, Failure::new(auth_code(&error), error.to_string())),
        };
        if principal.user_id != self.principal.user_id {
            let message = "the new token is another user's; connect anew to change the user";
            return self.fail(ack, Failure::new("other_user", message));
        }
        if principal.expires_at <= Timestamp::now() {
            return self.fail(ack, Failure::new("token_expired", "the new token has expired already"));
        }
        self.renew(principal);
        self.enter_operators();
        let left = self.leave_forbidden();
        self.reply(ack, &Refreshed { refreshed: true, expires_at: self.principal.expires_at, left });
    }

    /// Leaves rooms that the present token does not open.
    fn leave_forbidden(&mut self) -> Vec<String> {
        let forbidden: Vec<Channel> = self
            .rooms
            .iter()
            .filter(|(channel, room)| match channel {
                Channel::User(user) => !self.principal.may_read(user),
                Channel::Job(_) => room.owner().is_none_or(|owner| !self.principal.may_read(owner)),
            })
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in &forbidden {
            self.leave(channel);
        }
        forbidden.iter().map(Channel::to_string).collect()
    }
}
