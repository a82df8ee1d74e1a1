//! The only place that wires anything together: builds, spawns, shuts down in order.

mod brokers;
mod core;
mod housekeeping;
mod lock;
mod serve;

pub use core::{Core, StartError};
pub use lock::{DataDirLock, LockError};
pub use serve::serve;
