use super::setting::{Check, Checks, FromSetting, settings};

settings! {
    /// Where events are published to.
    pub struct Brokers in "brokers" {
        /// embedded: brokers inside this process, kept in the data directory.
        mode: BrokerMode = "embedded",
    }
}

/// Which brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerMode {
    /// Inside this process.
    Embedded,
}

impl FromSetting for BrokerMode {
    const KIND: &'static str = "embedded";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "external" => Err("this version has no external brokers".to_owned()),
            _ => Err("is no mode that is known".to_owned()),
        }
    }
}

impl Check for Brokers {
    fn check(&self, _: &mut Checks<'_>) {}
}
