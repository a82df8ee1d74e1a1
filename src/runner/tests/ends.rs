//! Runs that are ended before they end themselves, and what they leave behind.

use super::*;
use crate::runner::commands::CANCEL_SUBJECT;

/// Starts a child in the group and one in a session of its own, then waits.
const FAMILY: &str = r#"
    sleep 1000 & echo $! > "$here/child"
    setsid sh -c 'echo $$ > "$0/runaway"; exec sleep 1000' "$here" > /dev/null 2>&1 &
    while [ ! -s "$here/runaway" ]; do sleep 0.01; done
"#;

async fn family(site: &Site) -> [i32; 2] {
    [site.pid("child").await, site.pid("runaway").await]
}

#[tokio::test]
async fn a_cancelled_job_ends_at_once_when_the_command_hints_at_it() {
    // Neither heartbeat nor report would tell within the limit of the test.
    let mut site = Site::with_script(&format!("{FAMILY} echo $$ > \"$here/pid\"; sleep 1000"));
    site.options.lease = Duration::from_secs(3600);
    site.options.sample_interval = Duration::from_secs(3600);
    let (id, other) = (site.submit(), site.submit_with(|job| job.agent = "Other".into()));
    let mut site = site;
    site.script("Other", "while [ ! -e \"$here/go\" ]; do sleep 0.01; done");
    let working = site.start();
    let (pid, family) = (site.pid("pid").await, family(&site).await);
    site.queue.subscribed(CANCEL_SUBJECT).await;

    // Only a hint: as long as the store does not say so nothing ends.
    let hint = site.queue.publish(CANCEL_SUBJECT, id);
    site.queue.acked(hint).await;
    site.control.until("the heartbeat it causes", |state| (state.heartbeats == 1).then_some(())).await;
    assert!(is_alive(pid));

    site.control.cancel(id);
    site.queue.publish(CANCEL_SUBJECT, id);
    let job = site.control.ended(id).await;
    assert_eq!(job.status, JobStatus::Cancelled);
    assert!([pid, family[0], family[1]].iter().all(|pid| !is_alive(*pid)));
    assert_eq!(site.control.job(other).status, JobStatus::Running);
    std::fs::write(site.path("go"), "").unwrap();
    assert_eq!(site.control.ended(other).await.status, JobStatus::Completed);
    working.stop().await;
}

#[tokio::test]
async fn any_answer_of_the_store_can_carry_the_cancel() {
    let site = Site::with_script("sleep 1000");
    let id = site.submit();
    let working = site.start();
    site.control.has_status(id, JobStatus::Running).await;
    site.control.cancel(id);
    // Without command and before the first heartbeat: the answer to a sample.
    assert_eq!(site.control.ended(id).await.status, JobStatus::Cancelled);
    assert_eq!(site.control.with(|state| state.heartbeats), 0);
    working.stop().await;
}

#[tokio::test]
async fn an_agent_may_clean_up_at_term() {
    let site = Site::with_script(
        r#"trap 'echo yes > "$here/cleaned"; exit 0' TERM; echo > "$here/ready"; while :; do sleep 0.01; done"#,
    );
    let id = site.submit();
    let working = site.start();
    site.line("ready").await;
    site.control.cancel(id);
    assert_eq!(site.control.ended(id).await.status, JobStatus::Cancelled);
    assert_eq!(site.line("cleaned").await, "yes");
    working.stop().await;
}

#[tokio::test]
async fn a_stopped_agent_gets_its_term_too() {
    let site = Site::with_script("echo $$ > \"$here/pid\"; exec sleep 1000");
    let id = site.submit();
    let working = site.start();
    let pid = site.pid("pid").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let stopped = std::time::Instant::now();
    site.control.cancel(id);
    assert_eq!(site.control.ended(id).await.status, JobStatus::Cancelled);
    assert!(stopped.elapsed() < site.options.cancel_grace, "it did not take a KILL");
    working.stop().await;
}

#[tokio::test]
async fn one_that_ignores_term_is_killed_at_its_time_limit() {
    let mut site = Site::with_script(&format!(
        "trap '' TERM; {FAMILY} echo $$ > \"$here/pid\"; echo working >&2; while :; do sleep 0.01; done"
    ));
    site.options.cancel_grace = Duration::from_millis(200);
    let id = site.submit_with(|job| job.params = params(r#"{"wall_time_ms": 700}"#));
    let working = site.start();
    let job = site.control.ended(id).await;
    let error = job.error.unwrap();
    assert_eq!((error.code.as_str(), error.retriable), ("wall_time_exceeded", false));
    assert_eq!(job.retry_at, None);
    assert!(error.message.contains("0.7 s"), "{}", error.message);
    assert_eq!(error.stack_trace.as_deref(), Some("working"));
    let (pid, family) = (site.pid("pid").await, family(&site).await);
    assert!([pid, family[0], family[1]].iter().all(|pid| !is_alive(*pid)));
    working.stop().await;
}

#[tokio::test]
async fn what_a_finished_job_leaves_behind_is_killed() {
    // The child holds the pipes too: nobody waits for it.
    let site = Site::with_script(&format!("{FAMILY} echo '{{\"result\": {{\"ok\": 1}}}}'; exit 0"));
    let job = site.run().await;
    assert_eq!(job.status, JobStatus::Completed, "{:?}", job.error);
    assert_eq!(job.result.unwrap().summary["ok"], 1);
    assert!(family(&site).await.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn at_shutdown_runs_are_ended_and_will_be_retried_for_free() {
    let mut site = Site::with_script("echo $$ > \"$here/pid\"; exec sleep 1000");
    site.script("Stubborn", "trap '' TERM; echo $$ > \"$here/stubborn\"; while :; do sleep 0.01; done");
    site.script(
        "Done",
        r#"trap 'echo "{\"result\": {\"ok\": 1}}"; exit 0' TERM; echo > "$here/ready"; while :; do sleep 0.01; done"#,
    );
    site.options.concurrency = 3;
    site.options.shutdown_limit = Duration::from_secs(2);
    let polite = site.submit();
    let stubborn = site.submit_with(|job| job.agent = "Stubborn".into());
    let done = site.submit_with(|job| job.agent = "Done".into());
    let queued = site.submit();
    let working = site.start();
    let pids = [site.pid("pid").await, site.pid("stubborn").await];
    site.line("ready").await;
    working.stop().await;

    for id in [polite, stubborn] {
        let job = site.control.job(id);
        let error = job.error.unwrap();
        assert_eq!((error.code.as_str(), error.retriable, job.retry_count), ("runner_stopped", true, 0));
        assert!(job.retry_at.is_some());
    }
    assert_eq!(site.control.job(done).status, JobStatus::Completed, "it finished within the grace");
    assert_eq!(site.control.job(queued).status, JobStatus::Queued, "nothing new is begun");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(std::fs::read_dir(site.path("runs/active")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_runner_that_is_dropped_leaves_no_process() {
    let site = Site::with_script(&format!("{FAMILY} echo $$ > \"$here/pid\"; sleep 1000"));
    site.submit();
    let working = site.start();
    let (pid, family) = (site.pid("pid").await, family(&site).await);
    drop(working);
    until("the end of all", || [pid, family[0], family[1]].iter().all(|pid| !is_alive(*pid)).then_some(())).await;
}
