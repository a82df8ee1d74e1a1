//! Statements that only write, sent as one. Where processors are short every roundtrip waits
//! for its turn on both sides, and a commit of requests had as many as it has tables.

use std::fmt::Write;

use sqlx::encode::Encode;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::types::Type;
use sqlx::{Arguments, AssertSqlSafe, PgConnection, Postgres};

/// All parts see what was there before the first of them, and run in no order that may be
/// relied upon: no two may write the same row.
#[derive(Default)]
pub(super) struct Batch {
    parts: Vec<String>,
    arguments: PgArguments,
    failed: Option<BoxDynError>,
}

impl Batch {
    /// Adds an INSERT, UPDATE or DELETE with parameters `$1` and up, to be bound next.
    pub fn part(&mut self, sql: &'static str) -> &mut Self {
        self.parts.push(renumber(sql, self.arguments.len()));
        self
    }

    pub fn bind<'v>(&mut self, value: impl Encode<'v, Postgres> + Type<Postgres>) -> &mut Self {
        if let Err(error) = self.arguments.add(value) {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// Runs what there is, if anything.
    ///
    /// # Errors
    /// The first part that fails fails all.
    pub async fn execute(self, c: &mut PgConnection) -> Result<(), sqlx::Error> {
        if let Some(error) = self.failed {
            return Err(sqlx::Error::Encode(error));
        }
        let Some(sql) = join(&self.parts) else { return Ok(()) };
        // Of constants only; every mix of them is prepared once a connection.
        sqlx::query_with(AssertSqlSafe(sql), self.arguments).execute(c).await?;
        Ok(())
    }
}

/// The last part is the statement, the others are its common table expressions.
fn join(parts: &[String]) -> Option<String> {
    let (last, others) = parts.split_last()?;
    let mut sql = String::with_capacity(parts.iter().map(|part| part.len() + 16).sum());
    for (n, part) in others.iter().enumerate() {
        let _ = write!(sql, "{} part{n} AS ({part})", if n == 0 { "WITH" } else { "," });
    }
    if !others.is_empty() {
        sql.push(' ');
    }
    sql.push_str(last);
    Some(sql)
}

/// `$n` becomes `$(n + before)`.
fn renumber(sql: &str, before: usize) -> String {
    let mut pieces = sql.split('$');
    let mut renumbered = String::with_capacity(sql.len() + 32);
    renumbered.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        match piece[..digits].parse::<usize>() {
            Ok(n) => _ = write!(renumbered, "${}", n + before),
            Err(_) => renumbered.push('$'),
        }
        renumbered.push_str(&piece[digits..]);
    }
    renumbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_statement_with_parameters_of_their_own() {
        let mut batch = Batch::default();
        batch.part("INSERT INTO a SELECT $2, $1, $10").bind(1_i64).bind(2_i64);
        batch.part("UPDATE b SET x = $1 WHERE y = $2").bind(3_i64).bind(4_i64);
        batch.part("DELETE FROM c WHERE z = $1").bind("five");
        assert_eq!(
            join(&batch.parts).expect("parts"),
            "WITH part0 AS (INSERT INTO a SELECT $2, $1, $10), part1 AS (UPDATE b SET x = $3 WHERE y = $4) \
             DELETE FROM c WHERE z = $5"
        );
        assert_eq!(batch.arguments.len(), 5);
    }

    #[test]
    fn one_part_stays_as_it_is_and_none_is_nothing() {
        let mut batch = Batch::default();
        assert_eq!(join(&batch.parts), None);
        batch.part("DELETE FROM c WHERE z = $1").bind("five");
        assert_eq!(join(&batch.parts).as_deref(), Some("DELETE FROM c WHERE z = $1"));
    }
}
