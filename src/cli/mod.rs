//! The command line: one file a command. A command is a function from its arguments to
//! success or a [`Failure`] with an exit code.

mod config;
mod exit;
mod jobs;
mod ledger;
mod output;
mod prune;
mod reconcile;
mod schema;
mod serve;
mod session;
mod token;
mod topology;
mod trace;
mod watch;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Config, Loaded, Sources};
use crate::domain::catalogue::Catalogue;
use exit::{Failure, Outcome};
use output::Format;

const EXAMPLES: &str = "\
Examples:
  event-gateway                                        serve on http://127.0.0.1:8080, data in ./data
  event-gateway jobs submit --agent AlphaCal --dataset alpha-cal/point-source-10ant.csv --watch
  event-gateway ledger 0198c7a2-8f3e-7c30-9a55-3f1de0a4c111
  event-gateway trace NASA-iPSC.swf.gz --speedup 40000

Exit codes:
  0    done
  1    it failed: refused, the job did not complete, something was lost
  2    wrong usage
  64   wrong configuration
  69   the gateway (schema check: the registry; topology: a broker) cannot be reached
  77   not signed in, or not allowed
  130  interrupted";

/// One binary: the gateway, and the tools to use and operate it.
#[derive(Parser)]
#[command(name = "event-gateway", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Without one it serves: `cargo run` alone gives a gateway.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Global {
    /// Configuration file, or a directory of *.toml files [default: ./config, if there is one].
    #[arg(long, global = true, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
    /// Overrides one setting, e.g. --set http.listen=127.0.0.1:9000. May be repeated.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Global {
    /// The configuration in effect.
    fn load(&self) -> Result<Loaded, Failure> {
        Ok(Config::load(&Sources::new(self.config.clone(), self.set.clone()))?)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway; what happens without a command, too.
    Serve(serve::Serve),
    /// Submit, watch, list and cancel jobs.
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// Where is my event? Every leg of every event of a job, or of one event.
    Ledger(ledger::Ledger),
    /// Delete what is older than retention.* says.
    Prune(prune::Prune),
    /// Is everything in the brokers that the ledger says, once, in order?
    Reconcile(reconcile::Reconcile),
    /// Tokens for people and programs.
    #[command(subcommand)]
    Token(token::Token),
    /// The configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// What the brokers must have: exchanges, queues, topics, streams.
    #[command(subcommand)]
    Topology(topology::Topology),
    /// The Avro schemas of what is in Kafka.
    #[command(subcommand)]
    Schema(schema::Schema),
    /// Play the cluster of a workload log against the gateway, and account for every job.
    Trace(Box<trace::Trace>),
    /// Print completions for a shell.
    #[command(after_help = "Example:\n  event-gateway completions bash > /etc/bash_completion.d/event-gateway")]
    Completions { shell: Shell },
    /// Run a sample agent; the runner does, with GATEWAY_JOB_FILE set.
    #[command(hide = true)]
    Agent { name: String },
}

/// Parses the arguments, runs the command and says what went wrong.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let outcome = match command.unwrap_or_else(|| Command::Serve(serve::Serve::default())) {
        // Neither threads nor signal handlers: TERM must end an agent at once.
        Command::Agent { name } => return crate::agents::main(&name),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "event-gateway", &mut io::stdout());
            Ok(())
        }
        Command::Config(command) => config::run(&command, &global),
        Command::Token(command) => token::run(&command, &global),
        Command::Serve(command) => serve::run(command, global),
        Command::Jobs(command) => block_on(jobs::run(command, &global)),
        Command::Schema(command) => block_on(schema::run(&command, &global)),
        Command::Topology(command) => block_on(topology::run(&command, &global)),
        Command::Ledger(command) => block_on(ledger::run(&command, &global)),
        Command::Prune(command) => block_on(prune::run(command, &global)),
        Command::Reconcile(command) => block_on(reconcile::run(command, &global)),
        Command::Trace(command) => block_on(trace::run(&command, &global)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The catalogue of the configuration.
fn catalogue(config: &Config) -> Result<Arc<Catalogue>, Failure> {
    Catalogue::load(&config.catalogue.dirs)
        .map_err(|errors| Failure::configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Runs a command on a runtime of its own.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("the runtime could not be started: {error}")))?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_anywhere() {
        let cli =
            Cli::try_parse_from(["event-gateway", "config", "show", "--set", "a.b=c", "--output", "json"]).unwrap();
        assert_eq!(cli.global.set, ["a.b=c"]);
        assert_eq!(cli.global.output, Format::Json);
    }
}
