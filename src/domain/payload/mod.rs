//! Typed payloads of the built-in event types; field names are fixed by `docs/events.md`.
//!
//! A symbol of a closed enum that this build does not know, `UNKNOWN` included, is an error
//! for these types and never guessed: whoever works on typed payloads must not act on what
//! it does not understand.

mod audit;
mod job;
mod metrics;
mod notification;

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

pub use audit::*;
pub use job::*;
pub use metrics::*;
pub use notification::*;

use super::Id;
use super::catalogue::{BuiltIn, round_trip};

/// A payload with a fixed type name.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync {
    /// The event type in the catalogue.
    const TYPE: &'static str;

    /// The aggregate this payload belongs to.
    fn aggregate_id(&self) -> Cow<'_, str>;
}

/// A field that can identify an aggregate.
trait AggregateId {
    fn text(&self) -> Cow<'_, str>;
}

impl AggregateId for Id {
    fn text(&self) -> Cow<'_, str> {
        Cow::Owned(self.to_string())
    }
}

impl AggregateId for String {
    fn text(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }
}

macro_rules! built_in {
    ($($payload:ident: $name:literal of $id:ident),+ $(,)?) => {
        $(impl Payload for $payload {
            const TYPE: &'static str = $name;

            fn aggregate_id(&self) -> Cow<'_, str> {
                self.$id.text()
            }
        })+

        /// Every built-in type: its schema, and the check of its Rust type against it.
        pub(super) const BUILT_IN: &[BuiltIn] = &[$(BuiltIn {
            name: $name,
            schema: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/", $name, ".avsc")),
            round_trip: round_trip::<$payload>,
        }),+];
    };
}

built_in! {
    JobSubmitted: "job.submitted" of job_id,
    JobStatusChanged: "job.status.changed" of job_id,
    JobCompleted: "job.completed" of job_id,
    JobFailed: "job.failed" of job_id,
    JobCancelled: "job.cancelled" of job_id,
    JobPerformanceSummary: "job.performance.summary" of job_id,
    SubmitJobRequested: "SubmitJobRequested" of job_id,
    CancelJobRequested: "CancelJobRequested" of job_id,
    JobMetricsRecorded: "job.metrics.recorded" of job_id,
    ResourceAllocationChanged: "resource.allocation.changed" of allocation_id,
    SystemHealthCheck: "system.health.check" of instance_id,
    NotificationSent: "notification.sent" of notification_id,
    NotificationRead: "notification.read" of notification_id,
    NotificationDismissed: "notification.dismissed" of notification_id,
    AlertRaised: "alert.raised" of alert_id,
    AlertResolved: "alert.resolved" of alert_id,
    AuditActionRecorded: "audit.action.recorded" of target_resource_id,
    AuditPolicyChanged: "audit.policy.changed" of target_resource_id,
    AuditDataAccess: "audit.data.access" of target_resource_id,
    AuditJobLifecycle: "audit.job.lifecycle" of target_resource_id,
    AuditComplianceCheck: "audit.compliance.check" of target_resource_id,
}
