//! Where a consumer stands: what was handed out, what is owed again, what is done.
//!
//! A group has a cursor per partition. Everything below `next` is decided: passed over,
//! handed out, owed again, or done; so the position to keep is the lowest offset still
//! handed out or owed, and memory is bounded by the members' prefetch.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::log::{Message, Partition};
use super::pattern::Filter;
use crate::broker::Position;
use crate::domain::Broker;

/// How the members of a group share its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// A partition's messages are with one member at a time: order per key holds.
    Ordered,
    /// Each message is with one member; what is not acknowledged in time goes to another.
    WorkQueue,
    /// Of one reader, in memory only. `lossy`: it reads memory and skips what has left it.
    Private { lossy: bool },
}

/// Identifies a member of a group.
pub(super) type Member = u64;

#[derive(Debug)]
pub(super) struct Group {
    pub broker: Broker,
    pub name: Arc<str>,
    pub mode: Mode,
    /// Woken by appends to what it reads and by what members give back.
    pub wake: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cursors: Vec<Cursor>,
    /// The cursor that is read first next time.
    turn: usize,
    next_member: Member,
    /// Messages that each member holds.
    members: HashMap<Member, usize>,
    /// Messages that a lossy reader was too slow for.
    skipped: u64,
}

#[derive(Debug)]
struct Cursor {
    partition: Arc<Partition>,
    filter: Filter,
    next: i64,
    /// Read from the database, from `next` on.
    page: VecDeque<Arc<Message>>,
    /// Owed again.
    returned: BTreeMap<i64, Arc<Message>>,
    handed: BTreeMap<i64, Handed>,
    /// Changed since it was last written.
    dirty: bool,
}

#[derive(Debug)]
struct Handed {
    member: Member,
    deadline: Option<Instant>,
    message: Arc<Message>,
}

/// What a member takes messages on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub now: Instant,
    /// The most it may have in its hands.
    pub prefetch: usize,
    /// Work queues: when a message is owed again.
    pub ack_wait: Duration,
}

/// A message given to a member.
#[derive(Debug)]
pub(super) struct Taken {
    pub cursor: usize,
    pub position: Position,
    pub message: Arc<Message>,
    pub redelivered: bool,
}

/// A stretch of a partition that has to be read from the database.
#[derive(Debug)]
pub(super) struct Missing {
    pub cursor: usize,
    pub partition: Arc<Partition>,
    /// Offsets `from..below`.
    pub from: i64,
    pub below: i64,
}

/// Where a cursor stands, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub next: i64,
    /// Offsets below `next` still owed; only kept for work queues.
    pub unacked: Vec<i64>,
}

/// A cursor to start a group with.
#[derive(Debug)]
pub(super) struct Start {
    pub partition: Arc<Partition>,
    pub filter: Filter,
    pub next: i64,
    /// Below `next`, owed again.
    pub owed: Vec<Arc<Message>>,
}

impl Group {
    pub fn new(broker: Broker, name: Arc<str>, mode: Mode, starts: Vec<Start>) -> Self {
        let wake = Arc::new(Notify::new());
        let cursors = starts
            .into_iter()
            .map(|start| {
                start.partition.add_reader(&wake);
                Cursor {
                    partition: start.partition,
                    filter: start.filter,
                    next: start.next,
                    page: VecDeque::new(),
                    returned: start.owed.into_iter().map(|message| (message.offset, message)).collect(),
                    handed: BTreeMap::new(),
                    dirty: false,
                }
            })
            .collect();
        let state = State { cursors, turn: 0, next_member: 0, members: HashMap::new(), skipped: 0 };
        Self { broker, name, mode, wake, state: Mutex::new(state) }
    }

    /// What it reads, to compare with what somebody asks for.
    pub fn reads(&self, partition: &Partition, filter: &Filter) -> bool {
        self.state.lock().cursors.iter().any(|c| c.partition.slot == partition.slot && c.filter == *filter)
    }

    pub fn cursors(&self) -> usize {
        self.state.lock().cursors.len()
    }

    /// Stops being woken by the partitions. Only private groups end.
    pub fn close(&self) {
        for cursor in &self.state.lock().cursors {
            cursor.partition.remove_reader(&self.wake);
        }
    }

    pub fn join(&self) -> Member {
        let mut state = self.state.lock();
        state.next_member += 1;
        let member = state.next_member;
        state.members.insert(member, 0);
        member
    }

    /// What the member still held is owed again.
    pub fn leave(&self, member: Member) {
        let mut state = self.state.lock();
        state.members.remove(&member);
        for cursor in &mut state.cursors {
            cursor.give_back(|handed| handed.member == member);
        }
        drop(state);
        self.wake.notify_waiters();
    }

    /// A stretch that must be read before `member` can go on there; the one whose turn it
    /// is next, if there are several.
    pub fn missing(&self, member: Member, prefetch: usize) -> Option<Missing> {
        let state = self.state.lock();
        if self.mode == (Mode::Private { lossy: true }) || state.held(member) >= prefetch {
            return None;
        }
        let count = state.cursors.len();
        (0..count).map(|step| (state.turn + step) % count).find_map(|at| {
            let cursor = &state.cursors[at];
            let below = cursor.partition.tail_start();
            let wanted = cursor.page.is_empty() && cursor.next < below && self.may_read(cursor, member);
            wanted.then(|| Missing { cursor: at, partition: cursor.partition.clone(), from: cursor.next, below })
        })
    }

    /// Hands in what was read for `missing`; an empty page says that nothing is left there.
    pub fn supply(&self, missing: &Missing, page: Vec<Arc<Message>>) {
        let mut state = self.state.lock();
        let cursor = &mut state.cursors[missing.cursor];
        if cursor.next != missing.from || !cursor.page.is_empty() {
            return; // another member was faster
        }
        // Retention may have taken the oldest.
        cursor.next = page.first().map_or(missing.below, |message| message.offset);
        cursor.page = page.into();
    }

    /// Up to `max` messages for this member, never more than `prefetch` in its hands; and
    /// the cursors that only passed over messages, whose standing changed without an ack.
    pub fn take(&self, member: Member, max: usize, terms: Terms) -> (Vec<Taken>, Vec<usize>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if self.mode == Mode::WorkQueue {
            state.expire(terms.now);
        }
        let deadline = (self.mode == Mode::WorkQueue).then(|| terms.now + terms.ack_wait);
        let room = max.min(terms.prefetch.saturating_sub(state.held(member)));
        let mut taken = Vec::new();
        let mut passed = Vec::new();
        let count = state.cursors.len();
        for step in 0..count {
            if taken.len() == room {
                break;
            }
            let at = (state.turn + step) % count;
            let cursor = &mut state.cursors[at];
            if !self.may_read(cursor, member) {
                continue;
            }
            if self.mode == (Mode::Private { lossy: true }) {
                state.skipped += cursor.skip_to_tail();
            }
            let before = cursor.next;
            cursor.take(room, |cursor, message, redelivered| {
                cursor.handed.insert(message.offset, Handed { member, deadline, message: message.clone() });
                let position = cursor.partition.position(message.offset);
                taken.push(Taken { cursor: at, position, message, redelivered });
                taken.len()
            });
            if cursor.next > before && cursor.handed.is_empty() {
                passed.push(at);
            }
        }
        if count > 0 {
            state.turn = (state.turn + 1) % count;
        }
        if !taken.is_empty() {
            *state.members.entry(member).or_default() += taken.len();
            // Whoever waits has a new deadline to wait for.
            if self.mode == Mode::WorkQueue && state.members.len() > 1 {
                self.wake.notify_waiters();
            }
        }
        (taken, passed)
    }

    /// Acknowledges offsets of cursors; returns the cursors that this changed.
    pub fn ack(&self, member: Member, places: impl IntoIterator<Item = (usize, i64)>) -> BTreeSet<usize> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut changed = BTreeSet::new();
        let mut freed = false;
        for (at, offset) in places {
            if state.ack(self.mode, member, at, offset) {
                changed.insert(at);
                freed |= state.cursors[at].handed.is_empty();
            }
        }
        // Another member may be waiting for a partition.
        if freed && state.members.len() > 1 {
            self.wake.notify_waiters();
        }
        changed
    }

    /// When the next message will be owed again because nobody acknowledged it.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.mode != Mode::WorkQueue {
            return None;
        }
        self.state.lock().cursors.iter().flat_map(|c| c.handed.values()).filter_map(|handed| handed.deadline).min()
    }

    /// Messages not acknowledged: exact for what was looked at, and everything behind it
    /// whether it matches or not.
    pub fn lag(&self) -> u64 {
        let state = self.state.lock();
        let lag =
            |c: &Cursor| c.handed.len() as u64 + c.returned.len() as u64 + (c.partition.end() - c.next).max(0) as u64;
        state.cursors.iter().map(lag).sum()
    }

    /// Messages a lossy reader did not get because it was too slow.
    pub fn skipped(&self) -> u64 {
        self.state.lock().skipped
    }

    /// The lowest offset of this partition that is still needed.
    pub fn needs(&self, slot: usize) -> Option<i64> {
        let state = self.state.lock();
        state.cursors.iter().filter(|c| c.partition.slot == slot).map(Cursor::lowest).min()
    }

    /// Marks the cursor as changed; true if it was not.
    pub fn mark_dirty(&self, at: usize) -> bool {
        !std::mem::replace(&mut self.state.lock().cursors[at].dirty, true)
    }

    /// What to keep of this cursor, which counts as written from now on.
    pub fn standing(&self, at: usize) -> (i64, Standing) {
        let mut state = self.state.lock();
        let cursor = &mut state.cursors[at];
        cursor.dirty = false;
        let standing = if self.mode == Mode::WorkQueue {
            let mut unacked: Vec<i64> = cursor.handed.keys().chain(cursor.returned.keys()).copied().collect();
            unacked.sort_unstable();
            Standing { next: cursor.next, unacked }
        } else {
            Standing { next: cursor.lowest(), unacked: Vec::new() }
        };
        (cursor.partition.id, standing)
    }

    fn may_read(&self, cursor: &Cursor, member: Member) -> bool {
        self.mode != Mode::Ordered || cursor.handed.values().next().is_none_or(|handed| handed.member == member)
    }
}

impl State {
    fn held(&self, member: Member) -> usize {
        self.members.get(&member).copied().unwrap_or(0)
    }

    /// True if the message was owed until now.
    fn ack(&mut self, mode: Mode, member: Member, at: usize, offset: i64) -> bool {
        let Some(cursor) = self.cursors.get_mut(at) else { return false };
        // In a work queue an answer that comes late counts: the work is done.
        let late = mode == Mode::WorkQueue;
        match cursor.handed.get(&offset) {
            Some(handed) if late || handed.member == member => {
                if let Some(held) = self.members.get_mut(&handed.member) {
                    *held = held.saturating_sub(1);
                }
                cursor.handed.remove(&offset).is_some()
            }
            Some(_) => false,
            None => late && cursor.returned.remove(&offset).is_some(),
        }
    }

    fn expire(&mut self, now: Instant) {
        for cursor in &mut self.cursors {
            for member in cursor.give_back(|handed| handed.deadline.is_some_and(|deadline| deadline <= now)) {
                if let Some(held) = self.members.get_mut(&member) {
                    *held = held.saturating_sub(1);
                }
            }
        }
    }
}

impl Cursor {
    fn lowest(&self) -> i64 {
        let handed = self.handed.keys().next().copied();
        let returned = self.returned.keys().next().copied();
        [handed, returned].into_iter().flatten().fold(self.next, i64::min)
    }

    /// Takes back what `which` says; returns whom each was taken from.
    fn give_back(&mut self, which: impl Fn(&Handed) -> bool) -> Vec<Member> {
        let offsets: Vec<i64> = self.handed.iter().filter(|(_, h)| which(h)).map(|(offset, _)| *offset).collect();
        let mut members = Vec::with_capacity(offsets.len());
        for offset in offsets {
            if let Some(handed) = self.handed.remove(&offset) {
                members.push(handed.member);
                self.returned.insert(offset, handed.message);
            }
        }
        members
    }

    /// Moves on to what memory still has; returns how many were skipped.
    fn skip_to_tail(&mut self) -> u64 {
        if !self.page.is_empty() {
            return 0; // these are still in memory here
        }
        let skipped = (self.partition.tail_start() - self.next).max(0);
        self.next += skipped;
        skipped as u64
    }

    /// Gives messages to `give` (which returns how many the member got so far) until there
    /// are `room` or no more at hand: what is owed first, then the page, then the tail.
    fn take(&mut self, room: usize, mut give: impl FnMut(&mut Self, Arc<Message>, bool) -> usize) {
        let mut got = 0;
        while let Some((_, message)) = self.returned.pop_first() {
            got = give(self, message, true);
            if got >= room {
                return;
            }
        }
        loop {
            while let Some(message) = self.page.pop_front() {
                self.next = message.offset + 1;
                if self.filter.matches(&message.key) {
                    got = give(self, message, false);
                    if got >= room {
                        return;
                    }
                }
            }
            let wanted = (room - got).max(64);
            match self.partition.read_tail(self.next, wanted) {
                Some(messages) if !messages.is_empty() => self.page = messages.into(),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
