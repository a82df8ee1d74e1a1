//! Checkpoints beside the commits. Left to SQLite, every few thousand pages somebody's COMMIT
//! copies them into the file and syncs it, while everybody waits.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use super::Writer;

/// Pages of the write-ahead log that are worth a checkpoint: the more, the more often a page
/// that changes all the time is copied only once.
pub(super) const WORTH: i64 = 4_000;
/// Pages from which the log is begun anew, for which commits wait a moment.
pub(super) const LONG: i64 = 16_000;
/// The log is looked at no more often.
const PAUSE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);

pub(super) struct Checkpointer {
    /// Its own: a checkpoint and a COMMIT go on at the same time.
    pub connection: SqliteConnection,
    pub writer: Arc<Mutex<Option<Writer>>>,
    /// Told of every commit.
    pub committed: Arc<Notify>,
    /// [`WORTH`] and [`LONG`].
    pub worth: i64,
    pub long: i64,
}

/// The write-ahead log at a moment.
struct Log {
    pages: i64,
    /// Pages that are in the database file, too.
    copied: i64,
}

impl Checkpointer {
    /// Runs until cancelled. Should it fail for long, the writer's own checkpoints bound the log.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.committed.notified() => {}
            }
            let pause = match self.step().await {
                Ok(()) => PAUSE,
                Err(error) => {
                    tracing::warn!(%error, "the store's log cannot be checkpointed; trying again");
                    RETRY
                }
            };
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the store's checkpoint connection did not close cleanly");
        }
    }

    async fn step(&mut self) -> Result<(), sqlx::Error> {
        let log = self.checkpoint("PRAGMA wal_checkpoint(NOOP)").await?;
        if log.pages < self.long && log.pages - log.copied < self.worth {
            return Ok(());
        }
        let log = self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)").await?;
        if log.pages >= self.long {
            // What came meanwhile is little. Once it is copied, too, the next COMMIT begins the
            // log anew, unless somebody reads it just then.
            let _nobody_commits = self.writer.clone().lock_owned().await;
            self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)").await?;
        }
        Ok(())
    }

    async fn checkpoint(&mut self, pragma: &'static str) -> Result<Log, sqlx::Error> {
        let row = sqlx::query(pragma).fetch_one(&mut self.connection).await?;
        Ok(Log { pages: row.try_get(1)?, copied: row.try_get(2)? })
    }
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

    use super::*;

    async fn write(connection: &mut SqliteConnection, pages: usize) {
        // A row fills a page and some.
        sqlx::query("INSERT INTO t SELECT randomblob(4000) FROM json_each(?)")
            .bind(serde_json::json!(vec![0; pages]).to_string())
            .execute(connection)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_long_log_is_copied_beside_the_writer_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(dir.path().join("t.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", "0");
        let mut writer = options.connect().await.unwrap();
        sqlx::query("CREATE TABLE t (a BLOB)").execute(&mut writer).await.unwrap();
        let mut checkpointer = Checkpointer {
            connection: options.connect().await.unwrap(),
            writer: Arc::new(Mutex::new(None)),
            committed: Arc::new(Notify::new()),
            worth: 50,
            long: 200,
        };
        let look = "PRAGMA wal_checkpoint(NOOP)";

        write(&mut writer, 10).await;
        checkpointer.step().await.unwrap();
        assert_eq!(checkpointer.checkpoint(look).await.unwrap().copied, 0, "not worth it yet");

        // A transaction that is open keeps neither a checkpoint waiting nor is it copied.
        write(&mut writer, 100).await;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
        write(&mut transaction, 1).await;
        checkpointer.step().await.unwrap();
        let log = checkpointer.checkpoint(look).await.unwrap();
        assert!(log.copied >= 110 && log.copied == log.pages, "{} of {}", log.copied, log.pages);
        transaction.commit().await.unwrap();

        write(&mut writer, 200).await;
        checkpointer.step().await.unwrap();
        write(&mut writer, 1).await;
        let log = checkpointer.checkpoint(look).await.unwrap();
        assert!(log.pages < 10, "the log goes on at {} pages", log.pages);
    }
}
