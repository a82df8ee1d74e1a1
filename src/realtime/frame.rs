//! A packet on its way out: encoded once, shared by every socket that gets it.

use std::sync::Arc;

use crate::domain::Channel;

/// The text of a Socket.IO packet and what may be done with it when a socket is slow.
#[derive(Debug)]
pub(super) struct Frame {
    pub text: Box<str>,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// One offset of a channel. Dropped for a slow reader, who gets `resync` instead.
    Update { channel: Channel, offset: i64 },
    /// Soon outdated (samples, statistics). Dropped for a slow reader.
    Passing,
    /// Answers, snapshots, alerts: never dropped; too many of them end the connection.
    Kept,
}

impl Frame {
    pub fn update(text: String, channel: Channel, offset: i64) -> Arc<Self> {
        Arc::new(Self { text: text.into(), kind: Kind::Update { channel, offset } })
    }

    pub fn passing(text: String) -> Arc<Self> {
        Arc::new(Self { text: text.into(), kind: Kind::Passing })
    }

    pub fn kept(text: String) -> Arc<Self> {
        Arc::new(Self { text: text.into(), kind: Kind::Kept })
    }

    pub fn is_kept(&self) -> bool {
        matches!(self.kind, Kind::Kept)
    }
}
