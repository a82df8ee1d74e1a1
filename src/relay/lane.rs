//! One lane: takes events in, publishes windows, marks legs.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inbox::LaneInbox;
use super::keys::{Keys, Waiting};
use super::lease::Lease;
use super::pace::{Pace, Pressure};
use super::{Held, RelayOptions};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::backoff::retry_delay_ms;
use crate::domain::event::SkipReason;
use crate::domain::{Broker, Event, Timestamp};
use crate::store::{BrokerEnd, LegMark, LegState, Store};
use crate::telemetry::Metrics;
use crate::telemetry::facts::{ComponentChanged, PublishFailed};
use crate::telemetry::readiness::ComponentState;

/// Where marks are committed: the committer's background share.
#[async_trait]
pub trait Marks: Send + Sync + 'static {
    /// Commits marks and ends; returns only when that is done, or says why it is not.
    async fn mark(&self, marks: Vec<LegMark>, ends: Vec<BrokerEnd>) -> Result<(), String>;
}

/// Waits for news of the lease.
async fn changed(lease: &mut watch::Receiver<Lease>) {
    if lease.changed().await.is_err() {
        // Its keeper has ended: there is none to come.
        std::future::pending().await
    }
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
    pub lease: watch::Receiver<Lease>,
    pub pressure: Pressure,
    pub options: RelayOptions,
}

/// A lane's task state.
pub(super) struct Lane {
    parts: LaneParts,
    keys: Keys,
    /// Whose events are taken from memory, and what the lane knows of the store.
    owner: i32,
    generation: u64,
    /// The furthest commit position taken in; `own`: of this owner's events.
    cursor: i64,
    own: i64,
    started_over: Instant,
    /// When to look for what slipped through, and whether a leg was marked since.
    look_again: Instant,
    moved: bool,
    /// Marks not yet committed.
    marks: Vec<LegMark>,
    ends: Vec<BrokerEnd>,
    down: Option<Down>,
    pace: Pace,
    /// How many events to read next when it catches up.
    page: u32,
}

struct Down {
    tries: u32,
    until: Instant,
}

/// Events in a page of a catch-up. Nobody knows their sizes before they are read, so it begins with few
/// and goes by what the last page had.
const PAGES: RangeInclusive<u32> = 16..=512;
const FIRST_PAGE: u32 = 64;
const PAGE_BYTES: usize = 8 << 20;

/// How many events to read after a page of so many with so many bytes.
fn next_page(page: u32, bytes: usize) -> u32 {
    match bytes > PAGE_BYTES {
        true => (page / 2).max(*PAGES.start()),
        false => (page * 2).min(*PAGES.end()),
    }
}
/// How often the store is asked whether another owner's event is out.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How often the publisher is asked what has become of those that take long.
const UNSETTLED: Duration = Duration::from_millis(250);
/// Reading all again is dear: it serves all keys that have become free meanwhile.
const AGAIN_AT_MOST: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Older than this, an open leg is not on its way to the lane any more.
const OVERLOOKED_MS: i64 = 5_000;

impl Lane {
    pub fn new(parts: LaneParts) -> Self {
        let lease = *parts.lease.borrow();
        // Embedded brokers take a message as cheaply as many.
        let spacing = if parts.publisher.confirms_are_durable() { parts.options.spacing } else { Duration::ZERO };
        Self {
            pace: Pace::new(parts.pressure.clone(), parts.options.window, spacing),
            parts,
            keys: Keys::default(),
            owner: lease.owner,
            generation: lease.generation,
            cursor: 0,
            own: 0,
            started_over: Instant::now(),
            look_again: Instant::now() + LOOK_AGAIN,
            moved: false,
            marks: Vec::new(),
            ends: Vec::new(),
            down: None,
            page: FIRST_PAGE,
        }
    }

    /// Runs until `stop`. What is in flight then is confirmed and marked; the rest stays
    /// pending in the store.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.follow_lease();
            if self.keys.owes() && self.started_over.elapsed() > AGAIN_AT_MOST {
                self.start_over();
            }
            self.take_in().await;
            self.pace.lags(self.parts.inbox.must_read_store());
            let started = Instant::now();
            if self.may_publish(started) {
                let window = self.keys.window(self.pace.window(), started);
                let window = self.whose_turn_it_is(window).await;
                if !window.is_empty() {
                    let telling = self.publish(window).await;
                    let took = started.elapsed();
                    self.flush_marks(&stop).await;
                    if telling {
                        self.pace.ended(started, took);
                    }
                    continue;
                }
            }
            self.idle(&stop).await;
        }
        self.settle(&stop).await;
    }

    /// What is under way is confirmed or has failed within the publisher's own time.
    async fn settle(&mut self, stop: &CancellationToken) {
        self.flush_marks(stop).await;
        loop {
            let underway = self.keys.underway();
            if underway.is_empty() {
                return;
            }
            self.publish(underway).await;
            self.flush_marks(stop).await;
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    fn may_publish(&self, now: Instant) -> bool {
        self.parts.lease.borrow().held()
            && self.down.as_ref().is_none_or(|down| down.until <= now)
            && self.paced() <= now
    }

    /// When the next window may go.
    fn paced(&self) -> Instant {
        self.pace.due(self.keys.ready())
    }

    /// Starts over when legs have come to this instance, or have gone from it.
    fn follow_lease(&mut self) {
        let lease = *self.parts.lease.borrow_and_update();
        if lease.generation != self.generation {
            self.owner = lease.owner;
            self.generation = lease.generation;
            self.start_over();
        }
    }

    /// What is held is pending in the store; of what is under way the publisher knows.
    fn start_over(&mut self) {
        self.keys = Keys::default();
        self.cursor = 0;
        self.own = 0;
        self.started_over = Instant::now();
        self.parts.inbox.distrust();
    }

    /// Finds what slipped through: a COMMIT that came late, a dead leg that was made pending again.
    async fn look_again(&mut self) {
        self.look_again = Instant::now() + LOOK_AGAIN;
        let moved = std::mem::take(&mut self.moved);
        // Those it holds may wait for one that it has overlooked.
        let stuck = !moved && self.keys.asks();
        if self.parts.inbox.must_read_store() || (self.keys.held().events > 0 && !stuck) {
            return;
        }
        let open = self.parts.store.open_legs(self.parts.broker, Some(self.parts.lane), 0, 1).await;
        if let Ok(open) = open
            && open.iter().any(|(_, leg)| Timestamp::now().ms_since(leg.at) > OVERLOOKED_MS)
        {
            self.start_over();
        }
    }

    /// Holds back those whose aggregate's event before is another owner's and still open.
    async fn whose_turn_it_is(&mut self, window: Vec<Waiting>) -> Vec<Waiting> {
        let (asking, mut free): (Vec<_>, Vec<_>) = window.into_iter().partition(|waiting| waiting.asks);
        if asking.is_empty() {
            return free;
        }
        let events: Vec<_> = asking.iter().map(|waiting| waiting.outgoing.event.clone()).collect();
        let open = match self.parts.store.open_before(self.parts.broker, &events).await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(broker = %self.parts.broker, %error, "other owners' legs cannot be read; trying again");
                vec![Some(LegState::Pending); asking.len()]
            }
        };
        for (mut waiting, open) in asking.into_iter().zip(open) {
            match open {
                // Looked at again with the others of this kind.
                Some(LegState::Dead) => self.keys.died(&waiting),
                Some(_) => self.keys.try_later(waiting, Instant::now() + ASK_AGAIN),
                None => {
                    waiting.asks = false;
                    free.push(waiting);
                }
            }
        }
        free
    }

    /// Waits for news: an arrival, a retry, the broker's next chance.
    async fn idle(&mut self, stop: &CancellationToken) {
        if self.look_again <= Instant::now() {
            self.look_again().await;
            return;
        }
        let due = match &self.down {
            // Nothing is due before the lease is renewed.
            _ if !self.parts.lease.borrow().held() => None,
            Some(down) => Some(down.until),
            None if self.keys.ready() > 0 => Some(self.paced()),
            None => self.keys.next_retry(),
        };
        // Nothing goes out before the pace allows it.
        let due = due.map(|due| due.max(self.paced()));
        // What arrives meanwhile goes with the window that is due.
        let paced = self.down.is_none() && self.keys.ready() > 0;
        let until = due.map_or(self.look_again, |due| due.min(self.look_again));
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.parts.inbox.arrived(), if self.down.is_none() && !paced => {}
            () = changed(&mut self.parts.lease) => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    /// Fills up from the inbox or, when that has dropped something, from the store.
    async fn take_in(&mut self) {
        let most = self.parts.options.lane_capacity;
        if self.is_crowded() {
            self.keys.make_room();
        }
        let held = self.keys.held();
        let room =
            Held { events: most.events.saturating_sub(held.events), bytes: most.bytes.saturating_sub(held.bytes) };
        if room.events == 0 || room.bytes == 0 {
            return;
        }
        for event in self.parts.inbox.take(room) {
            // What a former owner of this instance has committed is another's now.
            if event.origin.owner == self.owner && event.position > self.own {
                self.add(event, 0);
            }
        }
        if !self.parts.inbox.must_read_store() || self.has_enough() {
            return;
        }
        // Order matters: trust first, then read. Whatever is committed in between is in
        // both, and known by its position.
        self.parts.inbox.trust_again();
        let read = self.parts.store.open_legs(self.parts.broker, Some(self.parts.lane), self.cursor, self.page).await;
        match read {
            Ok(legs) => {
                if legs.len() as u32 == self.page {
                    self.parts.inbox.distrust();
                }
                self.page = next_page(self.page, legs.iter().map(|(event, _)| event.bytes()).sum());
                for (event, leg) in legs {
                    if event.position <= self.cursor {
                        continue;
                    }
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

    /// So much is held that there is not much to win by reading the store.
    fn has_enough(&self) -> bool {
        let (most, held) = (self.parts.options.lane_capacity, self.keys.held());
        // What is tried later leaves the others their share.
        let free = held.events.saturating_sub(self.keys.later());
        free >= self.parts.options.window * 2 || held.bytes >= most.bytes / 2
    }

    /// What waits behind keys that are tried later takes the room of the others.
    fn is_crowded(&self) -> bool {
        let (most, held) = (self.parts.options.lane_capacity, self.keys.held());
        let full = held.events >= most.events / 2 || held.bytes >= most.bytes / 2;
        self.keys.later() > 0 && (full || (self.parts.inbox.must_read_store() && self.has_enough()))
    }

    fn outgoing(&self, event: Arc<Event>) -> Option<Outgoing> {
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let route = routes.into_iter().find(|route| route.broker == self.parts.broker)?;
        Some(Outgoing { event, route })
    }

    fn add(&mut self, event: Arc<Event>, attempts: u32) {
        self.seen(&event);
        if let Some(outgoing) = self.outgoing(event) {
            self.keys.add(Waiting::new(outgoing, attempts));
        }
    }

    fn seen(&mut self, event: &Event) {
        self.cursor = self.cursor.max(event.position);
        if event.origin.owner == self.owner {
            self.own = self.own.max(event.position);
        }
    }

    fn block(&mut self, event: &Arc<Event>) {
        self.seen(event);
        if let Some(outgoing) = self.outgoing(event.clone())
            && let Some(key) = Waiting::new(outgoing, 0).key()
        {
            self.keys.block(key);
        }
    }

    /// Returns whether it tells how long a window takes: what was sent before, is under way still, or
    /// finds the broker away does not.
    async fn publish(&mut self, window: Vec<Waiting>) -> bool {
        let outgoing: Vec<Outgoing> = window.iter().map(|waiting| waiting.outgoing.clone()).collect();
        let started = Instant::now();
        let results = self.parts.publisher.publish(&outgoing).await;
        let settled = |result: &Result<Position, PublishError>| {
            !matches!(result, Err(PublishError::Unsettled { .. } | PublishError::Down(_)))
        };
        let telling = results.iter().all(settled) && !window.iter().any(|waiting| waiting.underway);
        if telling {
            self.parts.metrics.publish_seconds[self.parts.broker].observe(started.elapsed().as_secs_f64());
        }
        debug_assert_eq!(results.len(), window.len());
        let now = Timestamp::now();
        let mut returned = Vec::new();
        let mut why_down = None;
        for (mut waiting, result) in window.into_iter().zip(results) {
            waiting.underway = matches!(result, Err(PublishError::Unsettled { .. }));
            // What is under way counts when it is settled.
            waiting.attempts += u32::from(!waiting.underway);
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
                    self.keys.try_later(waiting, Instant::now() + Duration::from_millis(delay as u64));
                }
                Err(PublishError::Down(why)) => {
                    why_down = Some(why);
                    returned.push(waiting);
                }
                Err(PublishError::Unsettled { down: None }) => {
                    self.keys.try_later(waiting, Instant::now() + UNSETTLED);
                }
                Err(PublishError::Unsettled { down: Some(why) }) => {
                    why_down = Some(why);
                    returned.push(waiting);
                }
            }
        }
        self.keys.put_back(returned);
        self.set_down(why_down);
        telling
    }

    /// Notes whether the broker answers, and when to try again if not.
    fn set_down(&mut self, why: Option<String>) {
        let component = self.parts.broker.as_str();
        match (why, &mut self.down) {
            (None, None) => {}
            (None, down @ Some(_)) => {
                *down = None;
                ComponentChanged { component, state: ComponentState::Up, why: "confirms again" }
                    .record(&self.parts.metrics);
            }
            (Some(why), None) => {
                ComponentChanged { component, state: ComponentState::Down, why: &why }.record(&self.parts.metrics);
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
        self.moved = true;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_by_what_the_last_one_had() {
        let small: Vec<u32> =
            (0..5).scan(FIRST_PAGE, |page, _| Some(std::mem::replace(page, next_page(*page, 1)))).collect();
        assert_eq!(small, [64, 128, 256, 512, 512]);
        assert_eq!(next_page(512, PAGE_BYTES + 1), 256);
        assert_eq!(next_page(16, PAGE_BYTES + 1), 16);
    }
}
