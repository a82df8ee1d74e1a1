//! Who is asking.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Event, Timestamp};

/// What a principal may do; see `docs/configuration.md` for the calls each role opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Own things only.
    User,
    /// Claims and reports external jobs.
    Worker,
    /// Everything but keys and policy.
    Operator,
    /// Reads everything, and the audit trail.
    Auditor,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::User, Role::Worker, Role::Operator, Role::Auditor];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Worker => "worker",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("unknown role '{text}'; one of user, worker, operator, auditor"))
    }
}

/// An authenticated caller. `user_id` is the token's subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub user_id: Arc<str>,
    pub roles: Vec<Role>,
    pub expires_at: Timestamp,
}

impl Principal {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// May this principal see things that belong to `owner`?
    pub fn may_read(&self, owner: &str) -> bool {
        &*self.user_id == owner || self.sees_everything()
    }

    /// May this principal see this event? The audit trail is not for those it is about.
    pub fn may_see(&self, event: &Event) -> bool {
        let audit = &*event.event_type.aggregate == "audit";
        self.may_read(if audit { "" } else { &event.user_id })
    }

    /// Sees what belongs to others.
    pub fn sees_everything(&self) -> bool {
        self.has(Role::Operator) || self.has(Role::Auditor)
    }

    /// May this principal change things that belong to `owner`?
    pub fn may_change(&self, owner: &str) -> bool {
        &*self.user_id == owner || self.has(Role::Operator)
    }
}
