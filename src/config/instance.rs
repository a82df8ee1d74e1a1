use std::time::Duration;

use super::setting::{Check, Checks, FromSetting, settings};

settings! {
    /// This gateway among others.
    pub struct Instance in "instance" {
        /// Name of this instance, unique among those that share a store; auto: the host's name.
        id: InstanceId = "auto",
        /// Several on one PostgreSQL: a gateway that is not heard of for this long is taken for
        /// dead, and another publishes what it has left. Renewed four times as often.
        lease: Duration = "6s",
    }
}

/// A name of letters, digits, `.`, `_` and `-`, at most 64: it becomes part of queue names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceId(String);

impl InstanceId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromSetting for InstanceId {
    const KIND: &'static str = "1 to 64 letters, digits, '.', '_' or '-', or auto";

    fn from_text(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text == "auto" {
            let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
            let name: String = host.chars().filter(|c| fits(*c)).take(64).collect();
            return Ok(Self(if name.is_empty() { "gateway".to_owned() } else { name }));
        }
        if text.is_empty() || text.len() > 64 || !text.chars().all(fits) {
            return Err("cannot be part of a queue's name".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl Check for Instance {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("instance.lease", self.lease, Duration::from_secs(1)..=Duration::from_secs(300));
    }
}
