//! The slow path: holes and heads, from the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Turn;
use crate::realtime::{Published, Realtime, Update};
use crate::store::{Store, StoreError};

/// Holes are filled this often, all with one query.
const FILL_EVERY: Duration = Duration::from_millis(50);
/// A hole this young mostly closes by itself: the events of a user's channel take
/// different ways.
const HOLE_AGE: Duration = Duration::from_millis(20);
/// Heads are compared with what was delivered this often.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Filler {
    pub realtime: Realtime,
    pub store: Arc<dyn Store>,
    /// The queue is read anew: what came before is in the store.
    pub resubscribed: Arc<tokio::sync::Notify>,
}

impl Filler {
    pub async fn run(self, stop: CancellationToken) {
        let mut fill = tokio::time::interval(FILL_EVERY);
        fill.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.resubscribed.notified() => self.sweep().await,
                _ = sweep.tick() => self.sweep().await,
                _ = fill.tick() => self.fill().await,
            };
            match done {
                Ok(asked) => away &= !asked,
                Err(error) => {
                    // Once: it is tried again with every tick.
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "holes of live channels cannot be filled; trying again");
                    }
                }
            }
        }
    }

    /// One query for the heads of all joined channels. True when the store was asked.
    async fn sweep(&self) -> Result<bool, StoreError> {
        let channels = self.realtime.joined_channels();
        if channels.is_empty() {
            return Ok(false);
        }
        let heads = self.store.channel_heads(&channels).await?;
        self.realtime.note_heads(channels.into_iter().zip(heads));
        Ok(true)
    }

    /// One query for the holes of all channels. True when the store was asked.
    async fn fill(&self) -> Result<bool, StoreError> {
        let mut turn = Turn::new();
        while self.realtime.settle() == Published::Crowded {
            turn.after(Published::Crowded).await;
        }
        let holes = self.realtime.holes(HOLE_AGE);
        if holes.is_empty() {
            return Ok(false);
        }
        let found = self.store.channel_ranges(&holes).await?;
        for (channel, event) in found {
            turn.after(self.realtime.fill(&channel, Update::of_event(&event))).await;
        }
        self.realtime.filled(&holes);
        Ok(true)
    }
}
