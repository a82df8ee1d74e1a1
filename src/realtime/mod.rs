//! The Socket.IO namespace `/messaging`: rooms, resume, and everything a slow or lost
//! connection needs so that a browser misses nothing in silence.
//!
//! [`Realtime`] is what others see: routes for the listener, [`Realtime::publish`] for the
//! live consumer, [`Realtime::run`] for whoever stops it. Inside, a [`link`] is one
//! connection with its bounded queues, a [`session`] the task that serves it, a [`room`]
//! one channel with its members, the [`hub`] all of them.
//!
//! The transport is engineioxide's; the packets are read by socketioxide's parser. Its own
//! socket layer is left out: it encodes an update anew for every socket, keeps to itself
//! how full its channel is, and closes the connection when a ping no longer fits.

mod dispatch;
mod frame;
mod hub;
mod join;
mod link;
mod namespace;
mod options;
mod origin;
mod packet;
mod request;
mod room;
mod sampler;
mod session;
mod update;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::domain::Channel;
use crate::store::Store;
use crate::telemetry::Metrics;
use hub::Hub;
use link::Link;
use sampler::Sampler;

pub use options::Options;
pub use room::Progress;
pub use update::Update;

/// The sockets of this instance. Cheap to share.
#[derive(Clone)]
pub struct Realtime(Arc<Shared>);

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Published {
    /// Nobody has joined its channels, which costs a look-up, or all have it already.
    Nobody,
    Sent,
    /// A reader has no room for more right now: let the sockets' tasks run before the next
    /// one, or it loses its rooms though it does read.
    Crowded,
}

/// What every part of the namespace needs.
struct Shared {
    options: Options,
    store: Arc<dyn Store>,
    auth: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
    sampler: Sampler,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    next_link: AtomicU64,
    tasks: TaskTracker,
    closing: AtomicBool,
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

impl Realtime {
    pub fn new(options: Options, store: Arc<dyn Store>, auth: Arc<Authenticator>, metrics: Arc<Metrics>) -> Self {
        let sampler = Sampler::new(options.ack_every, options.acks_per_second);
        Self(Arc::new(Shared {
            options,
            store,
            auth,
            metrics,
            hub: Arc::default(),
            sampler,
            links: Mutex::default(),
            next_link: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
        }))
    }

    /// `/socket.io`, to be merged into the gateway's router. Call once: connections belong
    /// to the routes they came in by.
    pub fn routes(&self) -> Router {
        namespace::routes(&self.0)
    }

    /// Prepares an accepted connection: small frames go out at once, and a client whose
    /// TCP takes nothing any more is given up by the kernel. Nothing above it can: a write
    /// that waits for the client waits for ever.
    pub fn tune(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let patience = self.0.options.ping_interval + self.0.options.ping_timeout;
        let ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, ms)?)
    }

    /// Serves until `stop`; then sockets get what is queued for them and are closed, so
    /// that clients come back by themselves. Bounded by [`Options::shutdown_limit`].
    pub async fn run(self, stop: CancellationToken) {
        stop.cancelled().await;
        self.0.closing.store(true, Ordering::SeqCst);
        for link in self.0.links.lock().values() {
            link.stop();
        }
        self.0.tasks.close();
        let limit = self.0.options.shutdown_limit + Duration::from_secs(1);
        if tokio::time::timeout(limit, self.0.tasks.wait()).await.is_err() {
            tracing::warn!(sockets = self.0.tasks.len(), "sockets were still open at the end of their time");
        }
    }

    // --- For the live consumer -----------------------------------------------------------

    /// Delivers an event to the sockets that have joined one of its channels: in offset
    /// order, each offset once, holding what comes too early. Never waits.
    pub fn publish(&self, update: Update) -> Published {
        if self.is_wanted(&update) { self.0.deliver(&Arc::new(update)) } else { Published::Nobody }
    }

    /// The same for those of its channels in which it has an offset: there it may come again.
    pub fn publish_numbered(&self, update: Update) -> Published {
        self.0.deliver_numbered(&Arc::new(update))
    }

    fn is_wanted(&self, update: &Update) -> bool {
        let hub = &self.0.hub;
        update.event_type.audience.operator
            || update.job_channel().is_some_and(|(channel, _)| hub.is_joined(&channel))
            || update.user_channel().is_some_and(|(channel, _)| hub.is_joined(&channel))
    }

    /// Stretches that are missing since `age` or longer: (channel, after, up to and including).
    pub fn holes(&self, age: Duration) -> Vec<(Channel, i64, i64)> {
        self.0.hub.holes(age)
    }

    /// One event that the store had for such a stretch.
    pub fn fill(&self, channel: &Channel, update: Update) -> Published {
        match (self.0.hub.room(channel), update.offset_in(channel)) {
            (Some(room), Some(offset)) => self.0.offer(&room, &Arc::new(update), offset),
            _ => Published::Nobody,
        }
    }

    /// The store had no more for these stretches. Where that has closed nothing it is no
    /// longer kept, and the sockets start over from a snapshot.
    pub fn filled(&self, holes: &[(Channel, i64, i64)]) {
        for (channel, after, _) in holes {
            if let Some(room) = self.0.hub.room(channel) {
                room.give_up(*after);
            }
        }
    }

    /// Goes on delivering what is held until readers have room for it.
    pub fn settle(&self) -> Published {
        self.0.settle()
    }

    /// Channels somebody has joined.
    pub fn joined_channels(&self) -> Vec<Channel> {
        self.0.hub.joined()
    }

    /// The store's heads: what lies between them and what was delivered is a hole.
    pub fn note_heads(&self, heads: impl Iterator<Item = (Channel, i64)>) {
        self.0.hub.note_heads(heads);
    }

    // --- For operators -------------------------------------------------------------------

    /// How far each socket is that has joined `channel` here.
    pub fn progress(&self, channel: &Channel) -> Vec<Progress> {
        self.0.hub.room(channel).map(|room| room.progress()).unwrap_or_default()
    }
}
