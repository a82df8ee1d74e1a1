//! Per-key order within a lane. Pure.
//!
//! An event goes out when its predecessor's leg (same aggregate, same destination) is
//! done or skipped. Types with order none have no predecessor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::Held;
use crate::broker::Outgoing;
use crate::domain::catalogue::Order;

/// A window has all its messages encoded at once, and clients hold them until they are confirmed.
pub(super) const WINDOW_BYTES: usize = 16 << 20;

/// (destination, aggregate type, aggregate id)
pub(super) type Key = (Arc<str>, Arc<str>, Arc<str>);

/// An event waiting to go out, with the times it was tried.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub outgoing: Outgoing,
    pub attempts: u32,
    /// The one before it may be another owner's: the store says when that is out.
    pub asks: bool,
    /// It was sent, and the broker takes long to confirm it.
    pub underway: bool,
}

impl Waiting {
    pub fn new(outgoing: Outgoing, attempts: u32) -> Self {
        let event = &outgoing.event;
        let asks = event.origin.follows_other && event.event_type.order == Order::Aggregate;
        Self { outgoing, attempts, asks, underway: false }
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
    /// Keys behind a dead leg: nothing goes out until it is made pending again.
    dead: HashSet<Key>,
    /// Keys whose later events are left to the store, and whether one of them is free.
    aside: HashSet<Key>,
    owes: bool,
    /// Those that failed, are under way or wait for another owner, and when to try again. Not sorted.
    later: Vec<(tokio::time::Instant, Waiting)>,
    held: Held,
}

impl Keys {
    /// What is held in memory.
    pub fn held(&self) -> Held {
        self.held
    }

    fn came(&mut self, waiting: &Waiting) {
        self.held.events += 1;
        self.held.bytes += waiting.outgoing.event.bytes();
    }

    fn went(&mut self, waiting: &Waiting) {
        self.held.events -= 1;
        self.held.bytes -= waiting.outgoing.event.bytes();
    }

    /// Events that can go out now.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes an event in, in commit order.
    pub fn add(&mut self, waiting: Waiting) {
        if let Some(key) = waiting.key() {
            if self.dead.contains(&key) || self.aside.contains(&key) {
                // Stays pending in the store, and is read from there: when the dead leg is made pending again,
                // or when the key is free.
                return;
            }
            self.came(&waiting);
            if let Some(queue) = self.busy.get_mut(&key) {
                queue.push_back(waiting);
                return;
            }
            self.busy.insert(key, VecDeque::new());
        } else {
            self.came(&waiting);
        }
        self.ready.push_back(waiting);
    }

    /// A dead leg was found: its key stays blocked.
    pub fn block(&mut self, key: Key) {
        for waiting in self.busy.remove(&key).unwrap_or_default() {
            self.went(&waiting);
        }
        self.dead.insert(key);
    }

    /// The next window: never two events of one key, and no more than one beyond [`WINDOW_BYTES`].
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
        let mut window = Vec::with_capacity(size.min(self.ready.len()));
        let mut bytes = 0;
        while window.len() < size
            && bytes < WINDOW_BYTES
            && let Some(waiting) = self.ready.pop_front()
        {
            bytes += waiting.outgoing.event.bytes();
            self.went(&waiting);
            window.push(waiting);
        }
        window
    }

    /// Its leg is settled: the key's next event is ready.
    pub fn settled(&mut self, waiting: &Waiting) {
        let Some(key) = waiting.key() else { return };
        self.owes |= self.aside.contains(&key);
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

    /// It failed, takes long, or it is not its turn: tried again at `at`; its key waits.
    pub fn try_later(&mut self, waiting: Waiting, at: tokio::time::Instant) {
        self.came(&waiting);
        self.later.push((at, waiting));
    }

    /// The broker is down: the window goes back to the front, in order.
    pub fn put_back(&mut self, window: Vec<Waiting>) {
        for waiting in window.into_iter().rev() {
            self.came(&waiting);
            self.ready.push_front(waiting);
        }
    }

    /// Takes those that were sent and are not confirmed.
    pub fn underway(&mut self) -> Vec<Waiting> {
        let (late, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.later).into_iter().partition(|(_, waiting)| waiting.underway);
        let (again, ready): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.ready).into_iter().partition(|waiting| waiting.underway);
        (self.later, self.ready) = (later, ready);
        let underway: Vec<Waiting> = late.into_iter().map(|(_, waiting)| waiting).chain(again).collect();
        underway.iter().for_each(|waiting| self.went(waiting));
        underway
    }

    /// Leaves to the store what is behind those that are tried later: it only takes the room of keys
    /// that could go on. It has to be read again once a key is free: [`Keys::owes`].
    pub fn make_room(&mut self) {
        for index in 0..self.later.len() {
            let Some(key) = self.later[index].1.key() else { continue };
            let Some(behind) = self.busy.get_mut(&key) else { continue };
            for waiting in std::mem::take(behind) {
                self.went(&waiting);
            }
            self.aside.insert(key);
        }
    }

    /// Those that are tried later.
    pub fn later(&self) -> usize {
        self.later.len()
    }

    /// Is there a key that is free by now and whose next events only the store has?
    pub fn owes(&self) -> bool {
        self.owes
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
