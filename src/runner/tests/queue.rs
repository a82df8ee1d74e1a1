//! Commands wake; the store decides.

use super::control::headers;
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
    // Its job has ended meanwhile, by a later attempt.
    let id = site.submit_with(|job| {
        job.status = JobStatus::Completed;
        job.attempt = 2;
    });
    for _ in 0..100 {
        site.queue.publish(SUBMIT_SUBJECT, id);
    }
    let last = site.queue.publish(SUBMIT_SUBJECT, id);
    site.queue.acked(last).await;
    // Many with one claim, once it is known that nothing waits.
    assert!(site.control.with(|state| state.claims) < 20);
    assert_eq!(site.control.with(|state| state.dead.clone()), Vec::<String>::new());
    working.stop().await;
}

#[tokio::test]
async fn what_no_runner_can_serve_is_a_dead_letter_and_then_terminated() {
    let (site, working) = quiet("exit 0").await;
    let (id, missing) = (site.submit(), Id::new());
    let submitted = site.control.job(id);
    let queue = &site.queue;
    let foreign = crate::domain::event::Headers { event_type: "job.submitted".into(), ..headers(id) };
    let dead = [
        (queue.publish_raw(SUBMIT_SUBJECT, Err("no headers".into()), "garbage".into()), "no headers"),
        (queue.publish_raw(SUBMIT_SUBJECT, Ok(headers(id)), "garbage".into()), "body: "),
        (queue.publish_raw(SUBMIT_SUBJECT, Ok(foreign), "{}".into()), "its type is job.submitted"),
        (queue.publish_raw(SUBMIT_SUBJECT, Ok(headers(id)), "{}".into()), "missing field"),
        (queue.publish_changed(SUBMIT_SUBJECT, id, |command| command.job_id = missing), "its body of job"),
        (queue.publish_changed(SUBMIT_SUBJECT, id, |command| command.runner = RunnerKind::External), "kind external"),
        (queue.publish(SUBMIT_SUBJECT, missing), "there is no job"),
    ];
    let good = queue.publish(SUBMIT_SUBJECT, id);
    queue.acked(good).await;
    site.control.ended(id).await;
    // Only of a job that was not claimed just now: of that one the store knows it all.
    let more = [
        (queue.publish_changed(SUBMIT_SUBJECT, id, |command| command.agent = "Other".into()), "of agent Agent"),
        (queue.publish_changed(SUBMIT_SUBJECT, id, |command| command.attempt = 2), "asks for attempt 2"),
    ];
    for (token, reason) in dead.into_iter().chain(more) {
        let why = queue.terminated(token).await;
        assert!(why.contains(reason), "{why}");
        assert!(!queue.is_acked(token), "{why}");
    }
    let kept = site.control.with(|state| state.dead.clone());
    assert_eq!(kept.len(), 9, "{kept:?}");
    assert_eq!(submitted.attempt, site.control.job(id).attempt);
    working.stop().await;
}

#[tokio::test]
async fn nothing_is_terminated_before_the_store_has_its_dead_letter() {
    let (site, working) = quiet("exit 0").await;
    site.control.with(|state| state.burials_fail = Some(ControlError::Unavailable("test".into())));
    let garbage = site.queue.publish_raw(SUBMIT_SUBJECT, Err("no headers".into()), "garbage".into());
    site.control.until("refused dead letters", |state| (state.turned_away >= 2).then_some(())).await;
    assert!(!site.queue.is_acked(garbage) && !site.queue.is_terminated(garbage));
    site.control.with(|state| state.burials_fail = None);
    site.queue.terminated(garbage).await;
    assert_eq!(site.control.with(|state| state.dead.len()), 1);
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
