//! The real binary, from outside: HTTP, signals, files.

#[path = "../support/effects.rs"]
mod effects;
#[path = "../support/environment.rs"]
mod environment;
mod kill;
mod life;
mod process;
mod refusals;
mod restore;
#[path = "../support/postgres.rs"]
mod server;
mod store;
mod tour;
