//! The real binary, from outside: HTTP, signals, files.

mod kill;
mod process;
