//! The work directory: a directory for each run, and a record of each run that is not
//! settled, for a gateway that starts after this one was killed.
//!
//! ```text
//! <work_dir>/<job id>/attempt-<n>/   job.json, agent.log, output/, tmp/
//! <work_dir>/active/<run id>.json    a Record
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::family::{Family, Identity};
use crate::domain::Id;

const ACTIVE: &str = "active";

/// Where runs live. All methods block.
#[derive(Clone, Debug)]
pub(super) struct WorkDir {
    root: PathBuf,
}

/// The directory of one run.
#[derive(Clone, Debug)]
pub(super) struct RunDir {
    pub path: PathBuf,
    pub output: PathBuf,
    pub tmp: PathBuf,
    pub job_file: PathBuf,
}

/// What a restart must know of a run.
///
/// Not synced to disk: it must survive the gateway, not the machine. After a power loss no
/// process is left to be found, and the lease tells the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub run_id: Id,
    pub job_id: Id,
    pub attempt: u32,
    pub claimant: Arc<str>,
    pub boot_id: String,
    /// `None` until it is started. The leader of its group and session.
    pub leader: Option<Identity>,
}

impl Record {
    pub fn family(&self) -> Family {
        Family { run_id: self.run_id, leader: self.leader }
    }
}

impl WorkDir {
    /// Creates what is missing, readable by this user only.
    pub fn open(root: &Path) -> io::Result<Self> {
        private_dir(true).create(root.join(ACTIVE))?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// A new directory for an attempt.
    pub fn create_run(&self, job: Id, attempt: u32) -> io::Result<RunDir> {
        let parent = self.root.join(job.to_string());
        private_dir(true).create(&parent)?;
        let mut path = parent.join(format!("attempt-{attempt}"));
        // One exists only when the store was put back to an earlier state: keep both.
        let mut again = 1;
        while let Err(error) = private_dir(false).create(&path) {
            if error.kind() != io::ErrorKind::AlreadyExists || again == 1_000 {
                return Err(error);
            }
            again += 1;
            path = parent.join(format!("attempt-{attempt}-{again}"));
        }
        let run = RunDir { output: path.join("output"), tmp: path.join("tmp"), job_file: path.join("job.json"), path };
        private_dir(false).create(&run.output)?;
        private_dir(false).create(&run.tmp)?;
        Ok(run)
    }

    /// Writes or replaces the record of a run, whole or not at all.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        let path = self.record_path(record.run_id);
        let part = path.with_extension("part");
        write_private(&part, &serde_json::to_vec(record)?)?;
        fs::rename(part, path)
    }

    /// The run is settled.
    pub fn remove_record(&self, run_id: Id) -> io::Result<()> {
        match fs::remove_file(self.record_path(run_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The records of an earlier life. What is no record is warned of and moved aside.
    pub fn records(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.root.join(ACTIVE))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read the record of a run; set aside");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(records)
    }

    /// Removes directories of runs that nobody has changed for `keep`, but for those of
    /// jobs in `busy`; how many.
    pub fn prune(&self, keep: Duration, busy: &[Id]) -> io::Result<usize> {
        let Some(before) = SystemTime::now().checked_sub(keep) else { return Ok(0) };
        let mut removed = 0;
        for job in fs::read_dir(&self.root)? {
            let job = job?.path();
            let id = job.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Id>().ok());
            if id.is_none_or(|id| busy.contains(&id)) {
                continue;
            }
            // One that cannot be removed must not keep the others.
            match prune_job(&job, before) {
                Ok(runs) => removed += runs,
                Err(error) => {
                    tracing::warn!(path = %job.display(), %error, "cannot remove the directories of a job's runs");
                }
            }
        }
        Ok(removed)
    }

    fn record_path(&self, run_id: Id) -> PathBuf {
        self.root.join(ACTIVE).join(format!("{run_id}.json"))
    }
}

impl RunDir {
    /// Writes the job file.
    pub fn write_job(&self, job: &impl Serialize) -> io::Result<()> {
        write_private(&self.job_file, &serde_json::to_vec(job)?)
    }

    /// Removes what only the running process needed.
    pub fn tidy(&self) {
        let _ = fs::remove_dir_all(&self.tmp);
    }
}

/// Removes the runs of a job that were last changed before a time; how many.
fn prune_job(job: &Path, before: SystemTime) -> io::Result<usize> {
    let mut removed = 0;
    for run in fs::read_dir(job)? {
        let run = run?.path();
        if newest(&run)? < before {
            fs::remove_dir_all(&run)?;
            removed += 1;
        }
    }
    // Only when it is empty now.
    let _ = fs::remove_dir(job);
    Ok(removed)
}

/// When a run's directory or its output or log was last changed.
fn newest(run: &Path) -> io::Result<SystemTime> {
    let mut newest = fs::symlink_metadata(run)?.modified()?;
    for name in ["output", "agent.log"] {
        if let Ok(metadata) = fs::symlink_metadata(run.join(name)) {
            newest = newest.max(metadata.modified()?);
        }
    }
    Ok(newest)
}

fn private_dir(recursive: bool) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(recursive).mode(0o700);
    builder
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            run_id: Id::new(),
            job_id: Id::new(),
            attempt: 3,
            claimant: "process:a:1".into(),
            boot_id: "b".into(),
            leader: Some(Identity { pid: 7, start_time: 11 }),
        }
    }

    #[test]
    fn records_come_back_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(&dir.path().join("runs")).unwrap();
        let mut one = record();
        one.leader = None;
        work.write_record(&one).unwrap();
        one.leader = Some(Identity { pid: 1, start_time: 2 });
        work.write_record(&one).unwrap();
        fs::write(dir.path().join("runs/active/torn.json"), "{\"run_id\":").unwrap();
        fs::write(dir.path().join("runs/active/x.part"), "{").unwrap();
        assert_eq!(work.records().unwrap(), [one.clone()]);
        assert!(dir.path().join("runs/active/torn.unreadable").exists());
        work.remove_record(one.run_id).unwrap();
        work.remove_record(one.run_id).unwrap();
        assert_eq!(work.records().unwrap(), []);
    }

    #[test]
    fn an_attempt_never_writes_into_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let job = Id::new();
        let first = work.create_run(job, 1).unwrap();
        let second = work.create_run(job, 1).unwrap();
        assert_ne!(first.path, second.path);
        assert!(second.output.is_dir() && second.tmp.is_dir());
    }

    #[test]
    fn old_runs_are_pruned_and_busy_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let (old, busy) = (Id::new(), Id::new());
        let old_run = work.create_run(old, 1).unwrap();
        let busy_run = work.create_run(busy, 1).unwrap();
        work.write_record(&record()).unwrap();
        assert_eq!(work.prune(Duration::from_secs(3600), &[busy]).unwrap(), 0);
        assert!(old_run.path.exists());
        assert_eq!(work.prune(Duration::ZERO, &[busy]).unwrap(), 1);
        assert!(!old_run.path.parent().unwrap().exists());
        assert!(busy_run.path.exists());
        assert_eq!(work.records().unwrap().len(), 1);
    }
}
