//! When a lane sends its next window and how large it may be: fuller windows for brokers,
//! requests before relays (docs/decisions/0014).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Requests that are answered sooner do not suffer from what relays do; at twice of it lanes
/// rest most.
const CALM: Duration = Duration::from_millis(100);
/// The longest rest, in times of what the window before took its broker.
const MOST: f64 = 4.0;
const LONGEST: Duration = Duration::from_millis(250);
/// Windows start twice as far apart as the last one took, but no farther than this: what takes
/// long because the machine is short of processors gets fuller windows, which need less of them.
const FARTHEST: Duration = Duration::from_millis(250);
/// A broker that takes longer for a window while requests wait takes the processors from them:
/// it gets smaller ones, but not smaller than this.
const BRIEF: Duration = Duration::from_millis(25);
const FEWEST: usize = 32;

/// What was told longer ago says nothing about now.
const RECENT: Duration = Duration::from_secs(1);

/// How long requests wait for their COMMIT now.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressure(Arc<Mutex<Option<(Instant, Duration)>>>);

impl Pressure {
    /// The wait of the one that waited longest in the last COMMIT; zero when none did.
    pub fn set(&self, wait: Duration) {
        *self.0.lock() = Some((Instant::now(), wait));
    }

    fn get(&self) -> Duration {
        self.0.lock().filter(|(told, _)| told.elapsed() < RECENT).map_or(Duration::ZERO, |(_, wait)| wait)
    }
}

/// A lane's clock.
#[derive(Debug)]
pub(super) struct Pace {
    pressure: Pressure,
    spacing: Duration,
    /// Messages of a window: at most, and while requests wait.
    most: usize,
    few: usize,
    /// Windows that are not full start this far apart.
    next: Instant,
    /// Nothing goes out before.
    rested: Instant,
}

impl Pace {
    pub fn new(pressure: Pressure, most: usize, spacing: Duration) -> Self {
        let now = Instant::now();
        Self { pressure, spacing, most, few: most, next: now, rested: now }
    }

    /// How many messages the next window may have.
    pub fn window(&self) -> usize {
        if self.pressure.get() > CALM { self.few } else { self.most }
    }

    /// When the next window may go, with so many that could.
    pub fn due(&self, ready: usize) -> Instant {
        if ready >= self.window() { self.rested } else { self.rested.max(self.next) }
    }

    /// A window was published within `took` and has been marked.
    pub fn ended(&mut self, started: Instant, took: Duration) {
        let (now, wait) = (Instant::now(), self.pressure.get());
        self.few = match wait > CALM {
            true if took > BRIEF => (self.few / 2).max(FEWEST.min(self.most)),
            _ => (self.few * 2).min(self.most),
        };
        self.next = started + apart(self.spacing, took);
        self.rested = now + rest(took, wait);
    }
}

/// How long after the start of a window that took so long the next may start, if not full.
fn apart(spacing: Duration, took: Duration) -> Duration {
    if spacing.is_zero() { spacing } else { spacing.max((2 * took).min(FARTHEST)) }
}

fn rest(took: Duration, wait: Duration) -> Duration {
    let times = MOST * (wait.as_secs_f64() / CALM.as_secs_f64() - 1.0).clamp(0.0, 1.0);
    took.mul_f64(times).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn lanes_rest_the_longer_the_more_requests_wait() {
        assert_eq!(rest(10 * MS, Duration::ZERO), Duration::ZERO);
        assert_eq!(rest(10 * MS, CALM), Duration::ZERO);
        assert_eq!(rest(10 * MS, CALM * 5 / 4), 10 * MS);
        assert_eq!(rest(10 * MS, 2 * CALM), 40 * MS);
        assert_eq!(rest(10 * MS, 100 * CALM), 40 * MS);
        assert_eq!(rest(3600 * MS, 100 * CALM), LONGEST);
    }

    #[test]
    fn slow_windows_are_farther_apart() {
        assert_eq!(apart(25 * MS, 5 * MS), 25 * MS);
        assert_eq!(apart(25 * MS, 40 * MS), 80 * MS);
        assert_eq!(apart(25 * MS, 10_000 * MS), FARTHEST);
        assert_eq!(apart(Duration::ZERO, 40 * MS), Duration::ZERO, "embedded brokers");
    }

    #[tokio::test(start_paused = true)]
    async fn windows_start_apart_unless_they_are_full() {
        let mut pace = Pace::new(Pressure::default(), 8, 10 * MS);
        let start = Instant::now();
        assert!(pace.due(1) <= start, "the first goes at once");
        tokio::time::advance(2 * MS).await;
        pace.ended(start, 2 * MS);
        assert_eq!(pace.due(7), start + 10 * MS);
        assert_eq!(pace.due(8), start + 2 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_window_waits_for_requests_too() {
        let pressure = Pressure::default();
        let mut pace = Pace::new(pressure.clone(), 8, 10 * MS);
        let start = Instant::now();
        pressure.set(CALM * 3 / 2);
        pace.ended(start, 5 * MS);
        assert_eq!(pace.due(8), start + 10 * MS);
        tokio::time::advance(RECENT).await;
        pace.ended(start, 5 * MS);
        assert_eq!(pace.due(8), start + RECENT, "told too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_broker_gets_smaller_windows_while_requests_wait() {
        let pressure = Pressure::default();
        let mut pace = Pace::new(pressure.clone(), 256, MS);
        let now = Instant::now();
        pace.ended(now, 10 * BRIEF);
        assert_eq!(pace.window(), 256, "nobody waits");
        pressure.set(2 * CALM);
        pace.ended(now, BRIEF);
        assert_eq!(pace.window(), 256, "it is quick");
        for expected in [128, 64, FEWEST, FEWEST] {
            pace.ended(now, 2 * BRIEF);
            assert_eq!(pace.window(), expected);
        }
        pace.ended(now, BRIEF);
        assert_eq!(pace.window(), 2 * FEWEST);
        pressure.set(CALM);
        assert_eq!(pace.window(), 256);
    }
}
