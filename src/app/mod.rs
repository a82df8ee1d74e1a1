//! The only place that wires anything together: builds, spawns, shuts down in order.

mod brokers;
mod core;
mod health;
mod housekeeping;
mod lock;
mod logs;
mod retention;
mod serve;
mod store;
pub mod topology;

pub use core::{Core, StartError};
pub use lock::{DataDirLock, LockError};
pub use logs::open as open_logs;
pub use retention::{Deleted, Retention};
pub use serve::serve;
pub use store::{open as open_store, open_as_found as open_store_as_found};
