//! The command line as a user meets it: the real binary, its output and exit codes.

mod configuration;
mod program;
mod tokens;
