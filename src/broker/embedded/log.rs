//! A log's partitions in memory: the newest messages, shared by everyone who reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::topology::Retention;
use crate::broker::{Encoding, Position};
use crate::domain::event::Headers;
use crate::domain::{Broker, Timestamp};

/// One message as it stands in a log.
#[derive(Clone, Debug)]
pub struct Message {
    /// From 0 in its partition, gap-free.
    pub offset: i64,
    /// Routing key, record key or subject.
    pub key: Arc<str>,
    /// `Err` says what is wrong with them.
    pub headers: Result<Arc<Headers>, String>,
    pub encoding: Encoding,
    pub body: Bytes,
    /// When it was appended.
    pub time: Timestamp,
}

/// One partition of one log.
#[derive(Debug)]
pub(super) struct Partition {
    /// Its place in the engine's list.
    pub slot: usize,
    /// Its row in `partitions`.
    pub id: i64,
    pub broker: Broker,
    pub log: Arc<str>,
    pub number: i32,
    pub retention: Retention,
    tail: RwLock<Tail>,
    /// Woken after each commit that appended here.
    readers: RwLock<Vec<Arc<Notify>>>,
}

/// The messages `[first, first + messages.len())`; older ones are in the database only.
#[derive(Debug)]
struct Tail {
    first: i64,
    messages: VecDeque<Arc<Message>>,
}

impl Tail {
    fn end(&self) -> i64 {
        self.first + self.messages.len() as i64
    }
}

impl Partition {
    pub fn new(
        slot: usize,
        id: i64,
        (broker, log, number): (Broker, Arc<str>, i32),
        retention: Retention,
        end: i64,
    ) -> Self {
        let tail = RwLock::new(Tail { first: end, messages: VecDeque::new() });
        Self { slot, id, broker, log, number, retention, tail, readers: RwLock::default() }
    }

    pub fn position(&self, offset: i64) -> Position {
        Position { log: self.log.clone(), partition: self.number, offset: Some(offset) }
    }

    /// The next offset to be given.
    pub fn end(&self) -> i64 {
        self.tail.read().end()
    }

    /// The oldest offset that needs no SQL.
    pub fn tail_start(&self) -> i64 {
        self.tail.read().first
    }

    /// Up to `limit` messages from `offset` on, none at the end of the log; `None` when
    /// that offset is in the database only.
    pub fn read_tail(&self, offset: i64, limit: usize) -> Option<Vec<Arc<Message>>> {
        let tail = self.tail.read();
        let start = usize::try_from(offset - tail.first).ok()?.min(tail.messages.len());
        let stop = tail.messages.len().min(start.saturating_add(limit));
        Some(tail.messages.range(start..stop).cloned().collect())
    }

    /// Makes committed messages visible. They continue the tail; only the writer calls this.
    pub fn extend(&self, messages: impl Iterator<Item = Arc<Message>>) {
        self.tail.write().messages.extend(messages);
    }

    /// Drops the oldest message held in memory.
    pub fn evict(&self) {
        let mut tail = self.tail.write();
        if tail.messages.pop_front().is_some() {
            tail.first += 1;
        }
    }

    /// Empties the tail and lets it continue at `end`.
    pub fn reset(&self, end: i64) {
        *self.tail.write() = Tail { first: end, messages: VecDeque::new() };
    }

    pub fn add_reader(&self, reader: &Arc<Notify>) {
        self.readers.write().push(reader.clone());
    }

    pub fn remove_reader(&self, reader: &Arc<Notify>) {
        self.readers.write().retain(|other| !Arc::ptr_eq(other, reader));
    }

    pub fn wake_readers(&self) {
        for reader in self.readers.read().iter() {
            reader.notify_waiters();
        }
    }
}
