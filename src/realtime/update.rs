//! One event on its way to browsers, and the text each channel gets for it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::frame::Frame;
use super::packet;
use crate::domain::catalogue::EventType;
use crate::domain::event::Headers;
use crate::domain::{Channel, Event, Id, Timestamp};

/// An event as rooms need it, from a broker's message or from the store.
#[derive(Clone, Debug)]
pub struct Update {
    pub event_id: Id,
    pub event_type: Arc<EventType>,
    pub aggregate_id: Arc<str>,
    pub sequence: i64,
    pub user_id: Arc<str>,
    pub occurred_at: Timestamp,
    /// Offset in the owner's `user:` channel, for types that user sees.
    pub user_offset: Option<i64>,
    /// A JSON object.
    pub payload: Bytes,
}

/// What `job_update` and its siblings carry.
#[derive(Serialize)]
struct Envelope<'a> {
    event_id: Id,
    #[serde(rename = "type")]
    event_type: &'a str,
    /// The job it is about; null when it is about none.
    job_id: Option<&'a str>,
    user_id: &'a str,
    timestamp: Timestamp,
    sequence: i64,
    channel: &'a str,
    /// Missing where nothing counts: samples, statistics, alerts.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    data: &'a RawValue,
}

/// The members of a payload that name a job.
#[derive(Default, Deserialize)]
struct About {
    job_id: Option<String>,
    related_job_id: Option<String>,
}

impl Update {
    /// A message of the broadcast queue: `body` is the payload as JSON.
    pub fn of_message(headers: &Headers, event_type: Arc<EventType>, body: Bytes) -> Self {
        Self {
            event_id: headers.event_id,
            event_type,
            aggregate_id: headers.aggregate_id.clone(),
            sequence: headers.sequence,
            user_id: headers.user_id.clone(),
            occurred_at: headers.occurred_at,
            user_offset: headers.user_offset,
            payload: body,
        }
    }

    pub fn of_event(event: &Event) -> Self {
        Self {
            event_id: event.event_id,
            event_type: event.event_type.clone(),
            aggregate_id: event.aggregate_id.clone(),
            sequence: event.sequence,
            user_id: event.user_id.clone(),
            occurred_at: event.occurred_at,
            user_offset: event.user_offset,
            payload: event.payload.json.clone(),
        }
    }

    /// Its `job:` channel, if a job's room sees it; with an offset where the channel counts it.
    pub fn job_channel(&self) -> Option<(Channel, Option<i64>)> {
        if !self.event_type.audience.job {
            return None;
        }
        let id = self.aggregate_id.parse().ok()?;
        let counted = &*self.event_type.aggregate == "job";
        Some((Channel::Job(id), counted.then_some(self.sequence)))
    }

    /// Its owner's channel and its offset there.
    pub fn user_channel(&self) -> Option<(Channel, i64)> {
        self.user_offset.map(|offset| (Channel::User(self.user_id.clone()), offset))
    }

    /// Its offset in `channel`.
    pub fn offset_in(&self, channel: &Channel) -> Option<i64> {
        match channel {
            Channel::Job(_) => Some(self.sequence),
            Channel::User(_) => self.user_offset,
        }
    }

    /// Does it say that a job was submitted? Those are timed from submit to screen.
    pub fn is_submission(&self) -> bool {
        &*self.event_type.name == "job.submitted"
    }

    /// The envelope as JSON, for the answer to a join.
    pub(super) fn envelope(&self, channel: &str, offset: Option<i64>) -> String {
        let data: &RawValue = serde_json::from_slice(&self.payload).unwrap_or_else(|error| {
            tracing::error!(event_id = %self.event_id, %error, "the payload of an event is no JSON; shown without it");
            RawValue::NULL
        });
        let about = self.about(data);
        let job_id = match &about {
            None => Some(&*self.aggregate_id),
            Some(about) => about.job_id.as_deref().or(about.related_job_id.as_deref()),
        };
        packet::json(&Envelope {
            event_id: self.event_id,
            event_type: &self.event_type.name,
            job_id,
            user_id: &self.user_id,
            timestamp: self.occurred_at,
            sequence: self.sequence,
            channel,
            offset,
            data,
        })
    }

    /// `None` when the aggregate itself is a job.
    fn about(&self, data: &RawValue) -> Option<About> {
        if self.event_type.aggregate_id_field() == "job_id" {
            return None;
        }
        Some(serde_json::from_str(data.get()).unwrap_or_default())
    }

    /// The packet every member of `channel` shares.
    pub(super) fn frame(&self, channel: &Channel, offset: i64) -> Arc<Frame> {
        let envelope = self.envelope(&channel.to_string(), Some(offset));
        Frame::update(packet::event(&self.event_type.socket_event, &envelope), channel.clone(), offset)
    }

    /// The packet of a type that is not counted: it may be dropped for a slow reader.
    pub(super) fn passing_frame(&self, room: &str) -> Arc<Frame> {
        Frame::passing(packet::event(&self.event_type.socket_event, &self.envelope(room, None)))
    }

    /// The packet of a type that operators get once and must not lose.
    pub(super) fn kept_frame(&self, room: &str) -> Arc<Frame> {
        Frame::kept(packet::event(&self.event_type.socket_event, &self.envelope(room, None)))
    }
}
