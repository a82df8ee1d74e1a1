//! A PostgreSQL server, a real one: `EVENT_GATEWAY_TEST_POSTGRES` (a URL) says where.
//! Without it tests say so and pass, or fail if `REQUIRE_BROKERS=1`. What a test makes there
//! has a unique name and goes with it.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::environment::variable;

/// The test server; `None` when there is none and that is fine.
pub fn server() -> Option<PgConnectOptions> {
    let url = variable("EVENT_GATEWAY_TEST_POSTGRES")?;
    Some(PgConnectOptions::from_str(&url).expect("EVENT_GATEWAY_TEST_POSTGRES is a URL"))
}

pub async fn execute(server: &PgConnectOptions, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(server).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}

/// Runs `sql` when a test ends: its own runtime may be gone or unwinding.
pub fn execute_at_end(server: &PgConnectOptions, sql: String) {
    let (server, shown) = (server.clone(), sql.clone());
    let ended = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(execute(&server, sql))
    });
    if let Ok(Err(error)) = ended.join() {
        eprintln!("not done: {shown}: {error}");
    }
}

pub fn unique_name() -> String {
    format!("gateway_test_{}", uuid::Uuid::now_v7().simple())
}

/// A schema of the test database, dropped at the end.
pub struct Schema {
    server: PgConnectOptions,
    pub name: String,
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
