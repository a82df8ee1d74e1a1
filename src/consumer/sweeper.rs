//! The retry machine: failed deliveries come back on time, one per key.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Message;
use super::runtime::{Paused, Processor, Work};
use crate::domain::Timestamp;
use crate::store::BacklogRow;

/// How often parked rows without a head are looked for, and the longest sleep.
const ROUND: Duration = Duration::from_secs(30);
const BATCH: u32 = 128;

pub(super) struct Sweeper {
    processor: Arc<Processor>,
}

impl Sweeper {
    pub fn new(processor: Arc<Processor>) -> Self {
        Self { processor }
    }

    pub async fn run(self, stop: CancellationToken) {
        let name = self.processor.declaration.name;
        let mut headless_at = tokio::time::Instant::now();
        while !stop.is_cancelled() {
            if headless_at <= tokio::time::Instant::now() {
                headless_at = tokio::time::Instant::now() + ROUND;
                match self.processor.parts.store.wake_headless(name, Timestamp::now()).await {
                    Ok(0) => {}
                    Ok(woken) => tracing::warn!(consumer = name, woken, "woke parked messages without a head"),
                    Err(error) => tracing::warn!(consumer = name, %error, "the backlog cannot be swept"),
                }
            }
            let wait = match self.round().await {
                Ok(wait) => wait,
                Err(Paused(why)) => {
                    tracing::warn!(consumer = name, why, "retries are paused");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.processor.retry_soon.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Handles what is due; says how long nothing will be.
    async fn round(&self) -> Result<Duration, Paused> {
        loop {
            let now = Timestamp::now();
            let due = self.processor.parts.store.backlog_due(self.processor.declaration.name, now, BATCH).await;
            let (rows, next) = due.map_err(|error| Paused(error.to_string()))?;
            if rows.is_empty() {
                let wait = next.map_or(ROUND, |at| Duration::from_millis(at.ms_since(now) as u64));
                return Ok(wait.min(ROUND));
            }
            let work = rows.into_iter().filter_map(|row| self.work(row)).collect::<Vec<_>>();
            if work.is_empty() {
                return Ok(ROUND);
            }
            self.processor.process(work).await?;
        }
    }

    fn work(&self, row: BacklogRow) -> Option<Work<'static>> {
        let Some(headers) = row.message.headers.clone() else {
            tracing::error!(event_id = %row.event_id, "a backlog row has unreadable headers");
            return None;
        };
        let event_type = self.processor.parts.catalogue.get(&headers.event_type)?.clone();
        Some(Work {
            message: Message { headers, event_type, encoding: row.message.encoding, body: row.message.body.clone() },
            stored: row.message,
            attempts: row.attempts,
            delivery: None,
        })
    }
}
