//! When a lane sends its next window and how large it may be: fuller windows for brokers,
//! requests before relays (docs/decisions/0014).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Requests that wait less do not suffer from what relays do; at twice of it lanes rest most.
/// While all lanes keep pace: at a steady rate they would only come to lag.
const CALM: Duration = Duration::from_millis(40);
/// While one lags: it is the relays that requests wait for.
const CALM_IN_A_RUSH: Duration = Duration::from_millis(10);
/// The longest rest, in times of what the window before took its broker beyond its quickest.
const MOST: f64 = 8.0;
const LONGEST: Duration = Duration::from_millis(600);
/// A window is followed by half as long again as it took beyond the quickest, before the next
/// one that is not full: what takes long because the machine is short of processors gets fuller
/// windows, which need less of them. But windows start no farther apart than this.
const SPARED: f64 = 0.5;
const FARTHEST: Duration = Duration::from_millis(250);
/// A broker that takes so much beyond its quickest for a window while requests wait takes the
/// processors from them: it gets smaller ones, but not smaller than this.
const BRIEF: Duration = Duration::from_millis(25);
const FEWEST: usize = 32;
/// The quickest window of so long, or twice as long, counts: it shows the way there and back,
/// which no rest makes shorter.
const REMEMBERED: Duration = Duration::from_secs(300);

/// What was told longer ago says nothing about now.
const RECENT: Duration = Duration::from_secs(1);
/// How much one COMMIT changes what is known of the last ones: one that was slow by chance is no
/// reason to rest.
const WEIGHT: f64 = 0.15;

/// What all lanes know of each other and of requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressure(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How long requests wait for their COMMIT: when the last was told, and the mean.
    wait: Mutex<Option<(Instant, Duration)>>,
    /// Lanes that lag.
    lagging: AtomicUsize,
}

impl Pressure {
    /// The wait of the one that waited longest for a COMMIT; zero when none did.
    pub fn add(&self, wait: Duration) {
        let mut known = self.0.wait.lock();
        let mean = match *known {
            Some((told, mean)) if told.elapsed() < RECENT => mean.mul_f64(1.0 - WEIGHT) + wait.mul_f64(WEIGHT),
            _ => wait,
        };
        *known = Some((Instant::now(), mean));
    }

    fn wait(&self) -> Duration {
        self.0.wait.lock().filter(|(told, _)| told.elapsed() < RECENT).map_or(Duration::ZERO, |(_, mean)| mean)
    }

    /// Up to which wait lanes take no rest.
    fn calm(&self) -> Duration {
        if self.0.lagging.load(Ordering::Relaxed) > 0 { CALM_IN_A_RUSH } else { CALM }
    }

    /// One lane more that lags, or one less.
    fn lag(&self, lags: bool) {
        match lags {
            true => self.0.lagging.fetch_add(1, Ordering::Relaxed),
            false => self.0.lagging.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

/// What the quickest window of late took its broker.
#[derive(Debug)]
struct Quickest {
    now: Duration,
    before: Duration,
    since: Instant,
}

impl Quickest {
    fn new() -> Self {
        Self { now: Duration::MAX, before: Duration::MAX, since: Instant::now() }
    }

    /// How much longer than the quickest this one took.
    fn beyond(&mut self, took: Duration) -> Duration {
        if self.since.elapsed() > REMEMBERED {
            *self = Self { before: self.now, ..Self::new() };
        }
        self.now = self.now.min(took);
        took.saturating_sub(self.now.min(self.before))
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
    lags: bool,
    quickest: Quickest,
    /// Windows that are not full start this far apart.
    next: Instant,
    /// Nothing goes out before.
    rested: Instant,
}

impl Pace {
    pub fn new(pressure: Pressure, most: usize, spacing: Duration) -> Self {
        let now = Instant::now();
        let (few, lags) = (most, false);
        Self { pressure, spacing, most, few, lags, quickest: Quickest::new(), next: now, rested: now }
    }

    /// How many messages the next window may have.
    pub fn window(&self) -> usize {
        if self.pressure.wait() > self.pressure.calm() { self.few } else { self.most }
    }

    /// When the next window may go, with so many that could.
    pub fn due(&self, ready: usize) -> Instant {
        if ready >= self.window() { self.rested } else { self.rested.max(self.next) }
    }

    /// Says whether the lane lags: so much that it has to read the store.
    pub fn lags(&mut self, lags: bool) {
        if std::mem::replace(&mut self.lags, lags) != lags {
            self.pressure.lag(lags);
        }
    }

    /// A window was published within `took` and has been marked.
    pub fn ended(&mut self, started: Instant, took: Duration) {
        let (now, wait, calm) = (Instant::now(), self.pressure.wait(), self.pressure.calm());
        let beyond = self.quickest.beyond(took);
        self.few = match wait > calm {
            true if beyond > BRIEF => (self.few / 2).max(FEWEST.min(self.most)),
            _ => (self.few * 2).min(self.most),
        };
        self.next = started + apart(self.spacing, took, beyond);
        self.rested = now + rest(beyond, wait, calm);
    }
}

/// How long after the start of a window that took so long the next may start, if not full.
fn apart(spacing: Duration, took: Duration, beyond: Duration) -> Duration {
    if spacing.is_zero() { spacing } else { spacing.max((took + beyond.mul_f64(SPARED)).min(FARTHEST)) }
}

fn rest(beyond: Duration, wait: Duration, calm: Duration) -> Duration {
    let times = MOST * (wait.as_secs_f64() / calm.as_secs_f64() - 1.0).clamp(0.0, 1.0);
    beyond.mul_f64(times).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn lanes_rest_the_longer_the_more_requests_wait() {
        assert_eq!(rest(10 * MS, Duration::ZERO, CALM), Duration::ZERO);
        assert_eq!(rest(10 * MS, CALM, CALM), Duration::ZERO);
        assert_eq!(rest(10 * MS, CALM * 5 / 4, CALM), 20 * MS);
        assert_eq!(rest(10 * MS, 2 * CALM, CALM), 80 * MS);
        assert_eq!(rest(10 * MS, 100 * CALM, CALM), 80 * MS);
        assert_eq!(rest(3600 * MS, 100 * CALM, CALM), LONGEST);
    }

    #[test]
    fn slow_windows_are_farther_apart() {
        assert_eq!(apart(25 * MS, 5 * MS, 5 * MS), 25 * MS);
        assert_eq!(apart(25 * MS, 40 * MS, 40 * MS), 60 * MS);
        assert_eq!(apart(25 * MS, 40 * MS, Duration::ZERO), 40 * MS, "it is far away");
        assert_eq!(apart(25 * MS, 10_000 * MS, 10_000 * MS), FARTHEST);
        assert_eq!(apart(Duration::ZERO, 40 * MS, 40 * MS), Duration::ZERO, "embedded brokers");
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
        pace.lags(true);
        let start = Instant::now();
        pace.ended(start, MS);
        pressure.add(CALM_IN_A_RUSH * 3 / 2);
        pace.ended(start, 6 * MS);
        assert_eq!(pace.due(8), start + 20 * MS, "four times what it took beyond the quickest");
        tokio::time::advance(RECENT).await;
        pace.ended(start, 6 * MS);
        assert_eq!(pace.due(8), start + RECENT, "told too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn while_no_lane_lags_they_rest_when_requests_wait_longer() {
        let cases = [
            (false, CALM, false),
            (false, CALM * 3 / 2, true),
            (true, CALM_IN_A_RUSH, false),
            (true, CALM_IN_A_RUSH * 3 / 2, true),
        ];
        for (lags, wait, rests) in cases {
            let pressure = Pressure::default();
            let mut other = Pace::new(pressure.clone(), 256, MS);
            let mut pace = Pace::new(pressure.clone(), 256, MS);
            let start = Instant::now();
            other.lags(true);
            other.lags(lags);
            pace.ended(start, MS);
            pressure.add(wait);
            pace.ended(start, 2 * BRIEF);
            assert_eq!(pace.due(256) > start, rests, "another lags: {lags}, requests wait {wait:?}");
            assert_eq!(pace.window() < 256, rests, "another lags: {lags}, requests wait {wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_far_away_is_not_given_a_rest() {
        let pressure = Pressure::default();
        let mut pace = Pace::new(pressure.clone(), 256, MS);
        pace.lags(true);
        pressure.add(2 * CALM);
        for _ in 0..10 {
            pressure.add(2 * CALM);
            let now = Instant::now();
            pace.ended(now, 4 * BRIEF);
            assert_eq!(pace.due(256), now);
            assert_eq!(pace.window(), 256);
        }
        let later = Instant::now() + 2 * REMEMBERED + 2 * MS;
        pace.ended(Instant::now(), MS);
        pressure.add(2 * CALM);
        pace.ended(Instant::now(), 4 * BRIEF);
        assert!(pace.due(256) > Instant::now(), "it has come nearer, so this was not the way");
        while Instant::now() < later {
            tokio::time::advance(REMEMBERED + MS).await;
            pace.ended(Instant::now(), 4 * BRIEF);
        }
        pressure.add(2 * CALM);
        pace.ended(Instant::now(), 4 * BRIEF);
        assert_eq!(pace.due(256), Instant::now(), "it has moved away");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_commit_is_no_reason_to_rest() {
        let pressure = Pressure::default();
        for wait in [2 * MS, 5 * CALM, 2 * MS] {
            pressure.add(wait);
        }
        assert!(pressure.wait() < CALM, "{:?}", pressure.wait());
        for _ in 0..20 {
            pressure.add(2 * CALM);
        }
        assert!(pressure.wait() > CALM * 3 / 2, "{:?}", pressure.wait());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_broker_gets_smaller_windows_while_requests_wait() {
        let pressure = Pressure::default();
        let mut pace = Pace::new(pressure.clone(), 256, MS);
        pace.lags(true);
        let now = Instant::now();
        pace.ended(now, MS);
        pace.ended(now, 10 * BRIEF);
        assert_eq!(pace.window(), 256, "nobody waits");
        pressure.add(2 * CALM);
        pace.ended(now, BRIEF);
        assert_eq!(pace.window(), 256, "it is quick");
        for expected in [128, 64, FEWEST, FEWEST] {
            pace.ended(now, 2 * BRIEF);
            assert_eq!(pace.window(), expected);
        }
        pace.ended(now, BRIEF);
        assert_eq!(pace.window(), 2 * FEWEST);
        tokio::time::advance(RECENT).await;
        pressure.add(CALM_IN_A_RUSH);
        assert_eq!(pace.window(), 256);
    }
}
