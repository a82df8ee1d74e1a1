//! The audit trail.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::job::text_enum;
use crate::domain::{Id, Timestamp};

text_enum! {
    /// The kind of thing an audit row is about.
    AuditTarget { Job = "job", User = "user", System = "system", Dataset = "dataset" }
}

text_enum! {
    /// What was done with data.
    DataAccess { Read = "read", Write = "write", Export = "export" }
}

text_enum! {
    /// The outcome of a check.
    CheckResult { Pass = "pass", Fail = "fail" }
}

/// What something was before and after a change, each JSON as text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditChanges {
    #[serde(default)]
    pub before: Option<String>,
    #[serde(default)]
    pub after: Option<String>,
}

/// An audit payload: the fields they all begin with, then its own. (Flattening a shared
/// struct would serialise it as a map and give up the schema's field order.)
macro_rules! audit_payload {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            pub audit_id: Id,
            pub actor_user_id: String,
            pub target_resource_id: String,
            pub target_resource_type: AuditTarget,
            pub timestamp: Timestamp,
            #[serde(default)]
            pub ip_address: Option<String>,
            /// Position in the hash chain, from 1.
            #[serde(default)]
            pub chain_no: Option<i64>,
            /// Hex.
            #[serde(default)]
            pub previous_digest: Option<String>,
            /// Hex, over this row and the previous digest.
            #[serde(default)]
            pub digest: Option<String>,
            $($(#[$fmeta])* pub $field: $type),+
        }
    };
}

audit_payload! {
    /// Somebody did something that is kept.
    AuditActionRecorded {
        action: String,
        #[serde(default)]
        actor_role: Option<String>,
        /// Free-form JSON, as text.
        #[serde(default)]
        details: Option<String>,
        #[serde(default)]
        changes: Option<AuditChanges>,
    }
}

audit_payload! {
    /// Somebody changed a policy.
    AuditPolicyChanged {
        policy_name: String,
        changes: AuditChanges,
    }
}

audit_payload! {
    /// Somebody touched data.
    AuditDataAccess {
        access: DataAccess,
        #[serde(default)]
        purpose: Option<String>,
    }
}

audit_payload! {
    /// A job was submitted, completed, failed or cancelled.
    AuditJobLifecycle {
        /// The event this row is about.
        event_id: Id,
        event_type: String,
        sequence: i64,
    }
}

audit_payload! {
    /// A check of the trail itself.
    AuditComplianceCheck {
        check_name: String,
        result: CheckResult,
        /// Free-form JSON, as text.
        #[serde(default)]
        details: Option<String>,
    }
}
