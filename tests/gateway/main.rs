//! The real binary, from outside: HTTP, signals, files. On its embedded default, and with
//! `EVENT_GATEWAY_TEST_ON=brokers` on real brokers, but for what is about the default itself.

#[path = "../support/commits.rs"]
#[expect(dead_code, reason = "the tests of the store use the rest of it")]
mod commits;
#[path = "../support/effects.rs"]
mod effects;
#[path = "../support/environment.rs"]
mod environment;
#[path = "../support/fresh.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fresh;
#[path = "../support/home.rs"]
mod home;
mod kill;
mod life;
mod process;
mod refusals;
mod restore;
#[path = "../support/postgres.rs"]
mod server;
mod store;
mod tour;
mod unanswered;
