//! The sample agents: three small programs that do real work on a dataset file, and the contract
//! every agent of the `process` runner follows.
//!
//! They run as `event-gateway agent <command>`, one process a job, synchronous and single threaded.
//!
//! # The agent contract
//!
//! An agent is any program, in any language. The runner starts the configured argv; what a user
//! sent is only ever data in a file, never part of the command line.
//!
//! **Environment.** `GATEWAY_JOB_FILE` is the path of a JSON file, `GATEWAY_JOB_ID`,
//! `GATEWAY_ATTEMPT` and `GATEWAY_OUTPUT_DIR` repeat three of its fields for shell scripts:
//!
//! ```json
//! {
//!   "job_id": "0198c7a2-…", "attempt": 1, "agent": "AlphaCal",
//!   "dataset_id": "alpha-cal/point-source-10ant.csv", "dataset_path": "/…/point-source-10ant.csv",
//!   "params": {"reference_antenna": 0}, "resource_request": {}, "output_dir": "/…",
//!   "wall_time_seconds": 3600
//! }
//! ```
//!
//! Fields may be added; an agent ignores those it does not know.
//!
//! **Standard output** is JSON lines:
//! - `{"progress": 0.25, "message": "fitting gains"}`, any number of times; progress is 0 to 1 and
//!   never goes back;
//! - `{"result": {…}}` once, last, when the job succeeded;
//! - `{"error": {"code": "bad_params", "message": "…", "retriable": false}}` once, last, when it failed.
//!
//! Any other line is kept as log, and so is **standard error**.
//!
//! **Exit code**: 0 is success. 2 is bad input: the job fails for good, and the last line says why.
//! Anything else, a signal included, is a failure that may be retried.
//!
//! **Signals**: TERM ends the agent at once. Output files therefore appear whole or not at all:
//! write `.name.part` in `output_dir`, then rename it to `name`.
//!
//! # What the sample agents add
//!
//! Parameters are checked strictly (`bad_params` names each field and its allowed range), datasets
//! with the number of the offending line (`bad_dataset`); a job file that breaks the contract is
//! `bad_job_file`. Input and output errors of the machine are `io_error`, exit code 1, retriable.

mod calibrate;
mod complex;
mod contract;
pub mod datasets;
mod detect_anomalies;
mod error;
mod flag_and_image;
pub mod generate;
mod params;
mod random;
mod robust;
mod table;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

pub use datasets::install;

use contract::{Job, Reporter};
use error::AgentError;

/// A sample agent as the catalogue of agents shows it.
pub struct SampleAgent {
    /// Name under which jobs ask for it, e.g. `AlphaCal`.
    pub name: &'static str,
    /// Name of its subcommand: `event-gateway agent <command>`.
    pub command: &'static str,
    /// One or two sentences for a user who chooses an agent.
    pub description: &'static str,
    /// Directory of its shipped datasets, below where [`install`] puts them.
    pub datasets: &'static str,
    /// JSON Schema of `params`. Every property has title, description, type and default, numbers
    /// minimum and maximum, and `x-order` (its place in a form, from 0).
    pub params_schema: fn() -> Value,
    run: fn(&Job, &mut Reporter<'_>) -> Result<Value, AgentError>,
}

/// The sample agents, in the order in which a user meets them.
pub static ALL: &[SampleAgent] = &[calibrate::AGENT, flag_and_image::AGENT, detect_anomalies::AGENT];

/// Runs the sample agent `command` on the job that `GATEWAY_JOB_FILE` describes, under the contract
/// above. Start no threads and install no signal handlers before: TERM must keep its default action.
pub fn main(command: &str) -> ExitCode {
    let job_file = std::env::var_os("GATEWAY_JOB_FILE");
    let mut stdout = io::stdout().lock();
    ExitCode::from(run(command, job_file.as_deref().map(Path::new), &mut stdout))
}

/// [`main`] with its inputs and output as arguments; returns the exit code.
fn run(command: &str, job_file: Option<&Path>, stdout: &mut dyn Write) -> u8 {
    let mut reporter = Reporter::new(stdout);
    let error = match run_job(command, job_file, &mut reporter) {
        Ok(()) => return 0,
        Err(error) => error,
    };
    eprintln!("{error}");
    // Whoever reads standard output may be gone; the exit code still tells.
    let _ = reporter.line(&json!({ "error": {
        "code": error.code(), "message": error.to_string(), "retriable": error.is_retriable(),
    }}));
    error.exit_code()
}

fn run_job(command: &str, job_file: Option<&Path>, reporter: &mut Reporter<'_>) -> Result<(), AgentError> {
    let agent = ALL.iter().find(|agent| agent.command == command).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|agent| agent.command).collect();
        AgentError::BadJobFile(format!("no agent `{command}`; there are {}", known.join(", ")))
    })?;
    let job_file = job_file.ok_or_else(|| {
        AgentError::BadJobFile("GATEWAY_JOB_FILE is not set; agents are started by the runner".into())
    })?;
    let job = Job::read(job_file)?;
    let result = (agent.run)(&job, reporter)?;
    reporter.finish()?;
    reporter.line(&json!({ "result": result }))
}
