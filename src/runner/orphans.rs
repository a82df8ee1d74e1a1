//! What an earlier life of this gateway left running: ended before anything is claimed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::family::{Identity, Search};
use super::report::{Backoff, within};
use super::rundir::{Record, WorkDir};
use super::{ControlError, JobControl};

/// From TERM to KILL: nobody waits for their results any more.
const GRACE: Duration = Duration::from_secs(2);
/// After that, how long their end is waited for.
const LIMIT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Ends all runs on record, then tells the store until it has heard of each, or `stop`.
pub(super) async fn recover(
    work_dir: &WorkDir,
    boot_id: &str,
    control: &Arc<dyn JobControl>,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let (reading, boot_id) = (work_dir.clone(), boot_id.to_owned());
    let records = spawn_blocking(move || {
        let records = reading.records()?;
        end(&records, &boot_id);
        Ok::<_, std::io::Error>(records)
    });
    for record in records.await.map_err(std::io::Error::other)?? {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let call = control.orphaned(record.job_id, record.attempt, &record.claimant);
            match within(CALL_TIMEOUT, call).await {
                Ok(()) => break,
                // Settled already, by its last word or its lease.
                Err(ControlError::Refused(_)) => break,
                Err(error) => {
                    tracing::warn!(job = %record.job_id, %error, "cannot report a lost run yet");
                    tokio::select! {
                        () = sleep(backoff.next()) => {}
                        // The record stays: the next start reports it.
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
        let removing = work_dir.clone();
        spawn_blocking(move || removing.remove_record(record.run_id)).await.map_err(std::io::Error::other)??;
    }
    Ok(())
}

/// TERM to what is left of these runs, then KILL. Blocking.
pub(super) fn end(records: &[Record], boot_id: &str) {
    // After a reboot the numbers are other processes'.
    let families: Vec<_> = records.iter().filter(|record| record.boot_id == boot_id).map(Record::family).collect();
    let started = Instant::now();
    // Remembered: when a leader is gone, its group cannot be told from a stranger's.
    let mut known: HashSet<Identity> = HashSet::new();
    loop {
        let found = families.iter().flat_map(|family| family.living(Search::Marked));
        let new: Vec<Identity> = found.filter(|process| known.insert(*process)).collect();
        for process in &new {
            tracing::warn!(pid = process.pid, "ending a process that an earlier gateway left behind");
            process.try_signal(Signal::SIGTERM);
            process.try_signal(Signal::SIGCONT);
        }
        known.retain(|process| process.is_living());
        if known.is_empty() {
            return;
        }
        if started.elapsed() > LIMIT {
            tracing::error!(processes = known.len(), "processes of an earlier gateway outlive KILL");
            return;
        }
        if started.elapsed() > GRACE {
            known.iter().for_each(|process| process.try_signal(Signal::SIGKILL));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
