//! Deletes what is too old or too much and no consumer still needs.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use super::engine::Engine;
use super::log::Partition;
use super::writer::Command;
use crate::domain::Timestamp;

/// Records deleted in one transaction, so that appends never wait long.
const CHUNK: u32 = 1000;

/// Runs until the brokers close.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut ticks = tokio::time::interval(engine.limits.prune_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = engine.closing.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for partition in engine.partitions.iter() {
            // A failure is the disk's; the next round tries again.
            if let Err(why) = prune(&engine, partition).await {
                tracing::warn!(log = %partition.log, partition = partition.number, error = %why, "retention failed");
            }
        }
    }
}

/// Prunes one partition, chunk by chunk; returns how many offsets it gave up.
pub(super) async fn prune(engine: &Engine, partition: &Partition) -> Result<u64, String> {
    let retention = partition.retention;
    let max_age = i64::try_from(retention.max_age.as_millis()).unwrap_or(i64::MAX);
    let max_records = i64::try_from(retention.max_records).unwrap_or(i64::MAX);
    let mut pruned = 0;
    // Mostly there is nothing to do, which the oldest record alone tells.
    let mut look = 1;
    while !engine.closing.is_cancelled() {
        let before = Timestamp(Timestamp::now().0.saturating_sub(max_age));
        let found = engine.database.oldest(partition.id, look, before).await.map_err(|why| why.to_string())?;
        let Some(chunk) = found else { break };
        let end = partition.end();
        let surplus = end.saturating_sub(max_records);
        // The newest record stays: it tells where the partition ends.
        let limit = engine.needed(partition).min(end - 1);
        let below = chunk.young.max(surplus.min(chunk.next)).min(limit);
        if below <= chunk.first {
            break;
        }
        if look < CHUNK {
            look = CHUNK;
            continue;
        }
        let id = partition.id;
        engine.ask(|done| Command::Prune { partition: id, below, done }).await?;
        pruned += (below - chunk.first).unsigned_abs();
        if below < chunk.next {
            break;
        }
    }
    Ok(pruned)
}
