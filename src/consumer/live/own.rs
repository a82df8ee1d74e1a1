//! What this instance has committed, on the short way to its own sockets.
//!
//! Only what has an offset goes this way: it comes once more through the broadcast queue, and
//! sockets know by the offset that they have it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Turn, observed};
use crate::domain::Event;
use crate::realtime::{Published, Realtime, Update};
use crate::telemetry::metrics::ConsumerMetrics;

/// Events that may wait for their turn. More are left to the broadcast queue.
const CAPACITY: usize = 8_192;
const BATCH: usize = 512;

/// Where the committer leaves what it has committed. Never waits.
#[derive(Clone, Debug)]
pub struct OwnEvents(mpsc::Sender<Arc<Event>>);

/// What was left, in commit order.
#[derive(Debug)]
pub struct Committed(mpsc::Receiver<Arc<Event>>);

/// A bounded way from the committer to the live consumer.
pub fn own_events() -> (OwnEvents, Committed) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (OwnEvents(sender), Committed(receiver))
}

impl OwnEvents {
    /// Takes what sockets may want to see, as far as there is room.
    pub fn committed(&self, events: &[Arc<Event>]) {
        let shown = |event: &&Arc<Event>| event.event_type.audience.job || event.event_type.audience.user;
        for event in events.iter().filter(shown) {
            // No room, or no sockets in this process: there is the broadcast queue.
            if self.0.try_send(event.clone()).is_err() {
                return;
            }
        }
    }
}

pub(super) struct OwnReader {
    pub realtime: Realtime,
    pub metrics: ConsumerMetrics,
}

impl OwnReader {
    pub async fn run(self, mut events: Committed, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                read = events.0.recv_many(&mut batch, BATCH) => if read == 0 { return },
            }
            let mut turn = Turn::new();
            for event in batch.drain(..) {
                turn.after(self.publish(&event)).await;
            }
        }
    }

    fn publish(&self, event: &Event) -> Published {
        observed(self.realtime.publish_numbered(Update::of_event(event)), event.occurred_at, &self.metrics)
    }
}
