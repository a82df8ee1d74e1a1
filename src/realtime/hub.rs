//! Who is where: rooms, operators, and how many connections each user holds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::frame::Frame;
use super::link::{Link, Pushed};
use super::room::{Hole, Offered, Room};
use super::{Published, Shared};
use crate::domain::Channel;

/// The room of everyone who runs the gateway.
pub(super) const OPERATORS: &str = "role:operator";

/// Events read from the store in one go, over all channels.
const FILL_EVENTS: i64 = 5_000;

#[derive(Default)]
pub(super) struct Hub {
    rooms: Mutex<HashMap<Channel, Arc<Room>>>,
    operators: Mutex<Operators>,
    users: Mutex<HashMap<Arc<str>, usize>>,
    /// Channels that may miss something.
    suspects: Mutex<HashSet<Channel>>,
}

#[derive(Default)]
struct Operators {
    links: Vec<Arc<Link>>,
    /// The latest statistics: operators start with them.
    statistics: Option<Arc<Frame>>,
}

/// A stretch of a channel: after, up to and including.
pub(super) type Range = (Channel, i64, i64);

impl Hub {
    // --- Rooms ---------------------------------------------------------------------------

    /// Enters a room, which exists from then on. Says whether the socket was in it before.
    pub fn enter(&self, channel: &Channel, link: &Arc<Link>) -> Arc<Room> {
        let mut rooms = self.rooms.lock();
        let room = rooms.entry(channel.clone()).or_insert_with(|| Room::new(channel.clone())).clone();
        // Under the lock of the rooms, so that an empty one is not taken away meanwhile.
        room.enter(link);
        room
    }

    /// Leaves a room; the last one to go closes it. Returns the last offset the socket got.
    pub fn leave(&self, channel: &Channel, link: &Arc<Link>) -> Option<i64> {
        let mut rooms = self.rooms.lock();
        let room = rooms.get(channel)?;
        let last = room.remove(link);
        if room.is_empty() {
            rooms.remove(channel);
        }
        last
    }

    pub fn room(&self, channel: &Channel) -> Option<Arc<Room>> {
        self.rooms.lock().get(channel).cloned()
    }

    pub fn is_joined(&self, channel: &Channel) -> bool {
        self.rooms.lock().contains_key(channel)
    }

    // --- Operators -----------------------------------------------------------------------

    pub fn enter_operators(&self, link: &Arc<Link>) {
        let mut operators = self.operators.lock();
        if operators.links.iter().any(|other| other.id == link.id) {
            return;
        }
        if let Some(statistics) = &operators.statistics {
            link.push(statistics);
        }
        operators.links.push(link.clone());
    }

    pub fn leave_operators(&self, link: &Arc<Link>) {
        self.operators.lock().links.retain(|other| other.id != link.id);
    }

    pub fn has_operators(&self) -> bool {
        !self.operators.lock().links.is_empty()
    }

    /// Tells operators; `latest` is what the next one to come starts with.
    pub fn tell_operators(&self, frame: &Arc<Frame>, latest: bool) -> u64 {
        let mut operators = self.operators.lock();
        if latest {
            operators.statistics = Some(frame.clone());
        }
        operators.links.iter().filter(|link| link.push(frame) != Pushed::Refused).count() as u64
    }

    // --- Users ---------------------------------------------------------------------------

    /// Counts a connection of `user`, unless there are `limit` already.
    pub fn connect_user(self: &Arc<Self>, user: &Arc<str>, limit: Option<usize>) -> Option<UserSlot> {
        let mut users = self.users.lock();
        let count = users.entry(user.clone()).or_default();
        if limit.is_some_and(|limit| *count >= limit) {
            return None;
        }
        *count += 1;
        Some(UserSlot { hub: self.clone(), user: user.clone() })
    }

    // --- Holes ---------------------------------------------------------------------------

    /// Something may be missing in this channel.
    pub fn suspect(&self, channel: &Channel) {
        self.suspects.lock().insert(channel.clone());
    }

    /// Rooms that may miss or hold something.
    pub fn suspects(&self) -> Vec<Arc<Room>> {
        let suspects = self.suspects.lock();
        if suspects.is_empty() {
            return Vec::new();
        }
        let rooms = self.rooms.lock();
        suspects.iter().filter_map(|channel| rooms.get(channel).cloned()).collect()
    }

    /// What to read from the store now: holes that are at least `age` old.
    pub fn holes(&self, age: Duration) -> Vec<Range> {
        let suspects: Vec<Channel> = self.suspects.lock().iter().cloned().collect();
        let mut ranges = Vec::new();
        let mut left = FILL_EVENTS;
        for channel in suspects {
            match self.room(&channel).map_or(Hole::Closed, |room| room.hole(age)) {
                Hole::Young => {}
                Hole::Missing(after, upto) => {
                    if left > 0 {
                        left -= upto - after;
                        ranges.push((channel, after, upto));
                    }
                }
                Hole::Closed => {
                    self.suspects.lock().remove(&channel);
                    // It may have opened again in between.
                    if self.room(&channel).is_some_and(|room| room.has_hole()) {
                        self.suspect(&channel);
                    }
                }
            }
        }
        ranges
    }

    /// Every joined channel whose position is known.
    pub fn joined(&self) -> Vec<Channel> {
        let rooms: Vec<Arc<Room>> = self.rooms.lock().values().cloned().collect();
        rooms.iter().filter(|room| room.delivered().is_some()).map(|room| room.channel.clone()).collect()
    }

    /// Puts what the store has next to what was delivered.
    pub fn note_heads(&self, heads: impl Iterator<Item = (Channel, i64)>) {
        for (channel, head) in heads {
            if self.room(&channel).is_some_and(|room| room.note_head(head)) {
                self.suspect(&channel);
            }
        }
    }
}

/// One of a user's connections, while it lasts.
pub(super) struct UserSlot {
    hub: Arc<Hub>,
    user: Arc<str>,
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        let mut users = self.hub.users.lock();
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

impl Shared {
    /// Delivers to whoever is there.
    pub fn deliver(&self, update: &Arc<super::Update>) -> Published {
        let job = update.job_channel();
        let mut published = match &job {
            Some((channel, Some(offset))) => self.deliver_at(channel, *offset, update),
            Some((channel, None)) => match self.hub.room(channel) {
                Some(room) => room.pass(&update.passing_frame(&channel.to_string()), self),
                None => Published::Nobody,
            },
            None => Published::Nobody,
        };
        if let Some((channel, offset)) = update.user_channel() {
            published = published.max(self.deliver_at(&channel, offset, update));
        }
        if update.event_type.audience.operator && self.tell_operators(update) {
            published = published.max(Published::Sent);
        }
        published
    }

    /// Delivers to channels in which it has an offset, by which repeats are known.
    pub fn deliver_numbered(&self, update: &Arc<super::Update>) -> Published {
        let job = update.job_channel().and_then(|(channel, offset)| Some((channel, offset?)));
        let channels = job.into_iter().chain(update.user_channel());
        channels.map(|(channel, offset)| self.deliver_at(&channel, offset, update)).max().unwrap_or(Published::Nobody)
    }

    fn deliver_at(&self, channel: &Channel, offset: i64, update: &Arc<super::Update>) -> Published {
        self.hub.room(channel).map_or(Published::Nobody, |room| self.offer(&room, update, offset))
    }

    pub fn offer(&self, room: &Room, update: &Arc<super::Update>, offset: i64) -> Published {
        let offered = room.offer(update, offset, self);
        if offered.unsettled {
            self.hub.suspect(&room.channel);
        }
        match offered {
            Offered { repeated: true, .. } => Published::Nobody,
            Offered { crowded: true, .. } => Published::Crowded,
            _ => Published::Sent,
        }
    }

    /// Delivers what rooms hold and could not deliver at once, as far as readers have room.
    pub fn settle(&self) -> Published {
        let mut published = Published::Nobody;
        for room in self.hub.suspects() {
            if room.settle(self) {
                published = Published::Crowded;
            }
        }
        published
    }

    fn tell_operators(&self, update: &super::Update) -> bool {
        // Statistics replace each other, alerts each count.
        let statistics = &*update.event_type.socket_event == "stats_update";
        if !statistics && !self.hub.has_operators() {
            return false;
        }
        let frame = if statistics { update.passing_frame(OPERATORS) } else { update.kept_frame(OPERATORS) };
        self.metrics.socket_deliveries.inc_by(self.hub.tell_operators(&frame, statistics));
        true
    }
}
