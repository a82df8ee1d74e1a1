//! What can go wrong in a use case, in the terms of its caller.

use super::committer::CommitError;
use crate::domain::job::JobRefusal;
use crate::store::StoreError;

/// One thing wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Dotted path in the body, e.g. `resource_request.num_nodes`; empty for the whole.
    pub field: String,
    /// Stable, machine-readable: `required`, `unknown`, `out_of_range`, ...
    pub code: &'static str,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), code, message: message.into() }
    }
}

/// Why a use case did not happen. Nothing was written unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("the request has {} invalid field(s)", .0.len())]
    Invalid(Vec<FieldError>),
    /// Also for things of others: who may not see it does not learn that it exists.
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Conflict(JobRefusal),
    #[error("this Idempotency-Key was used before with another body")]
    KeyReused,
    #[error("a request with this Idempotency-Key is still being processed")]
    KeyInFlight,
    #[error("the encoded event takes {size} bytes, the limit is {limit}")]
    TooLarge { size: usize, limit: usize },
    /// Safe to retry as it is.
    #[error("the intake is full")]
    Overloaded,
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Committed or not; a retry is safe with an Idempotency-Key only.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    #[error("the gateway is stopping")]
    Stopping,
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<CommitError> for ServiceError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Overloaded => Self::Overloaded,
            CommitError::Unavailable(why) => Self::Unavailable(why),
            CommitError::OutcomeUnknown(why) => Self::OutcomeUnknown(why),
            CommitError::Refused(why) => Self::Internal(why),
            CommitError::Stopping => Self::Stopping,
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) | StoreError::Conflict(why) | StoreError::LeaseLost(why) => {
                Self::Unavailable(why)
            }
            StoreError::OutcomeUnknown(why) => Self::OutcomeUnknown(why),
            StoreError::Data(why) | StoreError::Corrupt(why) => Self::Internal(why),
        }
    }
}

impl From<JobRefusal> for ServiceError {
    fn from(refusal: JobRefusal) -> Self {
        match refusal {
            JobRefusal::NotFound => Self::NotFound,
            other => Self::Conflict(other),
        }
    }
}

impl From<crate::domain::factory::DraftError> for ServiceError {
    fn from(error: crate::domain::factory::DraftError) -> Self {
        match error {
            crate::domain::factory::DraftError::TooLarge { size, limit, .. } => Self::TooLarge { size, limit },
            other => Self::Internal(other.to_string()),
        }
    }
}
