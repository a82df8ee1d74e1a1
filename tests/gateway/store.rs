//! Where a gateway under test keeps its rows: SQLite in its data directory, a schema of the
//! PostgreSQL server, or the database of its world. SQL that both understand is asked here.

use std::path::Path;

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row, SqliteConnection};
use url::Url;

use super::home::Home;
use super::process::open;
use super::server::Schema;

/// What brokers and consumers have not got yet.
pub const OWED: &str = "SELECT (SELECT count(*) FROM legs WHERE state = 0) \
     + (SELECT count(*) FROM events WHERE event_type IN ('job.completed', 'job.failed', 'job.cancelled') \
        AND NOT EXISTS (SELECT 1 FROM inbox WHERE consumer = 'orchestrator' AND inbox.event_id = events.event_id)) \
     + (SELECT count(*) FROM events WHERE event_type IN ('job.submitted', 'job.completed', 'job.failed', \
        'job.cancelled') AND NOT EXISTS (SELECT 1 FROM inbox WHERE consumer = 'audit' \
        AND inbox.event_id = events.event_id)) \
     + (SELECT count(*) FROM events WHERE event_type IN ('job.submitted', 'job.completed', 'job.failed', \
        'job.cancelled') AND NOT EXISTS (SELECT 1 FROM inbox WHERE consumer = 'metrics' \
        AND inbox.event_id = events.event_id))";

pub enum Place {
    Sqlite,
    Postgres(Box<Schema>),
    /// The URL of a database that the home's settings name anyway.
    World(String),
}

impl Place {
    /// Of the gateways of this home.
    pub fn of(home: &Home) -> Self {
        let url = home.settings().into_iter().find(|(key, _)| *key == "store.url");
        url.map_or(Self::Sqlite, |(_, url)| Self::World(url.to_owned()))
    }

    /// As [`Place::of`], but PostgreSQL in any case; `None` without a server.
    pub async fn postgres(home: &Home) -> Option<Self> {
        match Self::of(home) {
            Self::Sqlite => Some(Self::Postgres(Box::new(Schema::create().await?))),
            world => Some(world),
        }
    }

    /// What a gateway needs in its environment to use it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Sqlite | Self::World(_) => Vec::new(),
            Self::Postgres(schema) => vec![("GATEWAY__STORE__URL", url(schema))],
        }
    }

    /// Of a server, not of a file.
    pub fn url(&self) -> Url {
        let url = match self {
            Self::Sqlite => panic!("it is SQLite"),
            Self::Postgres(schema) => url(schema),
            Self::World(url) => url.clone(),
        };
        Url::parse(&url).expect("a URL")
    }

    pub async fn open(&self, data_dir: &Path) -> Database {
        match self {
            Self::Sqlite => Database::Sqlite(open(data_dir, "gateway.db").await),
            Self::Postgres(schema) => Database::Postgres(schema.session().await),
            Self::World(url) => Database::Postgres(PgConnection::connect(url).await.expect("PostgreSQL answers")),
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
    /// For what only PostgreSQL understands.
    pub fn postgres(self) -> PgConnection {
        match self {
            Self::Postgres(session) => session,
            Self::Sqlite(_) => panic!("it is SQLite"),
        }
    }

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
