//! The embedded brokers, opened so that nothing a power cut took stays lost.

use std::collections::HashSet;
use std::path::Path;

use super::StartError;
use crate::broker::Subscription;
use crate::broker::embedded::{Embedded, EmbeddedTopology};
use crate::domain::catalogue::Catalogue;
use crate::store::{BrokerEnd, Store};

/// Opens them in `data_dir` and has the store re-open the legs of what a power cut took
/// from the logs.
pub async fn open(
    data_dir: &Path,
    catalogue: &Catalogue,
    durable: Vec<Subscription>,
    store: &dyn Store,
) -> Result<Embedded, StartError> {
    let topology = EmbeddedTopology::from_catalogue(catalogue, durable);
    let embedded = Embedded::open(&data_dir.join("brokers.db"), topology).await?;
    reopen_lost(store, &embedded).await?;
    Ok(embedded)
}

/// The embedded logs confirm before they sync. What one lost in a power cut is published
/// again: its legs, marked done, become pending.
async fn reopen_lost(store: &dyn Store, embedded: &Embedded) -> Result<(), StartError> {
    let actual = embedded.ends();
    let lost: Vec<BrokerEnd> = store
        .broker_ends()
        .await?
        .into_iter()
        .filter_map(|known| {
            let end = actual
                .iter()
                .find(|end| end.broker == known.broker && end.log == known.log && end.partition == known.partition)
                .map_or(0, |end| end.end);
            (end < known.end).then_some(BrokerEnd { end, ..known })
        })
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let logs: HashSet<&str> = lost.iter().map(|end| &*end.log).collect();
    let reopened = store.reopen_legs(&lost).await?;
    tracing::warn!(reopened, ?logs, "the embedded logs had lost their unsynced tail; publishing it again");
    Ok(())
}
