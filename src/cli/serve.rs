//! `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::exit::{Failure, Outcome};
use crate::app::StartError;

#[derive(Args, Default)]
#[command(after_help = "\
Examples:
  event-gateway serve
  event-gateway serve --listen 127.0.0.1:0 --data-dir /tmp/gateway
  GATEWAY__AUTH__JWT_SECRET_FILE=/run/secrets/jwt event-gateway serve --listen 0.0.0.0:8080

TERM drains and stops within shutdown.limit; a second one ends at once.")]
pub struct Serve {
    /// Short for --set http.listen=ADDRESS.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Short for --set data.dir=DIR.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(serve: Serve, mut global: Global) -> Outcome {
    global.set.extend(serve.listen.map(|address| format!("http.listen={address}")));
    global.set.extend(serve.data_dir.map(|dir| format!("data.dir={}", dir.display())));
    let config = global.load()?.config;
    crate::telemetry::init(&config.log).map_err(|error| Failure::configuration(error.to_string()))?;
    super::block_on(async {
        crate::app::serve(config).await.map_err(|error| match error {
            StartError::Catalogue(_) | StartError::Config(_) => Failure::configuration(error.to_string()),
            other => Failure::failed(other.to_string()),
        })
    })
}
