//! Multi-row statements: a batch becomes a few prepared statements of 1, 2, 4 ... 64
//! rows, so that the statement cache serves every batch size.

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

const LARGEST: usize = 64;

/// The arguments of a statement being built.
#[derive(Default)]
pub(super) struct Args(SqliteArguments);

impl Args {
    /// Binds the next column.
    pub fn push<'q, T>(&mut self, value: T) -> &mut Self
    where
        T: sqlx::Encode<'q, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        // The encoders of integers, text, bytes and their options cannot fail.
        if let Err(error) = self.0.add(value) {
            tracing::error!(%error, "a bound value did not encode");
        }
        self
    }

    pub fn into_inner(self) -> SqliteArguments {
        self.0
    }
}

/// Runs `head VALUES (?, ...), ... tail` for all rows. `head`, `row` and `tail` are constants.
pub(super) async fn write_rows<R>(
    connection: &mut SqliteConnection,
    head: &'static str,
    row: &'static str,
    tail: &'static str,
    rows: &[R],
    mut bind: impl FnMut(&mut Args, &R),
) -> Result<(), sqlx::Error> {
    let mut rest = rows;
    while !rest.is_empty() {
        let count = if rest.len() >= LARGEST { LARGEST } else { 1 << rest.len().ilog2() };
        let (now, later) = rest.split_at(count);
        let mut sql = String::with_capacity(head.len() + tail.len() + 10 + count * (row.len() + 1));
        sql.push_str(head);
        sql.push_str(" VALUES ");
        for index in 0..count {
            if index > 0 {
                sql.push(',');
            }
            sql.push_str(row);
        }
        sql.push(' ');
        sql.push_str(tail);
        let mut args = Args::default();
        now.iter().for_each(|row| bind(&mut args, row));
        // Only constants above; every value is bound.
        sqlx::query_with(AssertSqlSafe(sql), args.into_inner()).execute(&mut *connection).await?;
        rest = later;
    }
    Ok(())
}

/// A JSON array for `json_each(?)`: how a list reaches a static statement.
pub(super) fn json_list<T: serde::Serialize>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<T> = items.into_iter().collect();
    serde_json::to_string(&items).unwrap_or_else(|_| "[]".into())
}

/// Hex ids for `unhex(value)`.
pub(super) fn hex_list<'a>(ids: impl IntoIterator<Item = &'a crate::domain::Id>) -> String {
    json_list(ids.into_iter().map(|id| hex::encode(id.as_bytes())))
}
