//! The command line as a user meets it: the real binary, its output and exit codes.

mod configuration;
#[path = "../support/environment.rs"]
mod environment;
#[expect(dead_code, reason = "the tests on real brokers use the rest of it")]
mod gateway;
mod jobs;
mod program;
mod reconcile;
mod schemas;
#[path = "../support/postgres.rs"]
mod server;
mod store;
mod tokens;
mod trace;
