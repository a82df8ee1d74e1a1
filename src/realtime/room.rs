//! One channel with the sockets that have joined it.
//!
//! A room delivers its channel's events in offset order, each once. What comes too early
//! is held; the hole before it is filled from the store by the live consumer. A socket
//! that joins gets a buffer first, then the store is asked for head and replay, then the
//! buffer's newer part follows: there is no moment at which an event can be missed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::frame::Frame;
use super::link::{Link, Pushed};
use super::update::Update;
use super::{Published, Shared};
use crate::domain::Channel;
use crate::telemetry::metrics::Resync;

/// Updates held beyond a hole; the store has the others.
const HELD: usize = 1_024;
/// Updates buffered for a socket that is joining; beyond, it reads the store again.
const BUFFERED: usize = 256;
/// Events fetched for one channel at a time.
const FILL: i64 = 500;
/// A room this far behind starts over from snapshots.
const TOO_FAR: i64 = 5_000;

pub(super) struct Room {
    pub channel: Channel,
    /// Whose things are shown; known after the first join of a job's room.
    owner: OnceLock<Arc<str>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Everything up to here has been delivered. Unknown until a join has read the head.
    delivered: Option<i64>,
    /// The highest offset that is known to exist.
    known: i64,
    held: BTreeMap<i64, Arc<Update>>,
    /// Since when something is missing between `delivered` and `known`.
    hole_since: Option<Instant>,
    members: Vec<Member>,
    /// The latest sample: telemetry has no offset and starts with a snapshot.
    sample: Option<Arc<Frame>>,
}

struct Member {
    link: Arc<Link>,
    /// The last offset this socket has got (joining: before it joined again).
    last: i64,
    /// The last offset its user has seen, as it says.
    seen: i64,
    joining: Option<Joining>,
}

/// Updates that arrive while the store is read.
#[derive(Default)]
struct Joining {
    buffer: VecDeque<(i64, Arc<Frame>)>,
    overflowed: bool,
}

/// How far one socket is in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub delivered: i64,
    pub seen: i64,
}

/// What came of an event that was offered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offered {
    /// It was delivered before.
    pub repeated: bool,
    /// A reader has no room for more right now.
    pub crowded: bool,
    /// Something is missing or held since now.
    pub unsettled: bool,
}

/// A stretch to read from the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// Nothing is missing any more.
    Closed,
    /// Too young: it may close by itself.
    Young,
    /// (after, up to and including).
    Missing(i64, i64),
}

impl Room {
    pub fn new(channel: Channel) -> Arc<Self> {
        Arc::new(Self { channel, owner: OnceLock::new(), state: Mutex::default() })
    }

    pub fn owner(&self) -> Option<&Arc<str>> {
        self.owner.get()
    }

    pub fn set_owner(&self, owner: Arc<str>) {
        // Whoever was first said the same: a job's owner never changes.
        let _ = self.owner.set(owner);
    }

    // --- Members -------------------------------------------------------------------------

    /// Starts to buffer for `link`. From here on nothing is missed.
    pub fn enter(&self, link: &Arc<Link>) {
        let mut state = self.state.lock();
        match state.member(link) {
            Some(member) => member.joining = Some(Joining::default()),
            None => {
                state.members.push(Member { link: link.clone(), last: 0, seen: 0, joining: Some(Joining::default()) })
            }
        }
    }

    /// Is everything after `head` buffered for this socket? If not, the head is too old:
    /// another socket's join has moved the room past it. Enter and read again.
    pub fn covers(&self, link: &Arc<Link>, head: i64) -> bool {
        let mut state = self.state.lock();
        let delivered = state.delivered;
        let Some(joining) = state.member(link).and_then(|member| member.joining.as_ref()) else { return false };
        let first = joining.buffer.iter().map(|(offset, _)| *offset).find(|offset| *offset > head);
        !joining.overflowed && first.map_or_else(|| delivered <= Some(head), |first| first == head + 1)
    }

    /// The socket has been told everything up to `head`: what is newer follows.
    /// False when it cannot follow (it is slow or gone) and is out of the room again.
    pub fn complete(&self, link: &Arc<Link>, head: i64, shared: &Shared) -> bool {
        let mut state = self.state.lock();
        let State { delivered, members, sample, .. } = &mut *state;
        let Some(index) = members.iter().position(|member| member.link.id == link.id) else { return false };
        let member = &mut members[index];
        let Some(joining) = member.joining.take() else { return true };
        member.last = head;
        let mut follows = !joining.overflowed;
        for (offset, frame) in joining.buffer {
            if offset <= member.last || !follows {
                continue;
            }
            follows = offset == member.last + 1 && link.push(&frame) != Pushed::Refused;
            if follows {
                member.last = offset;
                shared.metrics.socket_deliveries.inc();
            }
        }
        // A room that was ahead of the head it was told: cannot be, and must not be silent.
        follows &= delivered.is_none_or(|delivered| delivered <= member.last);
        if let (true, Some(sample)) = (follows, &*sample) {
            link.push(sample);
        }
        let last = member.last;
        if !follows {
            members.swap_remove(index);
            link.lose(&self.channel, last, Resync::SlowReader);
        }
        if state.delivered.is_none() {
            state.start(last, &self.channel, shared);
        }
        follows
    }

    /// The store could not be read: a socket that was here before goes on where it was,
    /// a new one is out again. True when it is still here.
    pub fn abandon(&self, link: &Arc<Link>, was_member: bool, shared: &Shared) -> bool {
        if !was_member {
            self.remove(link);
            return false;
        }
        let last = self.state.lock().member(link).map(|member| member.last);
        last.is_some_and(|last| self.complete(link, last, shared))
    }

    /// Returns the last offset the socket has got, if it was here.
    pub fn remove(&self, link: &Arc<Link>) -> Option<i64> {
        let mut state = self.state.lock();
        let index = state.members.iter().position(|member| member.link.id == link.id)?;
        Some(state.members.swap_remove(index).last)
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().members.is_empty()
    }

    pub fn set_seen(&self, link: &Arc<Link>, offset: i64) {
        if let Some(member) = self.state.lock().member(link) {
            // Nobody has seen what was not delivered.
            member.seen = member.seen.max(offset.min(member.last));
        }
    }

    pub fn progress(&self) -> Vec<Progress> {
        let state = self.state.lock();
        state.members.iter().map(|member| Progress { delivered: member.last, seen: member.seen }).collect()
    }

    // --- Delivery ------------------------------------------------------------------------

    /// Takes one event of the channel: delivers it, holds it, or drops it as a repeat.
    pub fn offer(&self, update: &Arc<Update>, offset: i64, shared: &Shared) -> Offered {
        let mut state = self.state.lock();
        state.known = state.known.max(offset);
        let mut crowded = false;
        match state.delivered {
            Some(delivered) if offset <= delivered => return Offered { repeated: true, ..Offered::default() },
            Some(delivered) if offset == delivered + 1 => {
                crowded = state.deliver(update, offset, &self.channel, shared);
                crowded = crowded || state.deliver_held(&self.channel, shared);
            }
            Some(_) => state.hold(update, offset),
            None => {
                state.hold(update, offset);
                return Offered::default();
            }
        }
        Offered { crowded, unsettled: state.note_hole(), repeated: false }
    }

    /// Goes on delivering what was held. True when a reader has no room: let it read first.
    pub fn settle(&self, shared: &Shared) -> bool {
        self.state.lock().deliver_held(&self.channel, shared)
    }

    /// Delivers what has no offset: samples.
    pub fn pass(&self, frame: &Arc<Frame>, shared: &Shared) -> Published {
        let mut state = self.state.lock();
        let (mut delivered, mut published) = (0, Published::Sent);
        for member in state.members.iter().filter(|member| member.joining.is_none()) {
            match member.link.push(frame) {
                Pushed::Refused => continue,
                Pushed::Queued => published = Published::Crowded,
                Pushed::Sent => {}
            }
            delivered += 1;
        }
        state.sample = Some(frame.clone());
        shared.metrics.socket_deliveries.inc_by(delivered);
        published
    }

    // --- Holes ---------------------------------------------------------------------------

    /// For the sweep: how far this room is, unless nobody has joined yet.
    pub fn delivered(&self) -> Option<i64> {
        self.state.lock().delivered
    }

    /// The store's head of this channel. True when something is missing since now.
    pub fn note_head(&self, head: i64) -> bool {
        let mut state = self.state.lock();
        if state.delivered.is_none() {
            return false;
        }
        state.known = state.known.max(head);
        state.note_hole()
    }

    pub fn has_hole(&self) -> bool {
        self.state.lock().hole_since.is_some()
    }

    /// What to read from the store, for holes at least `age` old.
    pub fn hole(&self, age: Duration) -> Hole {
        let mut state = self.state.lock();
        let (Some(delivered), Some(since)) = (state.delivered, state.hole_since) else { return Hole::Closed };
        if delivered >= state.known {
            state.hole_since = None;
            return Hole::Closed;
        }
        if since.elapsed() < age {
            return Hole::Young;
        }
        if state.known - delivered > TOO_FAR {
            state.start_over(&self.channel, Resync::TooFarBehind);
            return Hole::Closed;
        }
        let upto = state.held.keys().next().map_or(state.known, |first| first - 1);
        if upto <= delivered {
            // Nothing is missing: it is held until readers have room.
            return Hole::Young;
        }
        Hole::Missing(delivered, upto.min(delivered + FILL))
    }

    /// The store was asked for everything after `after` and has not closed the hole: what
    /// is missing is no longer kept.
    pub fn give_up(&self, after: i64) {
        let mut state = self.state.lock();
        if state.delivered == Some(after) && state.known > after {
            state.start_over(&self.channel, Resync::Expired);
        }
    }
}

impl State {
    fn member(&mut self, link: &Arc<Link>) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.link.id == link.id)
    }

    fn hold(&mut self, update: &Arc<Update>, offset: i64) {
        if self.held.len() >= HELD {
            // The nearest are worth the most; the rest is filled from the store.
            match self.held.last_key_value() {
                Some((&last, _)) if offset < last => self.held.pop_last(),
                _ => return,
            };
        }
        self.held.insert(offset, update.clone());
    }

    /// Delivers the next offset. True when a reader has no room for more right now.
    fn deliver(&mut self, update: &Arc<Update>, offset: i64, channel: &Channel, shared: &Shared) -> bool {
        self.delivered = Some(offset);
        if self.members.is_empty() {
            return false;
        }
        let frame = update.frame(channel, offset);
        let sampled = update.is_submission();
        let (mut delivered, mut crowded) = (0, false);
        self.members.retain_mut(|member| {
            if let Some(joining) = &mut member.joining {
                if joining.buffer.len() < BUFFERED {
                    joining.buffer.push_back((offset, frame.clone()));
                } else {
                    joining.overflowed = true;
                }
                return true;
            }
            if offset <= member.last {
                return true;
            }
            let pushed = if offset > member.last + 1 {
                // Cannot be, and must not pass in silence.
                member.link.lose(channel, member.last, Resync::SlowReader);
                Pushed::Refused
            } else if sampled && member.link.answers() && shared.sampler.take() {
                member.link.push_asking(&frame, update.occurred_at)
            } else {
                member.link.push(&frame)
            };
            if pushed == Pushed::Refused {
                return false;
            }
            crowded |= pushed == Pushed::Queued;
            member.last = offset;
            delivered += 1;
            true
        });
        shared.metrics.socket_deliveries.inc_by(delivered);
        crowded
    }

    /// Delivers what is held and no longer too early. Stops, with true, when a reader has
    /// no room: a burst is no reason for it to lose its rooms.
    fn deliver_held(&mut self, channel: &Channel, shared: &Shared) -> bool {
        while let Some(entry) = self.held.first_entry() {
            let (offset, next) = (*entry.key(), self.delivered.map_or(0, |delivered| delivered + 1));
            if offset > next {
                break;
            }
            let update = entry.remove();
            if offset == next && self.deliver(&update, offset, channel, shared) {
                return true;
            }
        }
        false
    }

    /// Notes whether anything is missing or held. True when it is so since now.
    fn note_hole(&mut self) -> bool {
        if self.delivered >= Some(self.known) {
            self.hole_since = None;
            return false;
        }
        let new = self.hole_since.is_none();
        self.hole_since.get_or_insert_with(Instant::now);
        new
    }

    /// The first head is known.
    fn start(&mut self, delivered: i64, channel: &Channel, shared: &Shared) {
        self.delivered = Some(delivered);
        self.known = self.known.max(delivered);
        self.deliver_held(channel, shared);
        self.note_hole();
    }

    /// Nobody can be given what is missing: all start again from a snapshot.
    fn start_over(&mut self, channel: &Channel, why: Resync) {
        self.members.retain(|member| {
            if member.joining.is_none() {
                member.link.lose(channel, member.last, why);
            }
            member.joining.is_some()
        });
        self.delivered = None;
        self.hole_since = None;
    }
}
