//! `prune`: old rows, now instead of at the next `retention.interval`.

use std::collections::HashSet;
use std::sync::Arc;

use clap::Args;
use clap::builder::PossibleValuesParser;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, print, print_json, table};
use crate::app::{DataDirLock, Deleted, Retention, open_store_as_found};
use crate::config::StoreUrl;
use crate::domain::factory::EventFactory;

#[derive(Args)]
#[command(after_help = "\
A running gateway does this by itself, every retention.interval. What still has open legs or
waits in a backlog stays, and so do jobs that have not ended. On SQLite the gateway must be
stopped first: one process at a time. The schema stays as it is: only gateways migrate.

Examples:
  event-gateway prune --dry-run
  event-gateway prune --kind events --kind inbox --set retention.keep=30d")]
pub struct Prune {
    /// Count what would go, at most, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// Only rows of this kind. May be repeated.
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(
        ["jobs", "events", "inbox", "audit", "aggregates", "idempotency"]))]
    kind: Vec<String>,
}

pub async fn run(command: Prune, global: &Global) -> Outcome {
    let config = global.load()?.config;
    let catalogue = super::catalogue(&config)?;
    let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
    let _lock = match &config.store.url {
        StoreUrl::Sqlite(path) if !path.exists() => {
            return Err(Failure::failed(format!("there is no store at {}; see store.url", path.display())));
        }
        StoreUrl::Sqlite(_) => Some(DataDirLock::take(&config.data.dir).map_err(|error| failed(&error))?),
        StoreUrl::Postgres(_) => None,
    };
    let retention = Retention::new(&config, &catalogue).only(&command.kind);
    let factory = Arc::new(EventFactory::new(catalogue, HashSet::new(), 0));
    let store = open_store_as_found(&config, factory).await.map_err(|error| failed(&error))?;
    // Steps are whole: whoever interrupts this leaves nothing half deleted.
    let done = retention.run(&*store, command.dry_run, &CancellationToken::new(), None).await;
    store.close().await;
    report(&done.map_err(|error| failed(&error))?, command.dry_run, global.output)
}

fn report(deleted: &Deleted, dry_run: bool, format: Format) -> Outcome {
    match format {
        Format::Json => print_json(&serde_json::json!({ "dry_run": dry_run, "rows": deleted })),
        Format::Text if deleted.is_empty() => print("nothing is old enough\n"),
        Format::Text => {
            let rows: Vec<Vec<String>> =
                deleted.iter().map(|(kind, rows)| vec![(*kind).to_owned(), rows.to_string()]).collect();
            print(&table(&["KIND", if dry_run { "WOULD GO" } else { "DELETED" }], &rows))
        }
    }
}
