use super::setting::{Check, Checks, FromSetting, settings};

settings! {
    /// Where events are published to.
    pub struct Brokers in "brokers" {
        /// embedded: brokers inside this process, kept in the data directory. external: RabbitMQ,
        /// Kafka with a schema registry, and NATS JetStream; see their sections, where each can
        /// have a mode of its own.
        mode: BrokerMode = "embedded",
    }
}

/// Which brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerMode {
    /// Inside this process.
    Embedded,
    /// RabbitMQ, Kafka and NATS JetStream.
    External,
}

impl FromSetting for BrokerMode {
    const KIND: &'static str = "embedded or external";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "external" => Ok(Self::External),
            _ => Err("is no mode that is known".to_owned()),
        }
    }
}

impl Check for Brokers {
    fn check(&self, _: &mut Checks<'_>) {}
}
