//! What is known of every job of the run; written by the submitter, the cluster and the
//! screens, read by the progress bar and the report.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::Id;

/// A latency distribution in microseconds, from 1 us to an hour, at three digits.
#[derive(Debug)]
pub struct Latencies(Mutex<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3);
        Self(Mutex::new(histogram.expect("the bounds are valid")))
    }
}

impl Latencies {
    pub fn record(&self, latency: Duration) {
        self.0.lock().saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Count and quantiles in milliseconds.
    pub fn summary(&self) -> super::report::Latency {
        let histogram = self.0.lock();
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        super::report::Latency {
            count: histogram.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
        }
    }
}

/// A submitted job, as far as this side has seen it.
#[derive(Default)]
struct Track {
    user: i64,
    posted_at: Option<Instant>,
    /// Screens that showed it before its 201 was read here.
    seen_early: Vec<Instant>,
    /// Screens that showed it.
    seen: u32,
    ended: bool,
}

#[derive(Default)]
pub struct Board {
    tracks: Mutex<HashMap<Id, Track>>,
    /// Answered 201.
    pub submitted: AtomicU64,
    /// Answered otherwise, for good.
    pub refused: AtomicU64,
    /// Claimed by the cluster.
    pub claimed: AtomicU64,
    /// Ended by the cluster.
    pub ended: AtomicU64,
    /// Jobs of this agent that are not of any trace: left alone.
    pub foreign: AtomicU64,
    /// Worker calls that were refused for good.
    pub worker_refusals: AtomicU64,
    /// How late submissions went out.
    pub lag: Latencies,
    /// From the POST to its 201.
    pub accept: Latencies,
    /// From the POST to `job.submitted` on a screen of the job's user.
    pub submit_to_screen: Latencies,
    /// Refusals in their own words, the first few.
    complaints: Mutex<Vec<String>>,
    /// When each 201 came, in whole seconds since the start.
    per_second: Mutex<Vec<u64>>,
    /// A job was accepted.
    pub accepted: Notify,
}

const MAX_COMPLAINTS: usize = 10;

impl Board {
    /// A submission was answered 201.
    pub fn job_accepted(&self, id: Id, user: i64, posted_at: Instant, start: Instant) {
        let now = Instant::now();
        self.accept.record(now - posted_at);
        {
            let mut tracks = self.tracks.lock();
            let track = tracks.entry(id).or_default();
            track.user = user;
            track.posted_at = Some(posted_at);
            for seen in track.seen_early.drain(..) {
                self.submit_to_screen.record(seen.saturating_duration_since(posted_at));
            }
        }
        let second = (now - start).as_secs() as usize;
        let mut per_second = self.per_second.lock();
        if per_second.len() <= second {
            per_second.resize(second + 1, 0);
        }
        per_second[second] += 1;
        drop(per_second);
        self.submitted.fetch_add(1, Ordering::Relaxed);
        self.accepted.notify_one();
    }

    /// A screen of its user shows that the job was submitted.
    pub fn job_on_screen(&self, id: Id, at: Instant) {
        let mut tracks = self.tracks.lock();
        let track = tracks.entry(id).or_default();
        track.seen += 1;
        match track.posted_at {
            Some(posted_at) => self.submit_to_screen.record(at.saturating_duration_since(posted_at)),
            None => track.seen_early.push(at),
        }
    }

    /// The cluster has reported the job's end, or cannot do any more for it.
    pub fn job_ended(&self, id: Id) {
        let mut tracks = self.tracks.lock();
        let track = tracks.entry(id).or_default();
        if !track.ended {
            track.ended = true;
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Jobs answered 201.
    pub fn accepted_jobs(&self) -> Vec<Id> {
        self.tracks.lock().iter().filter(|(_, track)| track.posted_at.is_some()).map(|(id, _)| *id).collect()
    }

    /// Jobs answered 201 whose end the cluster has not reported.
    pub fn open_jobs(&self) -> usize {
        self.tracks.lock().values().filter(|track| track.posted_at.is_some() && !track.ended).count()
    }

    /// Screens that have yet to show a job: for each job of a user, the user's screens
    /// less those that showed it.
    pub fn unseen(&self, screens: &HashMap<i64, u32>) -> u64 {
        let tracks = self.tracks.lock();
        let of_job = |track: &Track| screens.get(&track.user).copied().unwrap_or(0).saturating_sub(track.seen);
        tracks.values().filter(|track| track.posted_at.is_some()).map(|track| u64::from(of_job(track))).sum()
    }

    /// The most submissions answered 201 within one second.
    pub fn peak_per_second(&self) -> u64 {
        self.per_second.lock().iter().copied().max().unwrap_or(0)
    }

    pub fn complain(&self, what: String) {
        let mut complaints = self.complaints.lock();
        if complaints.len() < MAX_COMPLAINTS && !complaints.contains(&what) {
            complaints.push(what);
        }
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_may_be_faster_than_the_answer() {
        let board = Board::default();
        let start = Instant::now();
        let (early, late) = (Id::new(), Id::new());
        board.job_on_screen(early, start + Duration::from_millis(5));
        assert_eq!(board.submit_to_screen.summary().count, 0);
        board.job_accepted(early, 1, start, start);
        board.job_accepted(late, 2, start, start);
        board.job_on_screen(late, start + Duration::from_millis(20));
        let summary = board.submit_to_screen.summary();
        assert_eq!(summary.count, 2);
        assert!((4.9..5.1).contains(&summary.p50_ms) && (19.9..20.1).contains(&summary.max_ms), "{summary:?}");
    }

    #[test]
    fn what_is_missing_on_screens_is_counted_per_screen() {
        let board = Board::default();
        let now = Instant::now();
        let (one, two) = (Id::new(), Id::new());
        board.job_accepted(one, 1, now, now);
        board.job_accepted(two, 2, now, now);
        let screens = HashMap::from([(1, 2)]);
        assert_eq!(board.unseen(&screens), 2);
        board.job_on_screen(one, now);
        assert_eq!(board.unseen(&screens), 1);
        board.job_on_screen(one, now);
        assert_eq!(board.unseen(&screens), 0);
        assert_eq!(board.open_jobs(), 2);
        board.job_ended(one);
        board.job_ended(one);
        assert_eq!((board.open_jobs(), board.ended.load(Ordering::Relaxed)), (1, 1));
    }
}
