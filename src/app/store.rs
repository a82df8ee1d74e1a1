//! Which store the configuration names.

use std::sync::Arc;

use crate::config::{Config, StoreUrl};
use crate::domain::factory::EventFactory;
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::store::{Store, StoreError};

/// Opens the configured store and brings its schema up to date.
///
/// # Errors
/// It cannot be reached or read, or comes from a newer version.
pub async fn open(config: &Config, factory: Arc<EventFactory>) -> Result<Arc<dyn Store>, StoreError> {
    match &config.store.url {
        StoreUrl::Sqlite(path) => {
            let reading = SqliteOptions {
                readers: u32::try_from(config.store.readers).unwrap_or(u32::MAX),
                read_timeout: config.store.read_timeout,
            };
            Ok(Arc::new(SqliteStore::open_with(path, factory, reading).await?))
        }
    }
}
