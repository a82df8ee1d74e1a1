//! Listens to the commands for this runner. Both kinds are hints: the store decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::report::Backoff;
use super::worker::Active;
use super::{JobControl, quarantine};
use crate::broker::{AckToken, Delivery, Inbound, Source, Subscriber, Subscription, SubscriptionLost};
use crate::domain::Id;

/// Who reads the work queue: the durable consumer, and the owner of its dead letters.
pub const CONSUMER: &str = "runner-process";
pub(super) const SUBMIT_STREAM: &str = "COMMANDS_JOB";
pub(super) const SUBMIT_SUBJECT: &str = "commands.job.submit.process";
pub(super) const CANCEL_STREAM: &str = "COMMANDS_JOB_CANCEL";
pub(super) const CANCEL_SUBJECT: &str = "commands.job.cancel";
/// Few, so that other instances are woken too.
const PREFETCH: usize = 64;
/// Well above the time of a claim.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// There may be work. The answer is which jobs the claim that followed brought.
pub(super) struct Wake {
    pub answer: oneshot::Sender<Vec<Id>>,
}

/// Turns commands of the work queue into wakes, one at a time and only while there is
/// room; acknowledges them after the claim, and ends those that no runner can serve once they
/// are dead letters. Never returns while the worker lives.
pub(super) async fn wake(
    subscriber: Arc<dyn Subscriber>,
    control: Arc<dyn JobControl>,
    wakes: mpsc::Sender<Wake>,
    mut room: watch::Receiver<usize>,
    listening: Arc<AtomicBool>,
) {
    let subscription = Subscription {
        consumer: CONSUMER.into(),
        source: Source::WorkQueue { stream: SUBMIT_STREAM.into(), filter: SUBMIT_SUBJECT.into() },
        prefetch: PREFETCH,
        ack_wait: ACK_WAIT,
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        let lost = match subscriber.subscribe(&subscription).await {
            Err(lost) => lost,
            Ok(mut inbound) => {
                backoff.reset();
                listening.store(true, Ordering::Relaxed);
                let ended = pass_on(&mut *inbound, &*control, &wakes, &mut room).await;
                listening.store(false, Ordering::Relaxed);
                match ended {
                    Err(lost) => lost,
                    Ok(()) => return,
                }
            }
        };
        tracing::warn!(subject = SUBMIT_SUBJECT, %lost, "cannot read commands; polling the store meanwhile");
        sleep(backoff.next()).await;
    }
}

/// `Ok` when the worker is gone.
async fn pass_on(
    inbound: &mut dyn Inbound,
    control: &dyn JobControl,
    wakes: &mpsc::Sender<Wake>,
    room: &mut watch::Receiver<usize>,
) -> Result<(), SubscriptionLost> {
    let mut idle = false;
    loop {
        let free = match room.wait_for(|free| *free > 0).await {
            Ok(free) => *free,
            Err(_) => return Ok(()),
        };
        // After a claim that brought nothing what is queued is stale: away with it. Otherwise
        // no more than can be started here.
        let commands = inbound.receive(if idle { PREFETCH } else { free.min(PREFETCH) }).await?;
        let (answer, claimed) = oneshot::channel();
        if wakes.send(Wake { answer }).await.is_err() {
            return Ok(());
        }
        // Not acknowledged: they are delivered again, here or elsewhere.
        let Ok(claimed) = claimed.await else { return Ok(()) };
        idle = claimed.is_empty();
        let sorted = quarantine::sort(control, commands, &claimed).await;
        if !sorted.dead.is_empty() {
            inbound.terminate(&sorted.dead).await?;
        }
        inbound.ack(&sorted.done).await?;
    }
}

/// Makes runs ask the store when somebody asks for their end.
pub(super) async fn hints(subscriber: Arc<dyn Subscriber>, active: Active) {
    let subscription = Subscription {
        consumer: "runner-process-cancel".into(),
        source: Source::Ephemeral { stream: CANCEL_STREAM.into(), filter: CANCEL_SUBJECT.into() },
        prefetch: 256,
        ack_wait: ACK_WAIT,
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        let lost = match subscriber.subscribe(&subscription).await {
            Err(lost) => lost,
            Ok(mut inbound) => {
                backoff.reset();
                loop {
                    let commands = match inbound.receive(256).await {
                        Ok(commands) => commands,
                        Err(lost) => break lost,
                    };
                    commands.iter().filter_map(job_of).for_each(|job| active.hint(job));
                    if let Err(lost) = inbound.ack(&tokens(&commands)).await {
                        break lost;
                    }
                }
            }
        };
        tracing::warn!(subject = CANCEL_SUBJECT, %lost, "cannot read cancel commands; heartbeats tell meanwhile");
        sleep(backoff.next()).await;
    }
}

fn tokens(commands: &[Delivery]) -> Vec<AckToken> {
    commands.iter().map(|command| command.token).collect()
}

/// The job a command is about: from its headers, else from its body.
fn job_of(command: &Delivery) -> Option<Id> {
    #[derive(Deserialize)]
    struct Body {
        job_id: Id,
    }
    let aggregate = command.headers.as_ref().ok().and_then(|headers| headers.aggregate_id.parse().ok());
    aggregate.or_else(|| serde_json::from_slice::<Body>(&command.body).ok().map(|body| body.job_id))
}
