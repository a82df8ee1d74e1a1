//! Which store the configuration names.

use std::str::FromStr;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;

use crate::config::{Config, StoreUrl};
use crate::domain::factory::EventFactory;
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::store::{Migrations, Store, StoreError};

/// Opens the configured store for a gateway: brings its schema up to date.
///
/// # Errors
/// It cannot be reached or read, or its schema is newer and not for this program.
pub async fn open(config: &Config, factory: Arc<EventFactory>) -> Result<Arc<dyn Store>, StoreError> {
    open_with(config, factory, Migrations::Apply).await
}

/// Opens the configured store for a command beside gateways: leaves its schema as it is.
///
/// # Errors
/// It cannot be reached or read, or this program cannot work on its schema.
pub async fn open_as_found(config: &Config, factory: Arc<EventFactory>) -> Result<Arc<dyn Store>, StoreError> {
    open_with(config, factory, Migrations::Leave).await
}

async fn open_with(
    config: &Config,
    factory: Arc<EventFactory>,
    migrations: Migrations,
) -> Result<Arc<dyn Store>, StoreError> {
    let size = |connections| u32::try_from(connections).unwrap_or(u32::MAX);
    let settings = &config.store;
    match &settings.url {
        StoreUrl::Sqlite(path) => {
            let options =
                SqliteOptions { readers: size(settings.readers), read_timeout: settings.read_timeout, migrations };
            Ok(Arc::new(SqliteStore::open_with(path, factory, options).await?))
        }
        StoreUrl::Postgres(url) => {
            let mut server = PgConnectOptions::from_str(url.as_str())?;
            if let Some(password) = &settings.password {
                server = server.password(password.expose());
            }
            let options = PostgresOptions {
                readers: size(settings.readers),
                writers: size(settings.writers),
                read_timeout: settings.read_timeout,
                migrations,
            };
            Ok(Arc::new(PostgresStore::open(server, factory, options).await?))
        }
    }
}
