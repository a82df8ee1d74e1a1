//! Runs one consumer: receive a batch, handle it, commit, acknowledge.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::lag::Lag;
use super::sweeper::Sweeper;
use super::{Declaration, Effects, Handler, HandlerError, Message, quarantine};
use crate::broker::{AckToken, Delivery, Inbound, Subscriber, Subscription, SubscriptionLost};
use crate::domain::Timestamp;
use crate::domain::backoff::{RETRY_DELAYS_MS, retry_delay_ms};
use crate::domain::catalogue::Catalogue;
use crate::service::committer::{CommitError, Committer};
use crate::store::{DeliveryClaim, Outcome, Store, StoredMessage, Unit, Verdict};
use crate::telemetry::facts::{DeadLettered, HandlerFailed};
use crate::telemetry::metrics::{ConsumerMetrics, FailureClass};

/// Messages handled and committed together.
const BATCH: usize = 256;
/// Messages that a consumer has in hand at most.
pub const PREFETCH: usize = 1_024;
/// A batch that was not full and took longer than this is followed by a rest half as long as it took:
/// on a machine that is short of processors batches become fuller, and cost less a message.
const BRISK: Duration = Duration::from_millis(25);
/// But by none longer than this.
const LONGEST_REST: Duration = Duration::from_millis(125);
/// Fewer than a batch are acknowledged so long after the first of them.
const ACK_WITHIN: Duration = Duration::from_millis(150);
/// Brokers are asked how far behind a consumer is no more often.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// What they answer may be so old.
const LAG_AGE_MS: i64 = 2_000;

/// What consumers share.
#[derive(Clone)]
pub struct ConsumerParts {
    pub catalogue: Arc<Catalogue>,
    pub committer: Committer,
    pub store: Arc<dyn Store>,
    pub metrics: Arc<crate::telemetry::Metrics>,
}

/// The tasks of one consumer.
pub struct ConsumerTasks {
    pub handles: Vec<JoinHandle<()>>,
    /// Somebody else put messages into its backlog: its retries look at the clock again.
    pub retry_soon: Arc<Notify>,
    pub drained: Arc<Drained>,
}

/// When a consumer was last seen with nothing left to handle.
#[derive(Debug, Default)]
pub struct Drained(AtomicI64);

impl Drained {
    /// What its broker had for it by then is settled; long ago where it was never seen so.
    pub fn last(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    fn note(&self, at: Timestamp) {
        self.0.store(at.0, Ordering::Relaxed);
    }
}

/// Starts a consumer: its reader and its retry sweeper. Both end after `stop`, when
/// their batch in hand is committed and acknowledged.
pub fn spawn(
    handler: Arc<dyn Handler>,
    subscriber: Arc<dyn Subscriber>,
    parts: &ConsumerParts,
    stop: &CancellationToken,
) -> ConsumerTasks {
    let declaration = handler.declaration();
    let metrics = parts.metrics.consumer(declaration.name);
    let retry_soon = Arc::new(Notify::new());
    let processor = Processor { declaration, handler, parts: parts.clone(), metrics, retry_soon: retry_soon.clone() };
    let processor = Arc::new(processor);
    let drained = Arc::new(Drained::default());
    let reader = Reader { processor: processor.clone(), subscriber, drained: drained.clone() };
    let sweeper = Sweeper::new(processor);
    ConsumerTasks {
        handles: vec![
            crate::task::spawn("consumer", reader.run(stop.child_token())),
            crate::task::spawn("consumer-sweeper", sweeper.run(stop.child_token())),
        ],
        retry_soon,
        drained,
    }
}

/// Turns messages into committed effects; used by the reader and by the sweeper.
pub(super) struct Processor {
    pub declaration: Declaration,
    handler: Arc<dyn Handler>,
    pub parts: ConsumerParts,
    pub metrics: ConsumerMetrics,
    /// A message went to the backlog: the sweeper looks at the clock again.
    pub retry_soon: Arc<Notify>,
}

/// A message with what the backlog needs to know about it.
pub(super) struct Work<'d> {
    pub message: Message,
    pub stored: StoredMessage,
    /// Attempts before this one.
    pub attempts: u32,
    /// As it came; `None` from the backlog.
    pub delivery: Option<&'d Delivery>,
}

/// Everybody's need is away: try the same again later.
#[derive(Debug)]
pub(super) struct Paused(pub String);

impl Processor {
    /// Handles and commits. Messages of one key must be in order.
    pub async fn process(&self, work: Vec<Work<'_>>) -> Result<(), Paused> {
        if work.is_empty() {
            return Ok(());
        }
        let messages: Vec<Message> = work.iter().map(|work| work.message.clone()).collect();
        let started = std::time::Instant::now();
        let results = self.handler.handle(&messages).await;
        self.metrics.handler_seconds.observe(started.elapsed().as_secs_f64());
        let mut failed_keys = HashSet::new();
        let mut units = Vec::with_capacity(work.len());
        for (work, result) in work.iter().zip(results) {
            if let Err(HandlerError::Pause(why)) = &result {
                return Err(Paused(why.clone()));
            }
            units.push(self.unit(work, result, &mut failed_keys));
        }
        let results = self.parts.committer.background_all(units).await;
        for (work, result) in work.iter().zip(results) {
            match result {
                Ok(Outcome::Committed { .. }) => {
                    let lag = Timestamp::now().ms_since(work.message.occurred_at());
                    self.metrics.consume_seconds.observe(lag as f64 / 1000.0);
                }
                Ok(Outcome::Duplicate) => self.metrics.inbox_hits.inc(),
                Ok(Outcome::Parked) => self.retry_soon.notify_one(),
                Ok(Outcome::Invalid(why)) | Err(CommitError::Refused(why)) => self.bury(work, why).await?,
                // A state machine that says no to a consumer is news to nobody: it came late.
                Ok(other) => tracing::debug!(consumer = self.declaration.name, ?other, "dropped"),
                Err(error) => return Err(Paused(error.to_string())),
            }
        }
        Ok(())
    }

    fn unit(
        &self,
        work: &Work<'_>,
        result: Result<Effects, HandlerError>,
        failed_keys: &mut HashSet<Arc<str>>,
    ) -> Unit {
        let now = Timestamp::now();
        let Message { event_type, headers, .. } = &work.message;
        let (ordered, key) = (self.declaration.orders(event_type), self.declaration.key(event_type, headers));
        let (effects, verdict) = match result {
            _ if ordered && failed_keys.contains(&key) => (None, Verdict::Park),
            Ok(effects) => (Some(effects), Verdict::Done),
            Err(error) => (None, self.failed(work, &key, &error, now)),
        };
        if ordered && effects.is_none() {
            failed_keys.insert(key.clone());
        }
        let effects = effects.unwrap_or_default();
        Unit {
            delivery: Some(self.claim(work, key, verdict, now)),
            jobs: effects.jobs,
            events: effects.events,
            effects: effects.rows,
            ..Unit::default()
        }
    }

    fn claim(&self, work: &Work<'_>, key: Arc<str>, verdict: Verdict, at: Timestamp) -> DeliveryClaim {
        DeliveryClaim {
            consumer: self.declaration.name.into(),
            event_id: work.message.headers.event_id,
            key,
            sequence: work.message.headers.sequence,
            ordered: self.declaration.orders(&work.message.event_type),
            from_backlog: work.delivery.is_none(),
            verdict,
            message: Some(work.stored.clone()),
            at,
        }
    }

    /// Counts the attempt: another one later, or none.
    fn failed(&self, work: &Work<'_>, key: &Arc<str>, error: &HandlerError, now: Timestamp) -> Verdict {
        let attempts = work.attempts + 1;
        let event_id = Some(work.message.headers.event_id);
        let permanent = matches!(error, HandlerError::Permanent(_));
        let class = if permanent { FailureClass::Permanent } else { FailureClass::Transient };
        HandlerFailed { consumer: self.declaration.name, event_id, class, attempt: attempts, error }
            .record(&self.metrics);
        let last = permanent || attempts as usize > RETRY_DELAYS_MS.len();
        if last {
            DeadLettered { consumer: self.declaration.name, key, event_id, attempts, error }.record(&self.metrics);
        }
        let retry_at = (!last).then(|| now.plus_ms(retry_delay_ms(attempts - 1, rand::random())));
        Verdict::Failed { error: error.to_string(), attempts, retry_at }
    }

    /// Effects that can never be written: keeps the message as a dead letter without them.
    async fn bury(&self, work: &Work<'_>, why: String) -> Result<(), Paused> {
        let consumer = self.declaration.name;
        let key = self.declaration.key(&work.message.event_type, &work.message.headers);
        let verdict = Verdict::Failed { error: why.clone(), attempts: 1, retry_at: None };
        let mut letter = self.claim(work, key, verdict, Timestamp::now());
        let mut kept = self.keep(&letter).await;
        // Its key comes from its headers and may itself be what the store refuses. What comes from the
        // backlog has been stored under its key before.
        if let (Err(CommitError::Refused(_)), Some(delivery)) = (&kept, work.delivery) {
            letter = quarantine::bare(consumer, delivery, &why);
            kept = self.keep(&letter).await;
        }
        kept.map_err(|error| Paused(error.to_string()))?;
        let event_id = Some(work.message.headers.event_id);
        DeadLettered { consumer, key: &letter.key, event_id, attempts: 1, error: &why }.record(&self.metrics);
        Ok(())
    }

    async fn keep(&self, letter: &DeliveryClaim) -> Result<(), CommitError> {
        let unit = Unit { delivery: Some(letter.clone()), ..Unit::default() };
        self.parts.committer.background(unit).await.map(drop)
    }

    /// Keeps what cannot be read, with position and reason, so that nothing is lost.
    async fn quarantine(&self, delivery: &Delivery, why: &str) -> Result<(), Paused> {
        HandlerFailed {
            consumer: self.declaration.name,
            event_id: None,
            class: FailureClass::Undecodable,
            attempt: 1,
            error: why,
        }
        .record(&self.metrics);
        let letter = quarantine::claim(self.declaration.name, delivery, why);
        self.keep(&letter).await.map_err(|error| Paused(error.to_string()))
    }
}

/// What follows a batch of so many messages that took so long.
fn rest(messages: usize, took: Duration) -> Duration {
    if messages < BATCH && took > BRISK { (took / 2).min(LONGEST_REST) } else { Duration::ZERO }
}

/// Acknowledgements of messages whose effects are committed, until there are several: a quorum
/// queue writes and syncs each on all its nodes, and nobody waits for them.
struct Owed {
    tokens: Vec<AckToken>,
    due: Instant,
}

impl Default for Owed {
    fn default() -> Self {
        Self { tokens: Vec::new(), due: Instant::now() }
    }
}

impl Owed {
    fn add(&mut self, batch: &[Delivery]) {
        if self.tokens.is_empty() {
            self.due = Instant::now() + ACK_WITHIN;
        }
        self.tokens.extend(batch.iter().map(|delivery| delivery.token));
    }

    async fn pay(&mut self, inbound: &mut dyn Inbound) -> Result<(), SubscriptionLost> {
        if self.tokens.is_empty() { Ok(()) } else { inbound.ack(&std::mem::take(&mut self.tokens)).await }
    }
}

struct Reader {
    processor: Arc<Processor>,
    subscriber: Arc<dyn Subscriber>,
    drained: Arc<Drained>,
}

impl Reader {
    async fn run(self, stop: CancellationToken) {
        let name = self.processor.declaration.name;
        let subscription = Subscription {
            consumer: name.into(),
            source: self.processor.declaration.source.clone(),
            prefetch: PREFETCH,
            ack_wait: Duration::from_secs(30),
        };
        let (mut delay, mut behind) = (Duration::from_millis(100), Lag::default());
        while !stop.is_cancelled() {
            let inbound = tokio::select! {
                () = stop.cancelled() => return,
                inbound = self.subscriber.subscribe(&subscription) => inbound,
            };
            match inbound {
                Ok(inbound) => {
                    delay = Duration::from_millis(100);
                    self.read(inbound, &mut behind, &stop).await;
                }
                Err(error) => {
                    tracing::warn!(consumer = name, %error, "cannot subscribe; trying again");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                    delay = (delay * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Reads until the subscription breaks or `stop`.
    async fn read(&self, mut inbound: Box<dyn Inbound>, behind: &mut Lag, stop: &CancellationToken) {
        let mut owed = Owed::default();
        let mut ended = self.serve(&mut *inbound, &mut owed, behind, stop).await;
        if ended.is_ok() {
            ended = owed.pay(&mut *inbound).await;
        }
        if let Err(error) = ended {
            let consumer = self.processor.declaration.name;
            tracing::warn!(consumer, %error, "subscribing again; the inbox absorbs what is repeated");
        }
    }

    /// Handles batch after batch; well ended at `stop`.
    async fn serve(
        &self,
        inbound: &mut dyn Inbound,
        owed: &mut Owed,
        behind: &mut Lag,
        stop: &CancellationToken,
    ) -> Result<(), SubscriptionLost> {
        let mut lag = tokio::time::interval(LAG_EVERY);
        lag.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rested = Instant::now();
        loop {
            let next = async {
                tokio::time::sleep_until(rested).await;
                inbound.receive(BATCH).await
            };
            let batch = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(owed.due), if !owed.tokens.is_empty() => {
                    owed.pay(inbound).await?;
                    continue;
                }
                _ = lag.tick() => {
                    owed.pay(inbound).await?;
                    self.look_at_lag(inbound, behind).await;
                    continue;
                }
                batch = next => batch?,
            };
            let started = Instant::now();
            let mut delay = Duration::from_millis(100);
            if let Some(made) = oldest(&batch) {
                behind.in_hand(made);
            }
            self.shows(behind);
            // While the store is away nothing is acknowledged and nothing more is read.
            while let Err(Paused(why)) = self.handle(&batch).await {
                self.shows(behind);
                tracing::warn!(consumer = self.processor.declaration.name, why, "paused");
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(Duration::from_secs(5));
            }
            owed.add(&batch);
            if owed.tokens.len() >= BATCH {
                owed.pay(inbound).await?;
            }
            rested = Instant::now() + rest(batch.len(), started.elapsed());
        }
    }

    async fn look_at_lag(&self, inbound: &mut dyn Inbound, behind: &mut Lag) {
        let asked = Timestamp::now();
        let Some(lag) = inbound.lag().await else { return };
        if lag == 0 {
            self.drained.note(asked.plus_ms(-LAG_AGE_MS));
        }
        behind.told(lag, asked);
        self.processor.metrics.lag_messages.set(i64::try_from(lag).unwrap_or(i64::MAX));
        match lag {
            0 => self.processor.metrics.lag_seconds.set(0.0),
            _ => self.shows(behind),
        }
    }

    fn shows(&self, behind: &Lag) {
        self.processor.metrics.lag_seconds.set(behind.seconds(Timestamp::now()));
    }

    async fn handle(&self, batch: &[Delivery]) -> Result<(), Paused> {
        let mut work = Vec::with_capacity(batch.len());
        for delivery in batch {
            let headers = match &delivery.headers {
                Ok(headers) => headers,
                Err(why) => {
                    self.processor.quarantine(delivery, why).await?;
                    continue;
                }
            };
            if !self.processor.declaration.handles(&headers.event_type) {
                continue;
            }
            let Some(event_type) = self.processor.parts.catalogue.get(&headers.event_type) else {
                self.processor.quarantine(delivery, "its type is not in the catalogue").await?;
                continue;
            };
            work.push(Work {
                message: Message {
                    headers: headers.clone(),
                    event_type: event_type.clone(),
                    encoding: delivery.encoding,
                    body: delivery.body.clone(),
                },
                stored: super::as_it_came(delivery),
                attempts: 0,
                delivery: Some(delivery),
            });
        }
        self.processor.process(work).await
    }
}

/// When the oldest event of a batch was made.
fn oldest(batch: &[Delivery]) -> Option<Timestamp> {
    batch.iter().filter_map(|delivery| delivery.headers.as_ref().ok()).map(|headers| headers.occurred_at).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_follows_what_was_slow_and_not_full() {
        let took = 2 * BRISK;
        assert_eq!(rest(1, BRISK), Duration::ZERO);
        assert_eq!(rest(1, took), BRISK);
        assert_eq!(rest(BATCH, took), Duration::ZERO, "more is waiting");
        assert_eq!(rest(1, 10 * LONGEST_REST), LONGEST_REST);
    }
}
