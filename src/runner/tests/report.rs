//! What is kept for a store that is away.

use super::*;
use crate::domain::job::Report;
use crate::domain::payload::JobMetrics;
use crate::runner::ControlError;
use crate::runner::report::{Reporter, Settled};
use crate::service::Sample;
use tokio::sync::Notify;
use tokio::time::Instant;

fn sample(number: i64) -> Sample {
    Sample {
        host: None,
        sample_timestamp: Timestamp(number),
        sample_interval_seconds: 1.0,
        metrics: JobMetrics::default(),
    }
}

/// A RUNNING job and its reporter.
fn running(site: &Site) -> (Id, Reporter) {
    let claimant: Arc<str> = "process:test:1".into();
    let id = site.submit_with(|job| {
        job.status = JobStatus::Running;
        job.claimant = Some(claimant.clone());
        job.lease_until = Some(Timestamp::now().plus_ms(30_000));
        job.started_at = Some(Timestamp::now());
    });
    let lease = (Instant::now(), Duration::from_secs(30));
    (id, Reporter::new(site.control.clone(), (id, 1), claimant, lease, Arc::new(Notify::new())))
}

/// The numbers of the samples that the store has.
fn stored(site: &Site, id: Id) -> Vec<i64> {
    site.control
        .with(|state| {
            state.samples.get(&id).map(|samples| samples.iter().map(|sample| sample.sample_timestamp.0).collect())
        })
        .unwrap_or_default()
}

#[tokio::test]
async fn the_latest_samples_are_kept_and_sent_once() {
    let site = Site::new();
    let (id, reporter) = running(&site);
    site.control.with(|state| state.reports_fail = Some(ControlError::Unavailable("test".into())));
    let story = async {
        for number in 0..1_000 {
            reporter.sample(sample(number));
        }
        site.control.until("a failure", |state| (state.turned_away > 0).then_some(())).await;
        site.control.with(|state| state.reports_fail = None);
        site.control.until("all that were kept", |state| (state.samples.get(&id)?.len() == 600).then_some(())).await;
        reporter.sample(sample(1_000));
        reporter.close();
    };
    tokio::join!(story, reporter.updates());
    assert_eq!(stored(&site, id), (400..=1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_last_word_brings_the_samples_along() {
    let site = Site::new();
    let (id, reporter) = running(&site);
    for number in 0..150 {
        reporter.sample(sample(number));
    }
    let settled = reporter.settle(Report::Completed { result: Box::default() }).await;
    assert_eq!(settled, Settled::Accepted);
    assert_eq!(stored(&site, id), (0..150).collect::<Vec<_>>());
}

#[tokio::test]
async fn progress_is_coalesced_to_four_a_second_and_while_the_store_is_away() {
    let site = Site::new();
    let (id, reporter) = running(&site);
    let begun = Instant::now();
    let story = async {
        let mut step = 0.0;
        let mut advance = async |steps: i32| {
            for _ in 0..steps {
                step += 0.001;
                reporter.progress(step, None);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        advance(100).await;
        site.control.with(|state| state.reports_fail = Some(ControlError::Unavailable("test".into())));
        advance(100).await;
        site.control.with(|state| state.reports_fail = None);
        site.control.until("the last", |state| (*state.progress(id).last()? > 0.199).then_some(())).await;
        reporter.close();
    };
    tokio::join!(story, reporter.updates());
    let progress = site.control.with(|state| state.progress(id));
    assert!(progress.is_sorted() && progress[0] == 0.001, "{progress:?}");
    let allowed = 1 + begun.elapsed().as_millis() as usize / 250;
    assert!(progress.len() <= allowed, "{progress:?} in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_refused_update_is_dropped_and_asks_whether_the_attempt_is_still_ours() {
    let site = Site::new();
    let (id, reporter) = running(&site);
    site.control.with(|state| state.reports_fail = Some(ControlError::Refused("test".into())));
    let story = async {
        reporter.sample(sample(1));
        reporter.progress(0.5, None);
        site.control.until("a heartbeat long before it is due", |state| (state.heartbeats > 0).then_some(())).await;
        site.control.with(|state| state.reports_fail = None);
        reporter.sample(sample(2));
        reporter.close();
    };
    let begun = Instant::now();
    tokio::select! {
        _ = async { tokio::join!(story, reporter.updates()) } => {}
        never = reporter.hold_lease() => match never {},
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(stored(&site, id), [2]);
}
