//! `event-gateway serve`: the core with its front ends, from start to shutdown.

use tokio::signal::unix::{SignalKind, signal};

use super::core::{Core, StartError};
use super::lock::DataDirLock;
use crate::config::Config;
use crate::telemetry::Metrics;

/// Runs the gateway until TERM or INT. A second signal exits at once.
///
/// # Errors
/// It did not start; nothing runs any more.
pub async fn serve(config: Config) -> Result<(), StartError> {
    let _lock = DataDirLock::take(&config.data.dir)?;
    let core = Core::start(&config, Metrics::new()).await?;
    stop_signal().await;
    core.stop().await;
    Ok(())
}

async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be watched; stopping");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
