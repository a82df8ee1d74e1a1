//! `reconcile`: the ledger and what the brokers really hold, side by side.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, plain, print, print_json, table};
use crate::app::{DataDirLock, LockError, open_logs, open_store_as_found};
use crate::config::{Config, StoreUrl};
use crate::domain::factory::EventFactory;
use crate::ops::reconcile::{BrokerReport, ConsumerReport, Finding, Progress, ReconcileOptions, Report, reconcile};

const REDRAWS: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(after_help = "\
Reads only, unless --reopen is given, and never changes the schema; a gateway may run
meanwhile. What is found, by broker:
  missing       confirmed, but not there, and not explained by retention or consumption
  out of order  its first message comes before that of an earlier event of the same aggregate,
                or a consumer has handled it before an earlier one
  unknown       a message whose event was never committed
  unreadable    a message without a readable envelope
  waiting       not published yet (dead letters are counted, and fine)
  duplicates    more than one message of an event; consumers drop the repeats

How, by broker:
  kafka         reads every record
  nats          reads every message. A command to run a job that has left its work queue must
                have been claimed in the store, or be a dead letter; one for our own runner may
                also wait there as a job (unclaimed). Commands of other domains count as
                consumed once they, or later ones, were handed to a consumer
  rabbitmq      queues cannot be read without consuming them. What each consumer of ours has
                (inbox, backlog, dead letters) is compared with what was confirmed; what its
                queue may still have, or the consumer in hand, is on the way and not missing:
                a queue counts as empty when it was so for 5s, or for --wait while it is being
                read. Repeats are not seen, nor what became of messages in queues of others
  embedded      reads every record, and compares consumers of queues, too
Needs about 300 bytes of temporary disk (TMPDIR) for each event of the broker with the most;
memory stays below 200 MB.

--reopen has gateways publish again what a log (Kafka, JetStream with limits) has lost, or what a
consumer of ours never got of RabbitMQ: it comes behind what is there, in the order of its commits.
Consumers drop what they have handled. Not what a work queue has lost. On SQLite the gateway must
be stopped first.

Exit code 0: nothing missing, out of order, unknown, unreadable or waiting. 1: something is,
or it could not be read.

Examples:
  event-gateway reconcile
  event-gateway reconcile --wait 2m --output json
  event-gateway reconcile --reopen")]
pub struct Reconcile {
    /// How long legs that are open at the beginning may take, and then what consumers have in hand.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Duplicates count as a fault, too.
    #[arg(long)]
    strict: bool,
    /// Open the legs again of what was lost, so that gateways publish it again.
    #[arg(long)]
    reopen: bool,
    /// How many findings of each kind are listed.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    examples: usize,
}

pub async fn run(command: Reconcile, global: &Global) -> Outcome {
    let config = global.load()?.config;
    let catalogue = super::catalogue(&config)?;
    let stopped = quiet(&config, command.reopen)?;
    let logs = open_logs(&config, &catalogue).await.map_err(|error| Failure::failed(error.to_string()))?;
    let factory = Arc::new(EventFactory::new(catalogue, HashSet::new(), 0));
    let store = open_store_as_found(&config, factory).await.map_err(|error| Failure::failed(error.to_string()))?;
    let options = ReconcileOptions {
        examples: command.examples,
        // Where no gateway runs nobody publishes what waits.
        wait: if stopped.is_some() { Duration::ZERO } else { command.wait },
        store_keeps: config.retention.keep,
        reopen: command.reopen,
    };
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(REDRAWS);
    let done = reconcile(&*store, &logs, options, &|progress| bar.set_message(describe(progress))).await;
    bar.finish_and_clear();
    store.close().await;
    let report = done.map_err(|error| Failure::failed(error.to_string()))?;
    print_report(&report, command.strict, global.output)?;
    // The report has said why.
    if report.is_clean(command.strict) { Ok(()) } else { Err(Failure::failed("")) }
}

/// With a store in a file: keeps a gateway from starting meanwhile, if none runs. `alone`: none
/// may run.
fn quiet(config: &Config, alone: bool) -> Result<Option<DataDirLock>, Failure> {
    let StoreUrl::Sqlite(path) = &config.store.url else { return Ok(None) };
    if !path.exists() {
        return Err(Failure::failed(format!("there is no store at {}; see store.url", path.display())));
    }
    match DataDirLock::take(&config.data.dir) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Taken { .. }) if !alone => Ok(None),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

fn describe(progress: Progress) -> String {
    match progress {
        Progress::Legs(broker, count) => format!("{broker}: {count} legs"),
        Progress::Messages(broker, count) => format!("{broker}: {count} messages"),
        Progress::Comparing(broker) => format!("{broker}: comparing"),
    }
}

fn print_report(report: &Report, strict: bool, format: Format) -> Outcome {
    let clean = report.is_clean(strict);
    match format {
        Format::Json => print_json(&serde_json::json!({ "clean": clean, "report": report })),
        Format::Text => print(&text(report, clean)),
    }
}

fn text(report: &Report, clean: bool) -> String {
    let rows: Vec<Vec<String>> = report.brokers.iter().map(row).collect();
    let header = [
        "BROKER",
        "DONE",
        "WAITING",
        "DEAD",
        "MESSAGES",
        "MISSING",
        "DISORDER",
        "UNKNOWN",
        "UNREADABLE",
        "DUPLICATES",
        "RETIRED",
        "CONSUMED",
    ];
    let mut text = table(&header, &rows);
    for broker in &report.brokers {
        for queue in &broker.queues {
            let _ = writeln!(text, "{} queue {}: {} messages", broker.broker, plain(&queue.name), queue.messages);
        }
        for ConsumerReport { name, handled, backlog, dead, on_the_way, missing, .. } in &broker.consumers {
            let _ = writeln!(
                text,
                "{} consumer {name}: {handled} handled, {backlog} in its backlog, {dead} dead, \
                 {on_the_way} on the way, {missing} missing",
                broker.broker
            );
        }
        if broker.unclaimed > 0 {
            let (broker, jobs) = (broker.broker, broker.unclaimed);
            let _ = writeln!(text, "{broker}: {jobs} commands are unclaimed; the runner finds their jobs in the store");
        }
        match (broker.lost, broker.reopened) {
            (0, _) => {}
            (lost, 0) => {
                let _ = writeln!(text, "{}: --reopen has {lost} of the missing published again", broker.broker);
            }
            (_, reopened) => {
                let _ = writeln!(text, "{}: {reopened} legs are open again, to be published", broker.broker);
            }
        }
        for (kind, findings) in broker.faults().into_iter().chain([("duplicates", &broker.duplicates)]) {
            for finding in &findings.examples {
                let _ = writeln!(text, "{} {kind}: {}", broker.broker, plain(&line(finding)));
            }
            let more = findings.count - findings.examples.len() as u64;
            if more > 0 && !findings.examples.is_empty() {
                let _ = writeln!(text, "{} {kind}: {more} more", broker.broker);
            }
        }
    }
    let _ = writeln!(text, "{}", if clean { "clean" } else { "NOT CLEAN" });
    text
}

fn row(broker: &BrokerReport) -> Vec<String> {
    // What was not looked at is not zero.
    let told = |is: bool, count: u64| if is { count.to_string() } else { "-".to_owned() };
    let read = |count| told(broker.compared, count);
    let judged = |count| told(broker.compared || !broker.consumers.is_empty(), count);
    vec![
        broker.broker.to_string(),
        broker.legs.done.to_string(),
        broker.waiting.count.to_string(),
        broker.legs.dead.to_string(),
        read(broker.messages),
        judged(broker.missing.count),
        judged(broker.out_of_order.count),
        read(broker.unknown.count),
        read(broker.unreadable.count),
        read(broker.duplicates.count),
        read(broker.retired),
        read(broker.consumed),
    ]
}

fn line(finding: &Finding) -> String {
    let Finding { event_id, event_type, key, sequence, position, why, consumer: _ } = finding;
    let mut parts: Vec<String> = Vec::new();
    parts.extend(event_id.map(|id| id.to_string()));
    parts.extend(event_type.clone());
    parts.extend(key.clone());
    parts.extend(sequence.map(|sequence| format!("#{sequence}")));
    parts.extend(position.as_ref().map(|position| format!("at {position}")));
    format!("{}: {why}", parts.join(" "))
}
