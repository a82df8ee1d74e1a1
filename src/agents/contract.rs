//! The agent's side of the contract with the runner: the job file, lines on standard output, and
//! output files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::AgentError;

/// Larger datasets are refused: the sample agents hold theirs in memory.
const DATASET_LIMIT_BYTES: u64 = 64 << 20;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What the sample agents need of the job file.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    pub dataset_path: PathBuf,
    #[serde(default)]
    pub params: Value,
    pub output_dir: PathBuf,
}

impl Job {
    pub fn read(path: &Path) -> Result<Self, AgentError> {
        let text = fs::read(path).map_err(AgentError::io(format!("job file {}", path.display())))?;
        serde_json::from_slice(&text).map_err(|error| AgentError::BadJobFile(error.to_string()))
    }

    /// The dataset's text: at most 64 MiB of UTF-8.
    pub fn read_dataset(&self) -> Result<String, AgentError> {
        let mut bytes = Vec::new();
        let read =
            File::open(&self.dataset_path).and_then(|file| file.take(DATASET_LIMIT_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(AgentError::dataset(None, "there is no such file"));
            }
            Err(error) => return Err(AgentError::io("dataset")(error)),
            Ok(_) if bytes.len() as u64 > DATASET_LIMIT_BYTES => {
                let reason = format!("larger than {} MiB, the most this agent reads", DATASET_LIMIT_BYTES >> 20);
                return Err(AgentError::dataset(None, reason));
            }
            Ok(_) => {}
        }
        String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            AgentError::dataset(line, "not UTF-8 text")
        })
    }

    /// Writes `output_dir/name` by way of `.name.part` and a rename, so that TERM at any moment
    /// leaves either the whole file or none. A part left behind is overwritten by the next attempt.
    pub fn write_output(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(), AgentError> {
        let part = self.output_dir.join(format!(".{name}.part"));
        let written = fs::create_dir_all(&self.output_dir).and_then(|()| {
            let mut file = BufWriter::new(File::create(&part)?);
            write(&mut file)?;
            file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            fs::rename(&part, self.output_dir.join(name))
        });
        written.map_err(AgentError::io(format!("output file {name}")))
    }
}

/// Writes the JSON lines of one agent run.
pub(super) struct Reporter<'a> {
    out: &'a mut dyn Write,
    /// The part of the whole run that `fraction` 0..1 of [`Reporter::progress`] stands for.
    phase: (f64, f64),
    reported: f64,
    last: Option<Instant>,
}

impl<'a> Reporter<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, phase: (0.0, 1.0), reported: 0.0, last: None }
    }

    /// Begins a phase that covers `from..to` of the run.
    pub fn phase(&mut self, from: f64, to: f64) {
        self.phase = (from, to);
    }

    /// Reports `fraction` (0..1) of the current phase, at most every 200 ms; call it as often as is
    /// convenient. Fails when nobody reads any more, so that an orphan ends by itself.
    pub fn progress(&mut self, fraction: f64, message: impl FnOnce() -> String) -> Result<(), AgentError> {
        if self.last.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let (from, to) = self.phase;
        let value = from + (to - from) * fraction.clamp(0.0, 1.0);
        self.reported = self.reported.max((value * 1e4).floor() / 1e4);
        self.line(&json!({ "progress": self.reported, "message": message() }))
    }

    /// Reports that everything is done.
    pub fn finish(&mut self) -> Result<(), AgentError> {
        self.line(&json!({ "progress": 1.0, "message": "done" }))
    }

    /// Writes one line of JSON and flushes it.
    pub fn line(&mut self, value: &Value) -> Result<(), AgentError> {
        // One write a line: TERM between two writes would leave half a line.
        let line = format!("{value}\n");
        self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()).map_err(AgentError::io("standard output"))
    }
}

/// `value` for a result: at most six significant digits, `null` if it is not finite.
pub(super) fn figure(value: f64) -> Value {
    if value == 0.0 {
        return json!(0.0);
    }
    format!("{value:.5e}").parse::<f64>().ok().filter(|value| value.is_finite()).map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back_and_is_throttled() {
        let mut out = Vec::new();
        let mut reporter = Reporter::new(&mut out);
        reporter.phase(0.5, 1.0);
        reporter.progress(0.5, || "first".into()).unwrap();
        reporter.progress(0.6, || unreachable!("within 200 ms")).unwrap();
        reporter.last = None;
        reporter.phase(0.0, 0.1);
        reporter.progress(1.0, || "earlier".into()).unwrap();
        let lines: Vec<Value> =
            out.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(
            lines,
            [json!({"progress": 0.75, "message": "first"}), json!({"progress": 0.75, "message": "earlier"}),]
        );
    }

    #[test]
    fn figures_are_short_and_valid_json() {
        assert_eq!(figure(1.0 / 3.0), json!(0.333333));
        assert_eq!(figure(-123456789.0), json!(-123457000.0));
        assert_eq!(figure(f64::NAN), Value::Null);
    }

    #[test]
    fn output_replaces_a_part_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let job = Job { dataset_path: "".into(), params: Value::Null, output_dir: dir.path().join("out") };
        fs::create_dir(&job.output_dir).unwrap();
        fs::write(job.output_dir.join(".a.csv.part"), "half a fi").unwrap();
        job.write_output("a.csv", |file| file.write_all(b"whole\n")).unwrap();
        assert_eq!(fs::read_to_string(job.output_dir.join("a.csv")).unwrap(), "whole\n");
        assert_eq!(fs::read_dir(&job.output_dir).unwrap().count(), 1);
    }
}
