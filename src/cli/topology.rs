//! `topology`: exchanges, queues, topics, streams.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, plain, print, print_json};
use crate::app::topology;
use crate::config::Config;
use crate::domain::Broker;
use crate::domain::catalogue::Catalogue;

#[derive(Subcommand)]
pub enum Topology {
    /// Declare what is missing; what is there is compared and not changed.
    #[command(after_help = "\
A gateway does the same when it starts, so this is for those who prepare brokers beforehand, or
with other credentials. Schemas are registered, too, unless kafka.register_schemas is off. Times and bounds
of JetStream's consumers and the compatibility level of our subjects in the registry are set.

Exit codes: 0 everything is there, 1 something is there with other properties, 64 wrong
configuration or catalogue, 69 a broker does not answer.")]
    Apply(Apply),
    /// Compare the brokers with what there must be; declares nothing.
    #[command(after_help = "\
Not looked at: RabbitMQ's bindings, which AMQP does not tell (the gateway declares them anew every
few seconds), and schemas (`event-gateway schema check`).

Exit codes: as of apply; 1 also when something is missing.")]
    Check,
}

#[derive(Args)]
pub struct Apply {
    /// How long a broker may take to answer.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// One broker's.
#[derive(Serialize)]
struct Found {
    broker: Broker,
    /// What is missing or has other properties.
    differences: Vec<String>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<String>,
}

pub async fn run(command: &Topology, global: &Global) -> Outcome {
    let config = global.load()?.config;
    let catalogue = super::catalogue(&config)?;
    let found = match command {
        Topology::Apply(apply) => applied(&config, &catalogue, apply.wait).await?,
        Topology::Check => checked(&config, &catalogue).await,
    };
    match global.output {
        Format::Json => print_json(&json!({ "brokers": found }))?,
        Format::Text => print(&text(&found))?,
    }
    if found.iter().any(|found| !found.differences.is_empty()) {
        Err(Failure::failed(""))
    } else if found.iter().any(|found| found.unreachable.is_some()) {
        Err(Failure::unreachable(""))
    } else {
        Ok(())
    }
}

async fn applied(config: &Config, catalogue: &Catalogue, limit: Duration) -> Result<Vec<Found>, Failure> {
    let applied = topology::apply(config, catalogue, limit).await;
    let mut away = applied.map_err(|error| Failure::failed(error.to_string()))?;
    let brokers = topology::external(config).into_iter().map(|broker| {
        let index = away.iter().position(|(other, _)| *other == broker);
        Found { broker, differences: Vec::new(), unreachable: index.map(|index| away.swap_remove(index).1) }
    });
    Ok(brokers.collect())
}

async fn checked(config: &Config, catalogue: &Catalogue) -> Vec<Found> {
    let mut all = Vec::new();
    for broker in topology::external(config) {
        all.push(match topology::check(config, catalogue, broker).await {
            Ok(differences) => Found { broker, differences, unreachable: None },
            Err(why) => Found { broker, differences: Vec::new(), unreachable: Some(why) },
        });
    }
    all
}

fn text(found: &[Found]) -> String {
    let mut text = String::new();
    for Found { broker, differences, unreachable } in found {
        if let Some(why) = unreachable {
            let _ = writeln!(text, "{broker}: {}", plain(why));
        } else if differences.is_empty() {
            let _ = writeln!(text, "{broker}: everything is there");
        }
        for difference in differences {
            let _ = writeln!(text, "{broker}: {}", plain(difference));
        }
    }
    if found.is_empty() {
        text.push_str("all brokers are embedded: they have everything as soon as they are opened\n");
    }
    text
}
