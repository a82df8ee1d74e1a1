//! The log: one line an event on standard error, for people on a terminal, JSON otherwise.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};

/// A library that calls an error what its user here handles and says, as at every stop. A
/// `log.level` that names it brings it back.
const QUIET: &str = "lapin=off";

/// The log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    #[error("the log was started already: {0}")]
    Started(#[from] TryInitError),
}

/// Starts the log of this process. Once: a second call fails.
pub fn init(log: &Log) -> Result<(), LogError> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{}", log.level))?;
    let terminal = io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match log.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(true)).try_init()?,
        LogFormat::Auto if !terminal => {
            registry.with(lines.json().flatten_event(true).with_current_span(true)).try_init()?;
        }
        LogFormat::Auto | LogFormat::Pretty => registry.with(lines.with_ansi(terminal)).try_init()?,
    }
    Ok(())
}
