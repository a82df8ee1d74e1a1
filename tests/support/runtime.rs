//! What drives clients in tests that are no async functions.

use tokio::runtime::{Builder, Runtime};

/// Runs what it is given to wait for, on this thread, and nothing in between.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Goes on in between: for connections that have to answer.
pub fn runtime_beside() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
