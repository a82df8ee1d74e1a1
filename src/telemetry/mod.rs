//! What the gateway says about itself: log lines, metrics, and facts that are both.

pub mod facts;
mod log;
pub mod metrics;
pub mod readiness;

pub use log::{LogError, init};
pub use metrics::{ConsumerMetrics, Metrics};
pub use readiness::{Latch, Readiness};
