//! What users and operators are told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::job::text_enum;
use crate::domain::{Id, Timestamp};

text_enum! {
    /// How a notification reaches its user.
    NotificationChannel {
        Email = "email",
        Websocket = "websocket",
        Push = "push",
        InApp = "in_app",
        Webhook = "webhook",
    }
}

text_enum! {
    /// What its user has done with a notification.
    ReadStatus { Unread = "unread", Read = "read", Dismissed = "dismissed" }
}

/// A notification went out to a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotificationSent {
    pub notification_id: Id,
    pub recipient_user_id: String,
    pub channel: NotificationChannel,
    pub subject: String,
    pub message: String,
    #[serde(default)]
    pub related_job_id: Option<Id>,
    /// Free-form JSON, as text.
    #[serde(default)]
    pub data: Option<String>,
    pub read_status: ReadStatus,
    pub created_at: Timestamp,
}

/// A user has read a notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotificationRead {
    pub notification_id: Id,
    pub recipient_user_id: String,
    pub at: Timestamp,
}

/// A user has put a notification away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotificationDismissed {
    pub notification_id: Id,
    pub recipient_user_id: String,
    pub at: Timestamp,
}

text_enum! {
    /// How much an alert matters; later variants more.
    Severity { Info = "info", Warning = "warning", Critical = "critical" }
}

/// Something needs an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertRaised {
    pub alert_id: Id,
    /// An open set, e.g. `consumer_lag`.
    pub alert_type: String,
    pub severity: Severity,
    pub message: String,
    pub affected_resource_id: String,
    /// The figures that led to it, by name.
    #[serde(default)]
    pub metrics: Option<BTreeMap<String, f64>>,
}

/// An alert no longer holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertResolved {
    pub alert_id: Id,
    pub original_alert_type: String,
    pub resolution_reason: String,
    pub resolved_at: Timestamp,
}
