//! The command line as a user meets it: the real binary, its output and exit codes. Where commands talk
//! to a gateway, that runs on the embedded default, and on real brokers with `EVENT_GATEWAY_TEST_ON=brokers`.

mod configuration;
#[path = "../support/environment.rs"]
mod environment;
#[path = "../support/fresh.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fresh;
#[expect(dead_code, reason = "the tests on real brokers use the rest of it")]
mod gateway;
mod jobs;
mod program;
mod reconcile;
#[path = "../support/runtime.rs"]
#[expect(dead_code, reason = "the tests on real brokers use the rest of it")]
mod runtime;
mod schemas;
#[path = "../support/postgres.rs"]
mod server;
mod store;
mod tokens;
mod trace;
