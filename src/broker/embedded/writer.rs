//! The one task that writes: it merges every append, acknowledgement and prune that is
//! waiting into each transaction, and gives the offsets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::database::{Database, PositionRow, RecordRow, Writer};
use super::group::Group;
use super::log::{Message, Partition};
use crate::broker::Encoding;
use crate::domain::Timestamp;
use crate::domain::event::Headers;

/// Windows waiting for the writer before publishers wait for room.
const QUEUE: usize = 64;
/// A transaction takes no more windows once it has this many records or bytes.
const MAX_RECORDS: usize = 2048;
const MAX_BYTES: usize = 8 << 20;
/// After a failure nothing is tried for this long unless somebody publishes.
const RETRY: Duration = Duration::from_secs(1);

/// What came of a command, or why nothing did.
pub(super) type Answer<T> = oneshot::Sender<Result<T, String>>;

/// A record on its way in.
#[derive(Debug)]
pub(super) struct NewRecord {
    pub slot: usize,
    pub key: Arc<str>,
    pub headers: Arc<Headers>,
    /// The headers as JSON.
    pub headers_text: Arc<str>,
    pub encoding: Encoding,
    pub body: Bytes,
}

#[derive(Debug)]
pub(super) enum Command {
    /// Answers with the offset of each, or why none was written.
    Append { records: Vec<NewRecord>, done: Answer<Vec<i64>> },
    /// Deletes the records of a partition's row below an offset.
    Prune { partition: i64, below: i64, done: Answer<()> },
    /// Writes every changed standing now.
    Flush { done: Answer<()> },
}

/// Cursors whose standing is to be written. Shared by all who acknowledge.
#[derive(Debug, Default)]
pub(super) struct Changed {
    cursors: Mutex<Vec<(Arc<Group>, usize)>>,
    wake: Notify,
}

impl Changed {
    pub fn mark(&self, group: &Arc<Group>, cursor: usize) {
        if group.mark_dirty(cursor) {
            self.cursors.lock().push((group.clone(), cursor));
            self.wake.notify_one();
        }
    }

    fn take(&self) -> Vec<(Arc<Group>, usize)> {
        std::mem::take(&mut *self.cursors.lock())
    }
}

pub(super) fn channel() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}

/// Owns the writing connection and the newest messages' memory.
pub(super) struct WriterTask {
    pub writer: Writer,
    pub database: Database,
    pub partitions: Arc<[Arc<Partition>]>,
    pub changed: Arc<Changed>,
    /// Bytes of messages that stay in memory.
    pub memory: usize,
    pub ack_interval: Duration,
    /// What is in memory, oldest first: partition slot and size.
    pub held: VecDeque<(usize, usize)>,
    pub held_bytes: usize,
    /// A write failed: memory may not agree with the file.
    pub doubtful: bool,
}

/// What one transaction takes.
#[derive(Default)]
struct Batch {
    appends: Vec<(Vec<NewRecord>, Answer<Vec<i64>>)>,
    prunes: Vec<(i64, i64)>,
    /// Who waits for a prune or a flush.
    waiting: Vec<Answer<()>>,
    flush: bool,
    records: usize,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, command: Command) {
        match command {
            Command::Append { records, done } => {
                self.records += records.len();
                self.bytes += records.iter().map(size).sum::<usize>();
                self.appends.push((records, done));
            }
            Command::Prune { partition, below, done } => {
                self.prunes.push((partition, below));
                self.waiting.push(done);
            }
            Command::Flush { done } => {
                self.flush = true;
                self.waiting.push(done);
            }
        }
    }

    fn full(&self) -> bool {
        self.records >= MAX_RECORDS || self.bytes >= MAX_BYTES || !self.prunes.is_empty()
    }
}

fn size(record: &NewRecord) -> usize {
    record.body.len() + record.headers_text.len() + record.key.len()
}

impl WriterTask {
    /// Runs until cancelled and drained; then writes what was acknowledged and closes the
    /// file.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>, cancel: CancellationToken) {
        let changed = self.changed.clone();
        let mut flush_at: Option<Instant> = None;
        loop {
            let mut batch = Batch::default();
            let flush = async {
                match flush_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled(), if !commands.is_closed() => {
                    commands.close();
                    continue;
                }
                command = commands.recv() => match command {
                    Some(command) => batch.add(command),
                    None => break,
                },
                () = flush => {}
                () = changed.wake.notified(), if flush_at.is_none() => {
                    flush_at = Some(Instant::now() + self.ack_interval);
                    continue;
                }
            }
            while !batch.full()
                && let Ok(command) = commands.try_recv()
            {
                batch.add(command);
            }
            let due = batch.flush || flush_at.is_some_and(|at| at <= Instant::now());
            let written = self.write(batch, due).await;
            if due {
                // Marks that came meanwhile have left a permit behind.
                flush_at = (!written).then(|| Instant::now() + RETRY);
            }
        }
        self.write(Batch::default(), true).await;
        // Last, because only a connection that writes can empty the write-ahead log.
        self.database.close().await;
        if let Err(why) = self.writer.close().await {
            tracing::warn!(error = %why, "the embedded brokers' file was not closed cleanly");
        }
    }

    /// One transaction; true if it was committed.
    async fn write(&mut self, batch: Batch, positions: bool) -> bool {
        let result = self.try_write(&batch, positions).await;
        if let Err(why) = &result {
            tracing::error!(error = %why, records = batch.records, "the embedded brokers cannot write");
        }
        let committed = result.is_ok();
        match result {
            Ok(offsets) => {
                let mut offsets = offsets.into_iter();
                for (records, done) in batch.appends {
                    // Nobody waits any more when the publisher timed out.
                    let _ = done.send(Ok(offsets.by_ref().take(records.len()).collect()));
                }
                for done in batch.waiting {
                    let _ = done.send(Ok(()));
                }
            }
            Err(why) => {
                for (_, done) in batch.appends {
                    let _ = done.send(Err(why.clone()));
                }
                for done in batch.waiting {
                    let _ = done.send(Err(why.clone()));
                }
            }
        }
        committed
    }

    /// The offset of each record, in the order given.
    async fn try_write(&mut self, batch: &Batch, positions: bool) -> Result<Vec<i64>, String> {
        if self.doubtful {
            self.recover().await.map_err(|why| why.to_string())?;
        }

        let time = Timestamp::now();
        let mut ends: Vec<Option<i64>> = vec![None; self.partitions.len()];
        let mut offsets = Vec::with_capacity(batch.records);
        let mut rows = Vec::with_capacity(batch.records);
        let mut messages: Vec<(usize, Arc<Message>, usize)> = Vec::with_capacity(batch.records);
        for record in batch.appends.iter().flat_map(|(records, _)| records) {
            let partition = &self.partitions[record.slot];
            let next = ends[record.slot].get_or_insert_with(|| partition.end());
            let offset = *next;
            *next += 1;
            offsets.push(offset);
            rows.push(RecordRow {
                partition: partition.id,
                offset,
                key: record.key.clone(),
                headers: record.headers_text.clone(),
                encoding: record.encoding,
                body: record.body.clone(),
                time,
            });
            let message = Message {
                offset,
                key: record.key.clone(),
                headers: Ok(record.headers.clone()),
                encoding: record.encoding,
                body: record.body.clone(),
                time,
            };
            messages.push((record.slot, Arc::new(message), size(record)));
        }
        // Rows of a partition are neighbours on disk.
        rows.sort_by_key(|row| (row.partition, row.offset));
        messages.sort_by_key(|(slot, message, _)| (*slot, message.offset));

        let changed = if positions { self.changed.take() } else { Vec::new() };
        let standings: Vec<PositionRow> = changed
            .iter()
            .map(|(group, cursor)| {
                let (partition, standing) = group.standing(*cursor);
                PositionRow { broker: group.broker, consumer: group.name.clone(), partition, standing }
            })
            .collect();
        if rows.is_empty() && standings.is_empty() && batch.prunes.is_empty() {
            return Ok(offsets);
        }
        if let Err(why) = self.writer.write(&rows, &standings, &batch.prunes).await {
            for (group, cursor) in changed {
                self.changed.mark(&group, cursor);
            }
            self.doubtful = true;
            return Err(why.to_string());
        }
        self.show(messages);
        Ok(offsets)
    }

    /// Makes committed messages readable (sorted by partition and offset), within memory.
    fn show(&mut self, messages: Vec<(usize, Arc<Message>, usize)>) {
        for same in messages.chunk_by(|a, b| a.0 == b.0) {
            let partition = &self.partitions[same[0].0];
            partition.extend(same.iter().map(|(_, message, _)| message.clone()));
            for (slot, _, bytes) in same {
                // What a message costs beside its bytes: its parsed headers, mostly.
                const OVERHEAD: usize = 512;
                self.held.push_back((*slot, bytes + OVERHEAD));
                self.held_bytes += bytes + OVERHEAD;
            }
        }
        while self.held_bytes > self.memory
            && let Some((slot, bytes)) = self.held.pop_front()
        {
            self.held_bytes -= bytes;
            self.partitions[slot].evict();
        }
        for same in messages.chunk_by(|a, b| a.0 == b.0) {
            self.partitions[same[0].0].wake_readers();
        }
    }

    /// After a failed write: believes what the file says, since a COMMIT that failed to
    /// answer may have happened.
    async fn recover(&mut self) -> Result<(), sqlx::Error> {
        let mut ends = Vec::with_capacity(self.partitions.len());
        for partition in self.partitions.iter() {
            ends.push(self.writer.extent(partition.id).await?.1);
        }
        self.held.clear();
        self.held_bytes = 0;
        for (partition, end) in self.partitions.iter().zip(ends) {
            partition.reset(end);
            partition.wake_readers();
        }
        self.doubtful = false;
        Ok(())
    }
}
