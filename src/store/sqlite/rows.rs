//! Multi-row statements: every step of a batch is one prepared statement, two where it is
//! large, because each costs a round trip to the connection's thread.

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

/// Rows of a statement. A batch takes the next larger one and leaves the rows that are too
/// many unbound, so that few statement texts, which stay prepared, serve every batch size.
const SIZES: [usize; 16] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
const LARGEST: usize = SIZES[SIZES.len() - 1];

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

/// Runs `head` `tail` for all rows. `head`, `row` and `tail` are constants, and the first column
/// of a row is never NULL.
pub(super) async fn write_rows<R>(
    connection: &mut SqliteConnection,
    head: &'static str,
    row: &'static str,
    tail: &'static str,
    rows: &[R],
    mut bind: impl FnMut(&mut Args, &R),
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(LARGEST) {
        let mut args = Args::default();
        rows.iter().for_each(|row| bind(&mut args, row));
        // Only constants; every value is bound.
        let sql = AssertSqlSafe(statement(head, row, tail, rows.len()));
        sqlx::query_with(sql, args.into_inner()).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A statement for `count` rows or more. What is not bound is NULL.
fn statement(head: &str, row: &str, tail: &str, count: usize) -> String {
    let size = SIZES.into_iter().find(|size| *size >= count).unwrap_or(LARGEST);
    let rows = vec![row; size].join(",");
    format!("{head} SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL {tail}")
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

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Row};

    use super::*;

    #[tokio::test]
    async fn every_batch_size_is_written_whole_and_nothing_else() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::query("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c INTEGER)")
            .execute(&mut connection)
            .await
            .unwrap();
        for count in (0..=40).chain([63, 64, 65, 193, 255, 256, 257, 600]) {
            let rows: Vec<i64> = (1..=count).collect();
            // Longer ones first: what they had bound must not show in shorter ones.
            for rows in [&rows[..], &rows[..rows.len() / 2]] {
                write_rows(
                    &mut connection,
                    "INSERT INTO t (a, b, c)",
                    "(?,?,7)",
                    "ON CONFLICT (a) DO UPDATE SET c = t.c + excluded.c",
                    rows,
                    |args, row| {
                        args.push(*row).push((row % 2 == 0).then(|| row.to_string()));
                    },
                )
                .await
                .unwrap();
            }
            let row = sqlx::query("SELECT count(*) AS rows, total(c) AS sum, count(b) AS even FROM t")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert_eq!(row.get::<i64, _>("rows"), count);
            assert_eq!(row.get::<f64, _>("sum"), (7 * (count + count / 2)) as f64);
            assert_eq!(row.get::<i64, _>("even"), count / 2);
            sqlx::query("DELETE FROM t").execute(&mut connection).await.unwrap();
        }
    }
}
