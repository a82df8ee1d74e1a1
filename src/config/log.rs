use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
        const FIX: &str = "use error, warn, info, debug or trace, or module=level";
        if let Err(error) = EnvFilter::builder().parse(&self.level) {
            checks.require(false, "log.level", error.to_string(), FIX);
        }
        // The parser takes a misspelt level for the name of a module, and all else would be silent.
        let alone = self.level.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '[']));
        for word in alone.filter(|word| word.parse::<LevelFilter>().is_err()) {
            checks.require(false, "log.level", format!("'{word}' is no level"), FIX);
        }
    }
}
