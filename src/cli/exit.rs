//! How a command ends.

use std::process::ExitCode;

use crate::client::{ApiError, SocketError};
use crate::config::Problems;

/// What a command returns.
pub type Outcome = Result<(), Failure>;

/// Why a command ends, and the exit code that says so to scripts.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Empty: everything has been said.
    message: String,
}

impl Failure {
    const CONFIGURATION: u8 = 64;
    const UNREACHABLE: u8 = 69;
    const NOT_ALLOWED: u8 = 77;
    const INTERRUPTED: u8 = 130;

    /// What was asked for did not happen (1).
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The arguments make no sense together (2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// The configuration cannot work (64).
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { code: Self::CONFIGURATION, message: message.into() }
    }

    /// There is no gateway (69).
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { code: Self::UNREACHABLE, message: message.into() }
    }

    /// Not signed in, or not allowed (77).
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self { code: Self::NOT_ALLOWED, message: message.into() }
    }

    /// The user pressed Ctrl-C (130).
    pub fn interrupted() -> Self {
        Self { code: Self::INTERRUPTED, message: String::new() }
    }

    /// Says what is wrong on standard error; the exit code.
    pub fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("error: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::configuration(problems.to_string())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Unreachable { .. } => Self::unreachable(message),
            ApiError::Refused { status, .. } if matches!(status.as_u16(), 401 | 403) => Self::not_allowed(message),
            ApiError::Refused { .. } | ApiError::Unreadable { .. } => Self::failed(message),
        }
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Refused(_) => Self::not_allowed(error.to_string()),
            SocketError::Unreachable(_) => Self::unreachable(error.to_string()),
            SocketError::Closed(_) | SocketError::Silent | SocketError::Protocol(_) => Self::failed(error.to_string()),
        }
    }
}
