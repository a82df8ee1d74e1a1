//! What the committer hands to a lane. Bounded: beyond that the store remembers.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Held;
use crate::domain::Event;

/// One lane's inbox.
#[derive(Debug)]
pub(super) struct LaneInbox {
    state: Mutex<State>,
    arrived: Notify,
    most: Held,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Something was dropped: the lane must read the store before it trusts the queue.
    overflowed: bool,
}

impl LaneInbox {
    /// Starts overflowed: what a former run left in the store comes first.
    pub fn new(most: Held) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { queue: VecDeque::new(), bytes: 0, overflowed: true }),
            arrived: Notify::new(),
            most,
        })
    }

    /// Never blocks. Call [`LaneInbox::wake`] after a batch.
    pub fn push(&self, event: Arc<Event>) {
        let mut state = self.state.lock();
        if state.overflowed {
            return;
        }
        if state.queue.len() >= self.most.events || state.bytes >= self.most.bytes {
            // From here on everything comes from the store, in commit order. What is
            // queued came before and stays.
            state.overflowed = true;
            return;
        }
        state.bytes += event.bytes();
        state.queue.push_back(event);
    }

    pub fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Moves events out until there is no more room for any.
    pub fn take(&self, mut room: Held) -> Vec<Arc<Event>> {
        let mut state = self.state.lock();
        let mut taken = Vec::new();
        while room.events > 0
            && room.bytes > 0
            && let Some(event) = state.queue.pop_front()
        {
            let bytes = event.bytes();
            state.bytes -= bytes;
            room = Held { events: room.events - 1, bytes: room.bytes.saturating_sub(bytes) };
            taken.push(event);
        }
        taken
    }

    /// True when the queue is empty and something was dropped: time to read the store.
    pub fn must_read_store(&self) -> bool {
        let state = self.state.lock();
        state.overflowed && state.queue.is_empty()
    }

    /// Call before the read that is hoped to be the last: events committed from now on
    /// are queued, those before are in the store.
    pub fn trust_again(&self) {
        self.state.lock().overflowed = false;
    }

    /// The queue may have gaps to what is next: the hoped-for read was not the last, or the
    /// lane starts over.
    pub fn distrust(&self) {
        let mut state = self.state.lock();
        state.overflowed = true;
        state.queue.clear();
        state.bytes = 0;
    }

    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}
