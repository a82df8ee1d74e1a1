//! PostgreSQL, a real one: `EVENT_GATEWAY_TEST_POSTGRES` (a URL) says where. Without it
//! these tests say so and pass, or fail if `REQUIRE_BROKERS=1`. Every test has a schema of
//! its own, which goes with it.

mod faults;
mod proxy;
mod shared;

use std::str::FromStr;
use std::sync::Arc;

use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::fixture::{Opened, factory};

/// The test server; `None` when there is none and that is fine.
fn server() -> Option<PgConnectOptions> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(url) = variable("EVENT_GATEWAY_TEST_POSTGRES") else {
        let required = variable("REQUIRE_BROKERS").is_some_and(|value| value == "1");
        assert!(!required, "REQUIRE_BROKERS=1, but EVENT_GATEWAY_TEST_POSTGRES is not set");
        eprintln!("SKIPPED: EVENT_GATEWAY_TEST_POSTGRES is not set");
        return None;
    };
    Some(PgConnectOptions::from_str(&url).expect("EVENT_GATEWAY_TEST_POSTGRES is a URL"))
}

async fn execute(server: &PgConnectOptions, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(server).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}

/// Runs `sql` when a test ends: its own runtime may be gone or unwinding.
fn execute_at_end(server: &PgConnectOptions, sql: String) {
    let (server, shown) = (server.clone(), sql.clone());
    let ended = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(execute(&server, sql))
    });
    if let Ok(Err(error)) = ended.join() {
        eprintln!("not done: {shown}: {error}");
    }
}

fn unique_name() -> String {
    format!("store_test_{}", uuid::Uuid::now_v7().simple())
}

/// A schema of the test database, dropped at the end.
pub struct Schema {
    server: PgConnectOptions,
    name: String,
}

impl Schema {
    /// `None` without a server.
    pub async fn create() -> Option<Self> {
        let schema = Self { server: server()?, name: unique_name() };
        execute(&schema.server, format!("CREATE SCHEMA {}", schema.name)).await.expect("a schema");
        Some(schema)
    }

    /// How to reach it.
    pub fn options(&self) -> PgConnectOptions {
        self.server.clone().options([("search_path", &self.name)])
    }

    /// A store as one more instance opens it.
    pub async fn store(&self) -> PostgresStore {
        PostgresStore::open(self.options(), factory(), PostgresOptions::default()).await.expect("a store")
    }

    /// A plain session.
    pub async fn session(&self) -> PgConnection {
        PgConnection::connect_with(&self.options()).await.expect("PostgreSQL answers")
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        execute_at_end(&self.server, format!("DROP SCHEMA {} CASCADE", self.name));
    }
}

/// A database of its own, for tests that change how it behaves; dropped at the end.
pub struct Database {
    server: PgConnectOptions,
    name: String,
}

impl Database {
    /// `None` without a server.
    pub async fn create() -> Option<Self> {
        let database = Self { server: server()?, name: unique_name() };
        execute(&database.server, format!("CREATE DATABASE {}", database.name)).await.expect("a database");
        Some(database)
    }

    /// How to reach it.
    pub fn options(&self) -> PgConnectOptions {
        self.server.clone().database(&self.name)
    }

    /// As a server that becomes a standby, or a primary again: its sessions end.
    pub async fn set_read_only(&self, on: bool) {
        let name = &self.name;
        let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
        execute(&self.server, sql).await.expect("altered");
        let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        execute(&self.server, sql).await.expect("sessions end");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        execute_at_end(&self.server, format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// A fresh PostgreSQL store.
pub async fn open() -> Option<Opened> {
    let schema = Schema::create().await?;
    Some(Opened { store: Arc::new(schema.store().await), _keep: Box::new(schema) })
}
