//! What is deleted with age, when, and in which order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::consumer::metrics::MINUTE_MODEL;
use crate::domain::Timestamp;
use crate::domain::catalogue::Catalogue;
use crate::store::{Duty, Prunable, PruneStep, Store, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::PrunedRows;

/// Rows looked at in one step, so that no COMMIT waits long.
const CHUNK: u32 = 250;
/// Of the writer's time: pruning takes at most one part in this many.
const SHARE: u32 = 5;

/// How long each kind of rows is kept.
#[derive(Clone, Debug)]
pub struct Retention {
    keep: Vec<(Prunable, Duration)>,
}

/// Rows deleted, by kind; those without any are left out.
pub type Deleted = BTreeMap<&'static str, u64>;

impl Retention {
    /// Everything that grows old. The inbox outlives the logs it guards against.
    pub fn new(config: &Config, catalogue: &Catalogue) -> Self {
        let keep = config.retention.keep;
        let logs = catalogue.topics().iter().map(|topic| topic.retention).max().unwrap_or_default();
        Self {
            keep: vec![
                (Prunable::Jobs, keep),
                (Prunable::Events, keep),
                // A day more: brokers delete by the segment, not by the record.
                (Prunable::Inbox, keep.max(logs + Duration::from_secs(24 * 3600))),
                (Prunable::Audit, config.retention.audit.unwrap_or(keep)),
                (Prunable::TimedModel(MINUTE_MODEL), config.retention.aggregates.unwrap_or(keep)),
                (Prunable::Idempotency, config.idempotency.keep),
            ],
        }
    }

    /// Kinds whose name is not in `only` stay, unless it is empty.
    pub fn only(mut self, only: &[String]) -> Self {
        self.keep.retain(|(what, _)| only.is_empty() || only.iter().any(|kind| kind == what.as_str()));
        self
    }

    /// Deletes (or counts) what is too old, step by step, until nothing is left or `stop`.
    ///
    /// # Errors
    /// The store is away; what was deleted until then stays deleted.
    pub async fn run(
        &self,
        store: &dyn Store,
        dry_run: bool,
        stop: &CancellationToken,
        metrics: Option<&Metrics>,
    ) -> Result<Deleted, StoreError> {
        let mut deleted = Deleted::new();
        for (what, keep) in &self.keep {
            let before = Timestamp::now().plus_ms(-i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
            let mut step = PruneStep { dry_run, ..PruneStep::first(*what, before, CHUNK) };
            loop {
                if stop.is_cancelled() {
                    return Ok(deleted);
                }
                let started = Instant::now();
                let pruned = store.prune(&step).await?;
                if pruned.rows > 0 {
                    *deleted.entry(what.as_str()).or_default() += pruned.rows;
                    if let (Some(metrics), false) = (metrics, dry_run) {
                        metrics.pruned[label(*what)].inc_by(pruned.rows);
                    }
                }
                let Some(next) = pruned.next else { break };
                step.after = Some(next);
                if !dry_run {
                    pause(started.elapsed() * (SHARE - 1), stop).await;
                }
            }
        }
        Ok(deleted)
    }
}

/// Leaves the writer to those who wait for an answer.
async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time.min(Duration::from_secs(1))) => {}
    }
}

fn label(what: Prunable) -> PrunedRows {
    match what {
        Prunable::Jobs => PrunedRows::Jobs,
        Prunable::Events => PrunedRows::Events,
        Prunable::Inbox => PrunedRows::Inbox,
        Prunable::Audit => PrunedRows::Audit,
        Prunable::TimedModel(_) => PrunedRows::Aggregates,
        Prunable::Idempotency => PrunedRows::Idempotency,
    }
}

/// Runs retention now and then until cancelled.
pub(super) struct Keeper {
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
    pub retention: Retention,
    pub interval: Duration,
}

impl Keeper {
    /// Runs until `stop`; a step in progress is finished.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.interval) => {}
            }
            // One instance does it for all.
            let duty = Duty { name: "retention", lease: self.interval * 2 };
            if !duty.is_ours(&*self.store).await {
                continue;
            }
            match self.retention.run(&*self.store, false, &stop, Some(&self.metrics)).await {
                Ok(deleted) if deleted.is_empty() => {}
                Ok(deleted) => tracing::info!(?deleted, "old rows deleted"),
                Err(error) => tracing::warn!(%error, "old rows cannot be deleted; next try in a while"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTES: Prunable = Prunable::TimedModel(MINUTE_MODEL);
    /// The longest that a built-in topic keeps anything: audit-trail.
    const LOGS: Duration = Duration::from_secs(90 * DAY.as_secs());

    /// How long each kind is kept under these settings, in the order of deletion.
    fn kept(set: &[(&str, &str)]) -> Vec<(Prunable, Duration)> {
        let config = Config::defaults_in(Path::new("/nowhere/gw"), set).unwrap();
        Retention::new(&config, &Catalogue::load(&[]).unwrap()).keep
    }

    #[test]
    fn each_setting_is_the_age_of_the_kind_it_names() {
        let kept = kept(&[
            ("retention.keep", "100d"),
            ("retention.audit", "200d"),
            ("retention.aggregates", "300d"),
            ("idempotency.keep", "40d"),
        ]);
        let wanted = [
            (Prunable::Jobs, 100 * DAY),
            (Prunable::Events, 100 * DAY),
            (Prunable::Inbox, 100 * DAY),
            (Prunable::Audit, 200 * DAY),
            (MINUTES, 300 * DAY),
            (Prunable::Idempotency, 40 * DAY),
        ];
        assert_eq!(kept, wanted);
    }

    #[test]
    fn what_has_no_age_of_its_own_is_kept_like_the_rest() {
        let kept = kept(&[("retention.keep", "100d")]);
        for kind in [Prunable::Audit, MINUTES] {
            assert!(kept.contains(&(kind, 100 * DAY)), "{kept:?}");
        }
        assert!(kept.contains(&(Prunable::Idempotency, DAY)), "{kept:?}");
    }

    #[test]
    fn the_inbox_is_kept_a_day_longer_than_the_logs_at_least() {
        for (keep, inbox) in [("1h", LOGS + DAY), ("90d", LOGS + DAY), ("2185h", LOGS + DAY + HOUR)] {
            let kept = kept(&[("retention.keep", keep)]);
            assert!(kept.contains(&(Prunable::Inbox, inbox)), "{keep}: {kept:?}");
        }
    }
}
