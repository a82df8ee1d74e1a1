//! The one way to start a task: named, with a panic turned into a loud log line.
//!
//! Whoever spawns owns the handle and joins it; how a task ends is said where it is
//! spawned. Bare `tokio::spawn` is refused by clippy.

use std::future::Future;

use tokio::task::JoinHandle;

/// Spawns `future` as `name`. The name appears in logs when it panics.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is the wrapper everything else must use")]
    tokio::spawn(async move {
        /// Says so when the task unwinds.
        struct OnPanic(&'static str);
        impl Drop for OnPanic {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    tracing::error!(task = self.0, "a task panicked");
                }
            }
        }
        let _watch = OnPanic(name);
        future.await
    })
}
