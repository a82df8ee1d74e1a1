use tracing_subscriber::EnvFilter;

use super::setting::{Check, Checks, FromSetting, settings};

settings! {
    /// The log, written to standard error.
    pub struct Log in "log" {
        /// error, warn, info, debug or trace; also per module: info,event_gateway::relay=debug.
        level: String = "info",
        /// pretty, json, or auto: pretty on a terminal, JSON otherwise.
        format: LogFormat = "auto",
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Pretty,
    Json,
}

impl FromSetting for LogFormat {
    const KIND: &'static str = "auto, pretty or json";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err("is no format that is known".to_owned()),
        }
    }
}

impl Check for Log {
    fn check(&self, checks: &mut Checks<'_>) {
        let parsed = EnvFilter::builder().parse(&self.level);
        let reason = parsed.as_ref().err().map_or_else(String::new, ToString::to_string);
        checks.require(parsed.is_ok(), "log.level", reason, "use error, warn, info, debug or trace");
    }
}
