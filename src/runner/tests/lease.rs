//! The store away, or of another mind.

use super::*;
use crate::domain::job::Report;
use crate::runner::ControlError;

fn unavailable() -> Option<ControlError> {
    Some(ControlError::Unavailable("test".into()))
}

/// Waits until nothing runs here any more; says what was reported last.
async fn abandoned(site: &Site, working: &Working, pid: i32) {
    until("the end of the run", || (working.handle.running() == 0).then_some(())).await;
    assert!(!is_alive(pid));
    site.control.with(|state| {
        let words = state.reports.iter().filter(|(_, report)| !matches!(report, Report::Running { .. }));
        assert_eq!(words.count(), 0, "an attempt that is not ours is not reported");
    });
    assert_eq!(std::fs::read_dir(site.path("runs/active")).unwrap().count(), 0);
}

const WAITS: &str = "echo $$ > \"$here/pid\"; exec sleep 1000";

#[tokio::test]
async fn the_lease_is_renewed_as_long_as_it_runs() {
    let mut site = Site::with_script("echo > \"$here/ready\"; while [ ! -e \"$here/go\" ]; do sleep 0.01; done");
    site.options.lease = Duration::from_secs(1);
    let id = site.submit();
    let working = site.start();
    let claimed_until = site.control.has_status(id, JobStatus::Running).await.lease_until.unwrap();
    // Twice the lease at a third of it each.
    site.control.until("six renewals", |state| (state.heartbeats >= 6).then_some(())).await;
    assert!(site.control.job(id).lease_until.unwrap() > claimed_until.plus_ms(1_000));
    std::fs::write(site.path("go"), "").unwrap();
    assert_eq!(site.control.ended(id).await.status, JobStatus::Completed);
    working.stop().await;
}

#[tokio::test]
async fn a_run_that_was_given_to_somebody_else_is_abandoned() {
    let mut site = Site::with_script(WAITS);
    site.options.lease = Duration::from_secs(1);
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    site.control.with(|state| state.jobs.get_mut(&id).unwrap().claimant = Some("somebody else".into()));
    abandoned(&site, &working, pid).await;
    working.stop().await;
}

#[tokio::test]
async fn a_run_whose_attempt_has_ended_is_abandoned() {
    let mut site = Site::with_script(WAITS);
    site.options.lease = Duration::from_secs(1);
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    site.control.with(|state| {
        let job = state.jobs.get_mut(&id).unwrap();
        job.status = JobStatus::Failed;
        job.lease_until = None;
    });
    abandoned(&site, &working, pid).await;
    working.stop().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_ends_the_run_in_time() {
    let mut site = Site::with_script(&format!("trap '' TERM; {WAITS}"));
    site.options.lease = Duration::from_secs(1);
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    site.control.with(|state| {
        state.heartbeats_fail = unavailable();
        state.reports_fail = unavailable();
    });
    let last_lease = site.control.job(id).lease_until.unwrap();
    until("the end of the process", || (!is_alive(pid)).then_some(())).await;
    // KILL, without the grace of 20 s.
    assert!(Timestamp::now() < last_lease.plus_ms(5_000));
    abandoned(&site, &working, pid).await;
    assert_eq!(site.control.job(id).status, JobStatus::Running, "the store will see the lease lapse");
    working.stop().await;
}

#[tokio::test]
async fn the_end_is_reported_however_long_the_store_is_away() {
    let mut site = Site::with_script(
        r#"
        while [ ! -e "$here/go" ]; do sleep 0.01; done
        echo '{"progress": 0.9}'
        echo '{"result": {"ok": 1}}'
        echo > "$here/over"
        "#,
    );
    site.options.shutdown_limit = Duration::from_secs(2);
    let id = site.submit();
    let working = site.start();
    site.control.has_status(id, JobStatus::Running).await;
    site.control.with(|state| state.reports_fail = unavailable());
    std::fs::write(site.path("go"), "").unwrap();
    site.line("over").await;
    let before = site.control.with(|state| state.turned_away);
    site.control.until("some tries", |state| (state.turned_away >= before + 6).then_some(())).await;
    assert_eq!(site.control.job(id).status, JobStatus::Running);
    assert_eq!(working.handle.running(), 1, "it keeps its place until it is settled");
    site.control.with(|state| state.reports_fail = None);
    let job = site.control.ended(id).await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    assert!(!site.control.with(|state| state.samples[&id].clone()).is_empty(), "samples were kept");
    working.stop().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_store_that_is_away() {
    let mut site = Site::with_script(WAITS);
    site.options.shutdown_limit = Duration::from_secs(1);
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    site.control.with(|state| state.reports_fail = unavailable());
    working.stop().await;
    assert!(!is_alive(pid));
    assert_eq!(site.control.job(id).status, JobStatus::Running);

    // What could not be said then is said at the next start.
    site.control.with(|state| state.reports_fail = None);
    let again = site.start();
    let job = site.control.ended(id).await;
    assert_eq!((job.error.unwrap().code.as_str(), job.retry_count), ("runner_lost", 0));
    again.stop().await;
}

#[tokio::test]
async fn a_refused_end_is_not_repeated() {
    let site = Site::with_script("while [ ! -e \"$here/go\" ]; do sleep 0.01; done");
    let id = site.submit();
    let working = site.start();
    site.control.has_status(id, JobStatus::Running).await;
    site.control.with(|state| state.reports_fail = Some(ControlError::Refused("test".into())));
    std::fs::write(site.path("go"), "").unwrap();
    until("the end of the run", || (working.handle.running() == 0).then_some(())).await;
    working.stop().await;
}

#[tokio::test]
async fn the_next_attempt_starts_while_the_end_of_the_one_before_is_not_settled() {
    let site = Site::with_script("[ $GATEWAY_ATTEMPT = 2 ] || exit 1");
    let id = site.submit();
    site.control.with(|state| state.reports_fail = unavailable());
    let working = site.start();
    site.control.until("a try to report the end", |state| (state.turned_away >= 2).then_some(())).await;
    // Its lease lapsed and it was requeued.
    site.control.with(|state| {
        let job = state.jobs.get_mut(&id).unwrap();
        (job.status, job.attempt, job.claimant, job.lease_until) = (JobStatus::Queued, 2, None, None);
    });
    site.control.until("the second claim", |state| state.jobs[&id].claimant.as_ref().map(drop)).await;
    site.control.with(|state| state.reports_fail = None);
    let job = site.control.ended(id).await;
    assert_eq!((job.status, job.attempt), (JobStatus::Completed, 2));
    working.stop().await;
}
