//! A gateway that was killed, and the next one.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::runner::family::{Identity, boot_id};
use crate::runner::orphans;
use crate::runner::rundir::{Record, WorkDir};

const SITE: &str = "RUNNER_TEST_SITE";

/// Not a test: the gateway that [`processes_of_a_killed_gateway_are_ended`] kills. It runs one
/// job until then.
#[tokio::test]
#[ignore = "started by another test"]
async fn gateway_to_be_killed() {
    let Some(dir) = std::env::var_os(SITE).map(PathBuf::from) else { return };
    let mut site = Site::new();
    site.options.work_dir = dir.join("runs");
    let script = r#"
        trap '' TERM
        setsid sh -c 'trap "" TERM; echo $$ > "$0/runaway"; while :; do sleep 0.05; done' "$0" &
        sh -c 'trap "" TERM; echo $$ > "$0/child"; while :; do sleep 0.05; done' "$0" &
        echo "$GATEWAY_JOB_ID" > "$0/job"
        echo $$ > "$0/pid"
        while :; do sleep 0.05; done
    "#;
    site.options.agents.insert("Agent".into(), vec!["/bin/sh".into(), "-c".into(), script.into(), dir.into()]);
    site.submit();
    let _working = site.start();
    // Should the other test have died, so does this one.
    tokio::time::sleep(LIMIT * 2).await;
}

#[tokio::test]
async fn processes_of_a_killed_gateway_are_ended() {
    let site = Site::new();
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "runner::tests::orphans::gateway_to_be_killed"])
        .env(SITE, site.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids = [site.pid("pid").await, site.pid("child").await, site.pid("runaway").await];
    let job: Id = site.line("job").await.parse().unwrap();
    until("the record with its process", || {
        let records = WorkDir::open(&site.options.work_dir).unwrap().records().unwrap();
        records.first().is_some_and(|record| record.leader.is_some()).then_some(())
    })
    .await;
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert!(pids.iter().all(|pid| is_alive(*pid)), "they outlive their gateway");

    // A job that waits: nothing may be claimed before all are gone.
    site.control.submit(super::job());
    let working = site.start();
    site.control
        .until("the report", |state| {
            assert!(state.claims == 0 || pids.iter().all(|pid| !is_alive(*pid)), "claimed too early");
            (state.orphaned == [(job, 1, "process:test:1".to_owned())]).then_some(())
        })
        .await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    site.control.until("the first claim", |state| (state.claims > 0).then_some(())).await;
    assert_eq!(std::fs::read_dir(site.path("runs/active")).unwrap().count(), 0);
    working.stop().await;
}

/// A process that has nothing to do with any run.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").process_group(0).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn identity(&self) -> Identity {
        Identity::of(i32::try_from(self.0.id()).unwrap()).unwrap()
    }

    fn survives(mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn record(leader: Option<Identity>, boot_id: String) -> Record {
    Record { run_id: Id::new(), job_id: Id::new(), attempt: 1, claimant: "process:test:0".into(), boot_id, leader }
}

#[test]
fn a_process_that_has_got_the_number_of_an_orphan_is_left_alone() {
    let stranger = Stranger::new();
    let earlier = Identity { start_time: stranger.identity().start_time - 1, ..stranger.identity() };
    orphans::end(&[record(Some(earlier), boot_id().unwrap())], &boot_id().unwrap());
    assert!(stranger.survives());
}

#[test]
fn after_a_reboot_no_number_means_anything() {
    let stranger = Stranger::new();
    orphans::end(&[record(Some(stranger.identity()), "another boot".into())], &boot_id().unwrap());
    assert!(stranger.survives());
}

#[test]
fn the_very_process_is_ended() {
    // The counterpart of the two above: without it they could not fail.
    let stranger = Stranger::new();
    orphans::end(&[record(Some(stranger.identity()), boot_id().unwrap())], &boot_id().unwrap());
    assert!(!stranger.survives());
}

#[test]
fn a_run_whose_start_was_not_recorded_is_found_by_its_mark() {
    let record = record(None, boot_id().unwrap());
    let marked = Command::new("sleep").arg("1000").env("GATEWAY_RUN_ID", record.run_id.to_string()).spawn().unwrap();
    let (marked, stranger) = (Stranger(marked), Stranger::new());
    orphans::end(&[record], &boot_id().unwrap());
    assert!(!marked.survives());
    assert!(stranger.survives());
}
