//! Where a gateway under test keeps its rows: SQLite in its data directory, or a schema of
//! the PostgreSQL server. SQL that both understand is asked here.

use std::path::Path;

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row, SqliteConnection};

use super::process::open;
use super::server::Schema;

pub enum Place {
    Sqlite,
    Postgres(Box<Schema>),
}

impl Place {
    /// What a gateway needs in its environment to use it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Sqlite => Vec::new(),
            Self::Postgres(schema) => vec![("GATEWAY__STORE__URL", url(schema))],
        }
    }

    pub async fn open(&self, data_dir: &Path) -> Database {
        match self {
            Self::Sqlite => Database::Sqlite(open(data_dir, "gateway.db").await),
            Self::Postgres(schema) => Database::Postgres(schema.session().await),
        }
    }
}

fn url(schema: &Schema) -> String {
    let mut url = schema.options().to_url_lossy();
    url.query_pairs_mut().append_pair("options", &format!("-c search_path={}", schema.name));
    url.into()
}

/// A session beside the gateway's.
pub enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Database {
    /// One number; `sql` selects a bigint.
    pub async fn count(&mut self, sql: &'static str) -> i64 {
        match self {
            Self::Sqlite(c) => sqlx::query(sql).fetch_one(c).await.expect(sql).get(0),
            Self::Postgres(c) => sqlx::query(sql).fetch_one(c).await.expect(sql).get(0),
        }
    }

    /// Rows of text. `{id:COLUMN}` stands for an id as 32 hexadecimal digits.
    pub async fn rows<const N: usize>(&mut self, sql: &str) -> Vec<[String; N]> {
        let mut text = String::new();
        let mut rest = sql;
        while let Some((before, after)) = rest.split_once("{id:") {
            let (column, after) = after.split_once('}').expect("a closing brace");
            text.push_str(before);
            text.push_str(&match self {
                Self::Sqlite(_) => format!("lower(hex({column}))"),
                Self::Postgres(_) => format!("replace(CAST({column} AS text), '-', '')"),
            });
            rest = after;
        }
        text.push_str(rest);
        let sql = AssertSqlSafe(text);
        match self {
            Self::Sqlite(c) => {
                let rows = sqlx::query(sql).fetch_all(c).await.expect("rows");
                rows.iter().map(|row| std::array::from_fn(|column| row.get(column))).collect()
            }
            Self::Postgres(c) => {
                let rows = sqlx::query(sql).fetch_all(c).await.expect("rows");
                rows.iter().map(|row| std::array::from_fn(|column| row.get(column))).collect()
            }
        }
    }
}
