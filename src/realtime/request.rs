//! What clients ask and what they are answered.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{Id, Timestamp};
use crate::store::Snapshot;

/// `join_job_channel`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Join {
    pub job_id: Id,
    /// The last offset the client has; without it a snapshot is sent.
    #[serde(default)]
    pub last_offset: Option<i64>,
    /// The client answers updates that ask for it.
    #[serde(default)]
    pub acks: bool,
}

/// `leave_job_channel`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Leave {
    pub job_id: Id,
}

/// `resume`: the last offset of each channel; null for a snapshot.
#[derive(Debug, Deserialize)]
pub(super) struct Resume {
    pub channels: BTreeMap<String, Option<i64>>,
    #[serde(default)]
    pub acks: bool,
}

/// `seen`.
pub(super) type Seen = BTreeMap<String, i64>;

/// `auth_refresh` and the handshake's `auth`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Token {
    #[serde(default)]
    pub token: Option<String>,
}

/// Why something was not done. `code` is for programs and stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Failure {
    pub code: &'static str,
    pub message: String,
}

impl Failure {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn unavailable() -> Self {
        Self::new("unavailable", "the gateway cannot read its store right now; try again")
    }
}

/// The answer about one channel.
#[derive(Debug, Default, Serialize)]
pub(super) struct Joined {
    pub joined: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// Everything up to here is known to the client after this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    pub events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resync: Option<Resynced>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Joined {
    pub fn failed(room: Option<String>, error: Failure) -> Self {
        Self { room, error: Some(error), ..Self::default() }
    }
}

/// A snapshot in place of events.
#[derive(Debug, Serialize)]
pub(super) struct Resynced {
    /// The offset the client came with.
    pub from: Option<i64>,
    pub to: i64,
    pub snapshot: SnapshotBody,
}

/// `resync` as an event of its own: the stretch after `from` up to `to` is not sent.
#[derive(Debug, Serialize)]
pub(super) struct ResyncNotice {
    pub channel: String,
    pub from: Option<i64>,
    pub to: Option<i64>,
    pub snapshot: SnapshotBody,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum SnapshotBody {
    Job {
        job: Option<Box<crate::domain::job::Job>>,
    },
    User {
        jobs: Vec<crate::domain::job::Job>,
        unread: u64,
    },
    /// Of a room without history: read it anew.
    Nothing {},
}

impl From<Snapshot> for SnapshotBody {
    fn from(snapshot: Snapshot) -> Self {
        match snapshot {
            Snapshot::Job(job) => Self::Job { job },
            Snapshot::User { jobs, unread } => Self::User { jobs, unread },
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Resumed {
    pub channels: BTreeMap<String, Joined>,
}

#[derive(Debug, Serialize)]
pub(super) struct Left {
    pub left: bool,
    pub room: String,
}

#[derive(Debug, Serialize)]
pub(super) struct SeenNoted {
    pub seen: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Refreshed {
    pub refreshed: bool,
    pub expires_at: Timestamp,
    /// Rooms that the new token does not open.
    pub left: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Expiring {
    pub at: Timestamp,
}

/// An answer that is only an error.
#[derive(Debug, Serialize)]
pub(super) struct Failed {
    pub error: Failure,
}

/// Reads a request's argument; says which field is wrong.
pub(super) fn parse<T: DeserializeOwned>(event: &str, payload: Option<&RawValue>) -> Result<T, Failure> {
    let Some(payload) = payload else {
        return Err(Failure::new("invalid_payload", format!("{event} takes one object, but came without")));
    };
    serde_json::from_str(payload.get()).map_err(|error| Failure::new("invalid_payload", format!("{event}: {error}")))
}

/// The answer to a request that comes while too many wait.
pub(super) fn too_many() -> Failed {
    let message = "too many requests wait for an answer; wait for answers before you send more";
    Failed { error: Failure::new("too_many_requests", message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: DeserializeOwned>(json: &str) -> Result<T, Failure> {
        let payload = RawValue::from_string(json.to_owned()).unwrap();
        parse("it", Some(&payload))
    }

    #[test]
    fn a_join_names_its_job() {
        let join: Join =
            read(r#"{"jobId":"0196f0c4-0000-7000-8000-000000000001","lastOffset":3,"acks":true}"#).unwrap();
        assert_eq!((join.last_offset, join.acks), (Some(3), true));
        let join: Join = read(r#"{"jobId":"0196f0c4-0000-7000-8000-000000000001","lastOffset":null}"#).unwrap();
        assert_eq!((join.last_offset, join.acks), (None, false));
    }

    #[test]
    fn garbage_is_named() {
        for json in ["null", "[]", "1", "\"x\"", "{}", r#"{"jobId":7}"#, r#"{"jobId":"no uuid"}"#] {
            let failure = read::<Join>(json).unwrap_err();
            assert_eq!(failure.code, "invalid_payload", "{json}");
        }
        let failure = read::<Join>(r#"{"jobId":"0196f0c4-0000-7000-8000-000000000001","lastOffset":"3"}"#).unwrap_err();
        assert!(failure.message.contains("i64"), "{}", failure.message);
        assert_eq!(parse::<Join>("it", None).unwrap_err().code, "invalid_payload");
    }
}
