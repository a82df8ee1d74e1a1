//! Why an agent failed, and what that means for the job.

use std::io;

use thiserror::Error;

#[derive(Debug, Error)]
pub(super) enum AgentError {
    /// One sentence for every parameter that is wrong.
    #[error("{}", .0.join("; "))]
    BadParams(Vec<String>),
    #[error("dataset{}: {reason}", .line.map(|line| format!(" line {line}")).unwrap_or_default())]
    BadDataset { line: Option<usize>, reason: String },
    #[error("job file: {0}")]
    BadJobFile(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl AgentError {
    pub fn param(field: &str, reason: impl std::fmt::Display) -> Self {
        Self::BadParams(vec![format!("params.{field}: {reason}")])
    }

    pub fn dataset(line: impl Into<Option<usize>>, reason: impl Into<String>) -> Self {
        Self::BadDataset { line: line.into(), reason: reason.into() }
    }

    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub fn code(&self) -> &'static str {
        match self {
            Self::BadParams(_) => "bad_params",
            Self::BadDataset { .. } => "bad_dataset",
            Self::BadJobFile(_) => "bad_job_file",
            Self::Io { .. } => "io_error",
        }
    }

    /// Whether the same job could succeed when it is run again.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    pub fn exit_code(&self) -> u8 {
        if self.is_retriable() { 1 } else { 2 }
    }
}
