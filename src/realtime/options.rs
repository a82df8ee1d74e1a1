//! What the sockets are allowed.

use std::time::Duration;

use crate::config;
use crate::store::ReplayLimit;

/// Limits and times of the namespace.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections one user may hold; operators and workers may hold any number.
    pub max_connections_per_user: usize,
    /// Job rooms of one socket.
    pub max_rooms: usize,
    /// Updates that wait for a slow reader before it loses its rooms.
    pub queue_len: usize,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// Bytes of the largest message a client may send.
    pub frame_limit: usize,
    /// Origins of other sites' pages that may connect; `*` is any.
    pub allowed_origins: Vec<String>,
    /// Of the updates that may be sampled, every how many asks for an ack.
    pub ack_every: u64,
    /// The most acks asked for in a second, over all sockets.
    pub acks_per_second: u64,
    /// How long before its token expires a socket is warned.
    pub expiry_warning: Duration,
    /// A connection that has not come in by then is closed.
    pub connect_timeout: Duration,
    /// What one join or resume may replay.
    pub replay: ReplayLimit,
    /// How long sockets may take to read what is queued when the gateway stops.
    pub shutdown_limit: Duration,
}

impl From<&config::Live> for Options {
    fn from(live: &config::Live) -> Self {
        Self {
            max_connections_per_user: live.max_connections_per_user,
            max_rooms: live.max_rooms,
            queue_len: live.queue_len,
            ping_interval: live.ping_interval,
            ping_timeout: live.ping_timeout,
            frame_limit: usize::try_from(live.frame_limit.as_u64()).unwrap_or(usize::MAX),
            allowed_origins: live.allowed_origins.clone(),
            ack_every: live.ack_every as u64,
            acks_per_second: 50,
            expiry_warning: live.expiry_warning,
            connect_timeout: Duration::from_secs(10),
            replay: ReplayLimit { events: 500, bytes: 1_000_000 },
            shutdown_limit: Duration::from_secs(5),
        }
    }
}
