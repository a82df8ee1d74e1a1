//! Commands wake; the store decides.

use super::*;
use crate::runner::ControlError;
use crate::runner::commands::SUBMIT_SUBJECT;

/// A site where only a command can start anything in time, after its first claim.
async fn quiet(script: &str) -> (Site, Working) {
    let mut site = Site::with_script(script);
    site.options.poll_interval = Duration::from_secs(3600);
    let working = site.start();
    site.control.until("the first claim", |state| (state.claims == 1).then_some(())).await;
    site.queue.subscribed(SUBMIT_SUBJECT).await;
    (site, working)
}

#[tokio::test]
async fn a_command_starts_a_job() {
    let (site, working) = quiet("exit 0").await;
    assert!(working.handle.is_listening());
    let id = site.submit();
    let command = site.queue.publish(SUBMIT_SUBJECT, id);
    assert_eq!(site.control.ended(id).await.status, JobStatus::Completed);
    site.queue.acked(command).await;
    working.stop().await;
}

#[tokio::test]
async fn a_stale_command_is_acknowledged() {
    let (site, working) = quiet("exit 0").await;
    for _ in 0..100 {
        site.queue.publish(SUBMIT_SUBJECT, Id::new());
    }
    let last = site.queue.publish(SUBMIT_SUBJECT, Id::new());
    site.queue.acked(last).await;
    // Many with one claim, once it is known that nothing waits.
    assert!(site.control.with(|state| state.claims) < 20);
    working.stop().await;
}

#[tokio::test]
async fn a_command_is_not_acknowledged_before_its_claim() {
    let (site, working) = quiet("exit 0").await;
    site.control.with(|state| state.claims_fail = Some(ControlError::Unavailable("test".into())));
    let id = site.submit();
    let command = site.queue.publish(SUBMIT_SUBJECT, id);
    site.control.until("failed claims", |state| (state.turned_away >= 3).then_some(())).await;
    assert!(!site.queue.is_acked(command));
    site.control.with(|state| state.claims_fail = None);
    site.control.ended(id).await;
    site.queue.acked(command).await;
    working.stop().await;
}

#[tokio::test]
async fn a_freed_place_is_filled_without_a_command() {
    let mut site = Site::with_script("exit 0");
    site.options.concurrency = 1;
    site.options.poll_interval = Duration::from_secs(3600);
    let jobs: Vec<Id> = (0..4).map(|_| site.submit()).collect();
    let working = site.start();
    for id in jobs {
        assert_eq!(site.control.ended(id).await.status, JobStatus::Completed);
    }
    working.stop().await;
}

#[tokio::test]
async fn a_lost_subscription_is_opened_again() {
    let (site, working) = quiet("exit 0").await;
    site.queue.lose();
    let id = site.submit();
    site.queue.publish(SUBMIT_SUBJECT, id);
    assert_eq!(site.control.ended(id).await.status, JobStatus::Completed);
    working.stop().await;
}

#[tokio::test]
async fn without_any_command_the_poll_finds_the_job() {
    let site = Site::with_script("exit 0");
    let working = site.start();
    site.control.until("a claim that finds nothing", |state| (state.claims == 1).then_some(())).await;
    let id = site.submit();
    assert_eq!(site.control.ended(id).await.status, JobStatus::Completed);
    working.stop().await;
}
