//! Per-key order within a lane. Pure.
//!
//! An event goes out when its predecessor's leg (same aggregate, same destination) is
//! done or skipped. Types with order none have no predecessor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::broker::Outgoing;
use crate::domain::catalogue::Order;

/// (destination, aggregate type, aggregate id)
pub(super) type Key = (Arc<str>, Arc<str>, Arc<str>);

/// An event waiting to go out, with the times it was tried.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub outgoing: Outgoing,
    pub attempts: u32,
    /// The one before it may be another owner's: the store says when that is out.
    pub asks: bool,
}

impl Waiting {
    pub fn new(outgoing: Outgoing, attempts: u32) -> Self {
        let event = &outgoing.event;
        let asks = event.origin.follows_other && event.event_type.order == Order::Aggregate;
        Self { outgoing, attempts, asks }
    }

    pub fn key(&self) -> Option<Key> {
        let event = &self.outgoing.event;
        (event.event_type.order == Order::Aggregate).then(|| {
            (self.outgoing.route.target.clone(), event.event_type.aggregate.clone(), event.aggregate_id.clone())
        })
    }
}

/// The events a lane holds.
#[derive(Debug, Default)]
pub(super) struct Keys {
    ready: VecDeque<Waiting>,
    /// Keys with an event ready, in flight or failing: later ones queue here.
    busy: HashMap<Key, VecDeque<Waiting>>,
    /// Keys behind a dead leg: nothing goes out until it is redriven.
    dead: HashSet<Key>,
    /// Those that failed or wait for another owner, and when to try again. Few: not sorted.
    later: Vec<(tokio::time::Instant, Waiting)>,
    held: usize,
}

impl Keys {
    /// Events held in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Events that can go out now.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes an event in, in commit order.
    pub fn add(&mut self, waiting: Waiting) {
        if let Some(key) = waiting.key() {
            if self.dead.contains(&key) {
                // Stays pending in the store; a redrive reads it from there.
                return;
            }
            if let Some(queue) = self.busy.get_mut(&key) {
                queue.push_back(waiting);
                self.held += 1;
                return;
            }
            self.busy.insert(key, VecDeque::new());
        }
        self.ready.push_back(waiting);
        self.held += 1;
    }

    /// A dead leg was found: its key stays blocked.
    pub fn block(&mut self, key: Key) {
        if let Some(queue) = self.busy.remove(&key) {
            self.held -= queue.len();
        }
        self.dead.insert(key);
    }

    /// The next window: never two events of one key.
    pub fn window(&mut self, size: usize, now: tokio::time::Instant) -> Vec<Waiting> {
        let mut index = 0;
        while index < self.later.len() {
            if self.later[index].0 <= now {
                let (_, waiting) = self.later.swap_remove(index);
                self.ready.push_front(waiting);
            } else {
                index += 1;
            }
        }
        let count = size.min(self.ready.len());
        let window: Vec<_> = self.ready.drain(..count).collect();
        self.held -= window.len();
        window
    }

    /// Its leg is settled: the key's next event is ready.
    pub fn settled(&mut self, waiting: &Waiting) {
        let Some(key) = waiting.key() else { return };
        if let Some(queue) = self.busy.get_mut(&key) {
            match queue.pop_front() {
                Some(next) => self.ready.push_back(next),
                None => {
                    self.busy.remove(&key);
                }
            }
        }
    }

    /// Its leg is dead: the key is blocked.
    pub fn died(&mut self, waiting: &Waiting) {
        if let Some(key) = waiting.key() {
            self.block(key);
        }
    }

    /// It failed, or it is not its turn: tried again at `at`; its key waits.
    pub fn try_later(&mut self, waiting: Waiting, at: tokio::time::Instant) {
        self.later.push((at, waiting));
        self.held += 1;
    }

    /// The broker is down: the window goes back to the front, in order.
    pub fn put_back(&mut self, window: Vec<Waiting>) {
        self.held += window.len();
        for waiting in window.into_iter().rev() {
            self.ready.push_front(waiting);
        }
    }

    /// Whether some wait for another owner.
    pub fn asks(&self) -> bool {
        self.later.iter().any(|(_, waiting)| waiting.asks)
    }

    /// When the next one that waits is due.
    pub fn next_retry(&self) -> Option<tokio::time::Instant> {
        self.later.iter().map(|(at, _)| *at).min()
    }
}
