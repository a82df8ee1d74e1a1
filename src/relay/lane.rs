//! One lane: takes events in, publishes windows, marks legs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::RelayOptions;
use super::inbox::LaneInbox;
use super::keys::{Keys, Waiting};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::backoff::retry_delay_ms;
use crate::domain::event::SkipReason;
use crate::domain::{Broker, Event, Timestamp};
use crate::store::{BrokerEnd, LegMark, LegState, Store};
use crate::telemetry::Metrics;
use crate::telemetry::facts::{ComponentChanged, PublishFailed};

/// Where marks are committed: the committer's background share.
#[async_trait]
pub trait Marks: Send + Sync + 'static {
    /// Commits marks and ends; returns only when that is done, or says why it is not.
    async fn mark(&self, marks: Vec<LegMark>, ends: Vec<BrokerEnd>) -> Result<(), String>;
}

/// What a lane is made of.
pub(super) struct LaneParts {
    pub broker: Broker,
    /// (index, count)
    pub lane: (u8, u8),
    pub inbox: Arc<LaneInbox>,
    pub publisher: Arc<dyn Publisher>,
    pub store: Arc<dyn Store>,
    pub marks: Arc<dyn Marks>,
    pub metrics: Arc<Metrics>,
    pub options: RelayOptions,
}

/// A lane's task state.
pub(super) struct Lane {
    parts: LaneParts,
    keys: Keys,
    /// The last commit position taken in.
    cursor: i64,
    /// Marks not yet committed.
    marks: Vec<LegMark>,
    ends: Vec<BrokerEnd>,
    down: Option<Down>,
}

struct Down {
    tries: u32,
    until: Instant,
}

/// Pages of a catch-up.
const PAGE: u32 = 512;

impl Lane {
    pub fn new(parts: LaneParts) -> Self {
        Self { parts, keys: Keys::default(), cursor: 0, marks: Vec::new(), ends: Vec::new(), down: None }
    }

    /// Runs until `stop`. What is in flight then is confirmed and marked; the rest stays
    /// pending in the store.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.take_in().await;
            if self.may_publish() {
                let window = self.keys.window(self.parts.options.window, Instant::now());
                if !window.is_empty() {
                    self.publish(window).await;
                    self.flush_marks(&stop).await;
                    continue;
                }
            }
            self.idle(&stop).await;
        }
        self.flush_marks(&stop).await;
    }

    fn may_publish(&self) -> bool {
        self.down.as_ref().is_none_or(|down| down.until <= Instant::now())
    }

    /// Waits for news: an arrival, a retry, the broker's next chance.
    async fn idle(&self, stop: &CancellationToken) {
        let mut until = Instant::now() + Duration::from_secs(5);
        if let Some(down) = &self.down {
            until = until.min(down.until);
        } else if let Some(retry) = self.keys.next_retry() {
            until = until.min(retry);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.parts.inbox.arrived(), if self.down.is_none() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    /// Fills up from the inbox or, when that has dropped something, from the store.
    async fn take_in(&mut self) {
        let room = self.parts.options.lane_capacity.saturating_sub(self.keys.held());
        if room == 0 {
            return;
        }
        for event in self.parts.inbox.take(room) {
            self.add(event, 0);
        }
        if !self.parts.inbox.must_read_store() || self.keys.held() >= self.parts.options.window * 2 {
            return;
        }
        // Order matters: trust first, then read. Whatever is committed in between is in
        // both, and known by its position.
        self.parts.inbox.trust_again();
        let read = self.parts.store.open_legs(self.parts.broker, Some(self.parts.lane), self.cursor, PAGE).await;
        match read {
            Ok(legs) => {
                if legs.len() as u32 == PAGE {
                    self.parts.inbox.distrust();
                }
                for (event, leg) in legs {
                    if leg.state == LegState::Dead {
                        self.block(&event);
                    } else {
                        self.add(event, leg.attempts);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(broker = %self.parts.broker, %error, "open legs cannot be read; trying again");
                self.parts.inbox.distrust();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    fn outgoing(&self, event: Arc<Event>) -> Option<Outgoing> {
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let route = routes.into_iter().find(|route| route.broker == self.parts.broker)?;
        Some(Outgoing { event, route })
    }

    fn add(&mut self, event: Arc<Event>, attempts: u32) {
        if event.position <= self.cursor {
            return;
        }
        self.cursor = event.position;
        if let Some(outgoing) = self.outgoing(event) {
            self.keys.add(Waiting { outgoing, attempts });
        }
    }

    fn block(&mut self, event: &Arc<Event>) {
        self.cursor = self.cursor.max(event.position);
        if let Some(outgoing) = self.outgoing(event.clone())
            && let Some(key) = (Waiting { outgoing, attempts: 0 }).key()
        {
            self.keys.block(key);
        }
    }

    async fn publish(&mut self, window: Vec<Waiting>) {
        let outgoing: Vec<Outgoing> = window.iter().map(|waiting| waiting.outgoing.clone()).collect();
        let started = Instant::now();
        let results = self.parts.publisher.publish(&outgoing).await;
        self.parts.metrics.publish_seconds[self.parts.broker].observe(started.elapsed().as_secs_f64());
        debug_assert_eq!(results.len(), window.len());
        let now = Timestamp::now();
        let mut returned = Vec::new();
        let mut why_down = None;
        for (mut waiting, result) in window.into_iter().zip(results) {
            waiting.attempts += 1;
            if let Err(error) = &result {
                let event_id = waiting.outgoing.event.event_id;
                PublishFailed { broker: self.parts.broker, event_id, error }.record(&self.parts.metrics);
            }
            match result {
                Ok(position) => {
                    self.mark(&waiting, LegState::Done, now, Some(position), None, None);
                    self.keys.settled(&waiting);
                }
                Err(PublishError::NoQueueBound) => {
                    self.mark(&waiting, LegState::Skipped, now, None, None, Some(SkipReason::NoQueueBound));
                    self.keys.settled(&waiting);
                }
                Err(PublishError::Permanent(why)) => {
                    self.mark(&waiting, LegState::Dead, now, None, Some(why), None);
                    self.keys.died(&waiting);
                }
                Err(PublishError::Transient(why)) => {
                    let delay = retry_delay_ms(waiting.attempts.saturating_sub(1), rand::random());
                    self.mark_retry(&waiting, now, now.plus_ms(delay), why);
                    self.keys.failed(waiting, Instant::now() + Duration::from_millis(delay as u64));
                }
                Err(PublishError::Down(why)) => {
                    why_down = Some(why);
                    returned.push(waiting);
                }
            }
        }
        self.keys.put_back(returned);
        self.set_down(why_down);
    }

    /// Notes whether the broker answers, and when to try again if not.
    fn set_down(&mut self, why: Option<String>) {
        let component = self.parts.broker.as_str();
        match (why, &mut self.down) {
            (None, None) => {}
            (None, down @ Some(_)) => {
                *down = None;
                ComponentChanged { component, up: true, why: "confirms again" }.record(&self.parts.metrics);
            }
            (Some(why), None) => {
                ComponentChanged { component, up: false, why: &why }.record(&self.parts.metrics);
                self.down = Some(Down { tries: 1, until: Instant::now() + Duration::from_millis(250) });
            }
            (Some(_), Some(down)) => {
                down.tries += 1;
                let delay = (250u64 << down.tries.min(5)).min(5_000);
                down.until = Instant::now() + Duration::from_millis(delay);
            }
        }
    }

    fn mark(
        &mut self,
        waiting: &Waiting,
        state: LegState,
        at: Timestamp,
        position: Option<Position>,
        error: Option<String>,
        skip: Option<SkipReason>,
    ) {
        if let Some(Position { log, partition, offset: Some(offset) }) = &position
            && !self.parts.publisher.confirms_are_durable()
        {
            self.note_end(log, *partition, offset + 1);
        }
        if state != LegState::Dead {
            self.parts.metrics.outbox_backlog[self.parts.broker].sub(1);
        }
        self.marks.push(LegMark {
            position: waiting.outgoing.event.position,
            broker: self.parts.broker,
            state,
            attempts: waiting.attempts,
            partition: position.as_ref().map(|p| p.partition),
            offset: position.as_ref().and_then(|p| p.offset),
            at,
            next_at: None,
            error,
            skip,
        });
    }

    fn note_end(&mut self, log: &Arc<str>, partition: i32, end: i64) {
        let broker = self.parts.broker;
        match self.ends.iter_mut().find(|known| known.log == *log && known.partition == partition) {
            Some(known) => known.end = known.end.max(end),
            None => self.ends.push(BrokerEnd { broker, log: log.clone(), partition, end }),
        }
    }

    fn mark_retry(&mut self, waiting: &Waiting, at: Timestamp, next_at: Timestamp, error: String) {
        self.marks.push(LegMark {
            position: waiting.outgoing.event.position,
            broker: self.parts.broker,
            state: LegState::Pending,
            attempts: waiting.attempts,
            partition: None,
            offset: None,
            at,
            next_at: Some(next_at),
            error: Some(error),
            skip: None,
        });
    }

    /// Commits the window's marks. Confirmed but unmarked events are published again after
    /// a crash, so nothing more goes out until the store has taken these.
    async fn flush_marks(&mut self, stop: &CancellationToken) {
        let mut delay = Duration::from_millis(50);
        while !self.marks.is_empty() {
            let marked = self.parts.marks.mark(self.marks.clone(), self.ends.clone()).await;
            match marked {
                Ok(()) => {
                    self.marks.clear();
                    self.ends.clear();
                }
                Err(why) => {
                    tracing::warn!(broker = %self.parts.broker, why, "marks are not committed; trying again");
                    if stop.is_cancelled() {
                        return;
                    }
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(5));
                }
            }
        }
    }
}
