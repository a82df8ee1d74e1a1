//! Commands that no runner can ever serve: not readable, or of no job there is. They go to the
//! dead-letter index; only then does the work queue forget them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::report::{Backoff, within};
use super::{ControlError, JobControl};
use crate::broker::{AckToken, Delivery};
use crate::domain::Id;
use crate::domain::job::{Job, RunnerKind};
use crate::domain::payload::{Payload, SubmitJobRequested};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What a reason quotes can be as long as a message.
const MAX_REASON_CHARS: usize = 400;

/// A command to keep for a person, and why nobody can serve it.
#[derive(Clone, Debug)]
pub struct DeadCommand {
    pub delivery: Delivery,
    pub why: String,
}

/// What becomes of deliveries once they are settled in the store.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// A claim has followed: acknowledged.
    pub done: Vec<AckToken>,
    /// Dead letters by now, and why: terminated.
    pub dead: Vec<(AckToken, Arc<str>)>,
}

/// Sorts commands after a claim that brought the jobs `claimed`. What no runner can serve is a
/// committed dead letter when this returns; while the store is away it waits for it.
pub(super) async fn sort(control: &dyn JobControl, commands: Vec<Delivery>, claimed: &[Id]) -> Sorted {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match try_sort(control, &commands, claimed).await {
            Ok(sorted) => return sorted,
            Err(error) => {
                tracing::warn!(%error, commands = commands.len(), "commands are not acknowledged yet");
                sleep(backoff.next()).await;
            }
        }
    }
}

async fn try_sort(control: &dyn JobControl, commands: &[Delivery], claimed: &[Id]) -> Result<Sorted, ControlError> {
    let read: Vec<_> = commands.iter().map(read).collect();
    // Mostly empty: a command comes before the claim that it leads to.
    let others = read.iter().flatten().map(|command| command.job_id).filter(|id| !claimed.contains(id));
    let mut others: Vec<Id> = others.collect();
    others.sort_unstable();
    others.dedup();
    let jobs = if others.is_empty() { Vec::new() } else { within(CALL_TIMEOUT, control.jobs(&others)).await? };
    let jobs: HashMap<Id, Job> = jobs.into_iter().map(|job| (job.id, job)).collect();

    let (mut sorted, mut dead) = (Sorted::default(), Vec::new());
    for (delivery, command) in commands.iter().zip(read) {
        let served = command.and_then(|command| match claimed.contains(&command.job_id) {
            true => Ok(()),
            false => matches(&command, jobs.get(&command.job_id)),
        });
        match served {
            Ok(()) => sorted.done.push(delivery.token),
            Err(why) => {
                let why: String = why.chars().take(MAX_REASON_CHARS).collect();
                sorted.dead.push((delivery.token, why.as_str().into()));
                dead.push(DeadCommand { delivery: delivery.clone(), why });
            }
        }
    }
    if !dead.is_empty() {
        within(CALL_TIMEOUT, control.bury(&dead)).await?;
    }
    Ok(sorted)
}

/// The command, or what is wrong with the message.
fn read(delivery: &Delivery) -> Result<SubmitJobRequested, String> {
    let headers = delivery.headers.as_ref().map_err(|why| format!("headers: {why}"))?;
    if &*headers.event_type != SubmitJobRequested::TYPE {
        return Err(format!("its type is {}, not {}", headers.event_type, SubmitJobRequested::TYPE));
    }
    let command: SubmitJobRequested =
        serde_json::from_slice(&delivery.body).map_err(|error| format!("body: {error}"))?;
    if *headers.aggregate_id != *command.job_id.to_string() {
        return Err(format!("its headers are of job {}, its body of job {}", headers.aggregate_id, command.job_id));
    }
    if command.runner != RunnerKind::Process {
        return Err(format!("it is for a runner of kind {}", command.runner.as_str()));
    }
    Ok(command)
}

/// Can this job have led to this command? A job that has gone on since is fine: the command is late.
fn matches(command: &SubmitJobRequested, job: Option<&Job>) -> Result<(), String> {
    let id = command.job_id;
    let Some(job) = job else { return Err(format!("there is no job {id}")) };
    if job.runner != command.runner || *job.agent != *command.agent {
        let (runner, agent) = (job.runner.as_str(), &job.agent);
        return Err(format!("job {id} is of agent {agent} (runner {runner}), the command of agent {}", command.agent));
    }
    if command.attempt > job.attempt {
        return Err(format!("it asks for attempt {} of job {id}, which is at {}", command.attempt, job.attempt));
    }
    Ok(())
}
