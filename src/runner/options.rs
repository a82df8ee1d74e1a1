//! The runner's settings, as a plain value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config;
use crate::domain::job::RunnerKind;

/// How jobs are run. `src/config` fills it; [`RunnerOptions::check`] is the only judge.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerOptions {
    /// The most jobs that run at the same time.
    pub concurrency: usize,
    /// From TERM to KILL.
    pub cancel_grace: Duration,
    /// How long a claim lives without a sign of life; renewed at a third of it.
    pub lease: Duration,
    /// From one measurement of a run to the next.
    pub sample_interval: Duration,
    /// Dataset ids are paths below it.
    pub datasets_dir: PathBuf,
    /// Everything a run writes is below it, and what a restart must know.
    pub work_dir: PathBuf,
    /// Agent name to program and arguments, ready to execute.
    pub agents: BTreeMap<String, Vec<OsString>>,
    /// How often the store is asked for work when nothing wakes the runner.
    pub poll_interval: Duration,
    /// From the request to stop until [`super::Runner::run`] returns, whatever is left.
    pub shutdown_limit: Duration,
    /// The most address space of each process of a run, in bytes (`RLIMIT_AS`).
    pub memory_limit_bytes: Option<u64>,
    /// Directories of runs that ended longer ago are removed.
    pub keep_runs: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            concurrency: 2,
            cancel_grace: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            sample_interval: Duration::from_secs(1),
            datasets_dir: "data/datasets".into(),
            work_dir: "data/runs".into(),
            agents: BTreeMap::new(),
            poll_interval: Duration::from_secs(5),
            shutdown_limit: Duration::from_secs(20),
            memory_limit_bytes: None,
            keep_runs: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// One setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct OptionError {
    /// The field, as named in [`RunnerOptions`].
    pub field: String,
    /// What is wrong and what would do.
    pub reason: String,
}

impl RunnerOptions {
    /// The settings, for the `process` agents among `agents`; `own_path` is this program's.
    pub fn new(settings: &config::Runner, agents: &[config::Agent], own_path: &Path, shutdown_limit: Duration) -> Self {
        let agents = agents.iter().filter(|agent| agent.runner == RunnerKind::Process);
        Self {
            concurrency: settings.concurrency.0.get(),
            cancel_grace: settings.cancel_grace,
            lease: settings.lease,
            sample_interval: settings.sample_interval,
            datasets_dir: settings.datasets_dir.clone(),
            work_dir: settings.work_dir.clone(),
            agents: agents.map(|agent| (agent.name.clone(), agent.argv(own_path))).collect(),
            shutdown_limit,
            ..Self::default()
        }
    }

    /// Everything that is wrong, at once.
    pub fn check(&self) -> Vec<OptionError> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, reason: String| errors.push(OptionError { field: field.to_owned(), reason });
        if !(1..=1024).contains(&self.concurrency) {
            wrong("concurrency", format!("{} is not between 1 and 1024", self.concurrency));
        }
        let durations = [
            ("cancel_grace", self.cancel_grace, Duration::ZERO, Duration::from_secs(3600)),
            ("lease", self.lease, Duration::from_secs(1), Duration::from_secs(3600)),
            ("sample_interval", self.sample_interval, Duration::from_millis(100), Duration::from_secs(3600)),
            ("poll_interval", self.poll_interval, Duration::from_millis(100), Duration::from_secs(3600)),
            ("shutdown_limit", self.shutdown_limit, Duration::from_secs(1), Duration::from_secs(3600)),
        ];
        for (field, value, least, most) in durations {
            if !(least..=most).contains(&value) {
                wrong(field, format!("{value:?} is not between {least:?} and {most:?}"));
            }
        }
        for (name, argv) in &self.agents {
            let field = format!("agents.{name}");
            match argv.first() {
                None => wrong(&field, "no command; give the program and its arguments as a list".to_owned()),
                Some(program) if program.is_empty() => wrong(&field, "the program is empty".to_owned()),
                Some(_) if argv.iter().any(|part| part.as_bytes().contains(&0)) => {
                    wrong(&field, "contains a NUL byte".to_owned());
                }
                Some(_) => {}
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_fine() {
        assert_eq!(RunnerOptions::default().check(), []);
    }

    #[test]
    fn every_bad_setting_is_named() {
        let options = RunnerOptions {
            concurrency: 0,
            lease: Duration::ZERO,
            agents: BTreeMap::from([("Empty".to_owned(), vec![]), ("Nul".to_owned(), vec!["a\0".into()])]),
            ..RunnerOptions::default()
        };
        let fields: Vec<_> = options.check().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["concurrency", "lease", "agents.Empty", "agents.Nul"]);
    }
}
