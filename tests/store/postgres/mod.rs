//! PostgreSQL, a real one. Every test has a schema of its own.

mod database;
mod faults;
mod limits;
mod owners;
#[path = "../../support/commits.rs"]
mod proxy;
mod secured;
#[path = "../../support/postgres.rs"]
mod server;
mod shared;
mod takeover;

use std::sync::Arc;
use std::time::Duration;

use event_gateway::store::Store;
use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use futures_util::future::LocalBoxFuture;
use sqlx::postgres::PgConnectOptions;

use crate::environment;
use crate::fixture::{Opened, factory};
use database::Database;
pub use server::Schema;

/// Longer than any test.
pub const LEASE: Duration = Duration::from_secs(60);

/// A store as an instance of this name opens it.
async fn enrolled(server: PgConnectOptions, instance: &str, lease: Duration) -> PostgresStore {
    let store = PostgresStore::open(server, factory(), PostgresOptions::default()).await.expect("a store");
    store.enroll(instance, lease).await.expect("enrolled");
    store
}

impl Schema {
    /// A store as one more instance opens it.
    pub async fn store(&self) -> PostgresStore {
        enrolled(self.options(), &uuid::Uuid::now_v7().to_string(), LEASE).await
    }
}

/// A fresh PostgreSQL store.
pub async fn open() -> Option<Opened> {
    let schema = Arc::new(Schema::create().await?);
    let store = Arc::new(schema.store().await);
    let keep = schema.clone();
    let again = Box::new(move || {
        let schema = schema.clone();
        Box::pin(async move { Arc::new(schema.store().await) as Arc<dyn Store> })
            as LocalBoxFuture<'static, Arc<dyn Store>>
    });
    Some(Opened { store, again, _keep: keep })
}
