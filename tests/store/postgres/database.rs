//! Tests that change how a server behaves do it to a database of their own.

use sqlx::postgres::PgConnectOptions;

use super::server::{execute, execute_at_end, server, unique_name};

/// Dropped at the end.
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
