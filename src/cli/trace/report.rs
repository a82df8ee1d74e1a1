//! The closing report.

use std::fmt::Write as _;

use serde::Serialize;

use super::verify::Whole;
use crate::domain::job::JobStatus;

/// A latency distribution in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// Jobs answered 201 of which something is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lost {
    pub total: u64,
    pub not_found: u64,
    pub not_final: u64,
    pub leg_not_done: u64,
    pub gap_in_sequence: u64,
    /// The gateway did not answer when asked for them.
    pub unknown: u64,
    /// Which, and why; the first few.
    pub jobs: Vec<String>,
}

/// The gateway's own account of the jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Accounts {
    pub finished: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub events: u64,
    pub legs: u64,
    pub legs_skipped: u64,
    pub lost: Lost,
}

impl Accounts {
    pub fn add(&mut self, job: &Whole) {
        match job.status {
            JobStatus::Failed => self.failed += 1,
            JobStatus::Cancelled => self.cancelled += 1,
            JobStatus::Queued | JobStatus::Running | JobStatus::Completed => self.finished += 1,
        }
        self.events += job.events;
        self.legs += job.legs;
        self.legs_skipped += job.skipped;
    }
}

/// What the sockets saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Screens {
    pub sockets: u64,
    pub users: u64,
    pub updates: u64,
    /// Offsets that never came without a resync.
    pub gaps: u64,
    pub resyncs: u64,
    pub reconnects: u64,
    /// Submitted jobs that a socket of their user never showed.
    pub never_shown: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub log: String,
    pub jobs_in_log: u64,
    pub users_in_log: u64,
    pub partial_lines: u64,
    pub speedup: f64,
    /// From the first submission to the last reported end.
    pub seconds: f64,
    pub submitted: u64,
    pub refused: u64,
    #[serde(flatten)]
    pub accounts: Accounts,
    pub peak_submits_per_second: u64,
    /// How late submissions went out.
    pub schedule_lag: Latency,
    /// From the POST to its 201.
    pub submit_to_accepted: Latency,
    /// From the POST to the event on a socket of the job's user.
    pub submit_to_screen: Latency,
    pub screens: Screens,
    pub worker_refusals: u64,
    /// Jobs of the agent that no trace submitted; left alone.
    pub foreign_jobs: u64,
    pub interrupted: bool,
    pub complaints: Vec<String>,
}

impl Report {
    /// Everything that was asked for happened, and nothing is missing.
    pub fn is_clean(&self) -> bool {
        self.accounts.lost.total == 0
            && self.refused == 0
            && self.submitted == self.jobs_in_log
            && self.screens.gaps == 0
            && self.screens.never_shown == 0
            && !self.interrupted
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Self { accounts, screens, .. } = self;
        let lost = &accounts.lost;
        let rate = if self.seconds > 0.0 { self.submitted as f64 / self.seconds } else { 0.0 };
        let _ = writeln!(
            text,
            "{}: {} jobs of {} users in {:.1} s (speed-up {})",
            self.log, self.jobs_in_log, self.users_in_log, self.seconds, self.speedup
        );
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<20}{value}");
        };
        let peak = self.peak_submits_per_second;
        row("submitted", format!("{} ({rate:.0}/s on average, {peak}/s at the peak)", self.submitted));
        if self.refused > 0 {
            row("refused", self.refused.to_string());
        }
        row("finished", accounts.finished.to_string());
        row("failed", accounts.failed.to_string());
        if accounts.cancelled > 0 {
            row("cancelled", accounts.cancelled.to_string());
        }
        row("lost", lost.total.to_string());
        for (why, count) in [
            ("  no such job", lost.not_found),
            ("  not final", lost.not_final),
            ("  leg not done", lost.leg_not_done),
            ("  gap in sequence", lost.gap_in_sequence),
            ("  not answered", lost.unknown),
        ] {
            if count > 0 {
                row(why, count.to_string());
            }
        }
        row(
            "ledger",
            format!(
                "{} events, {} legs done, {} skipped",
                accounts.events,
                accounts.legs - accounts.legs_skipped,
                accounts.legs_skipped
            ),
        );
        row("schedule lag", latency(&self.schedule_lag));
        row("submit to 201", latency(&self.submit_to_accepted));
        row("submit to screen", latency(&self.submit_to_screen));
        row(
            "screens",
            format!(
                "{} sockets of {} users, {} updates, {} missing, {} jobs never shown, {} resyncs, {} reconnects",
                screens.sockets,
                screens.users,
                screens.updates,
                screens.gaps,
                screens.never_shown,
                screens.resyncs,
                screens.reconnects
            ),
        );
        if self.worker_refusals > 0 {
            row("worker refusals", self.worker_refusals.to_string());
        }
        if self.foreign_jobs > 0 {
            row("foreign jobs", format!("{} claimed that are not of a trace; left alone", self.foreign_jobs));
        }
        for line in lost.jobs.iter().chain(&self.complaints) {
            let _ = writeln!(text, "  ! {}", super::super::output::plain(line));
        }
        if self.interrupted {
            let _ = writeln!(text, "  interrupted: this is only a part of the log");
        }
        text
    }
}

fn latency(latency: &Latency) -> String {
    if latency.count == 0 {
        return "nothing measured".to_owned();
    }
    format!(
        "p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms ({} measured)",
        latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms, latency.count
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_clean_only_if_nothing_is_missing() {
        let clean = Report { jobs_in_log: 2, submitted: 2, ..Report::default() };
        assert!(clean.is_clean());
        assert!(clean.text().contains("lost                0"), "{}", clean.text());
        let lost = Accounts { lost: Lost { total: 1, not_final: 1, ..Lost::default() }, ..Accounts::default() };
        assert!(!Report { accounts: lost, ..clean.clone() }.is_clean());
        assert!(!Report { submitted: 1, ..clean.clone() }.is_clean());
        assert!(!Report { refused: 1, ..clean.clone() }.is_clean());
        let gap = Screens { gaps: 1, ..Screens::default() };
        assert!(!Report { screens: gap, ..clean.clone() }.is_clean());
        assert!(!Report { interrupted: true, ..clean }.is_clean());
    }
}
