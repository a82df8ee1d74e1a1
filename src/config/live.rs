use std::time::Duration;

use bytesize::ByteSize;

use super::setting::{Check, Checks, settings};

settings! {
    /// Sockets: the live connections of browsers.
    pub struct Live in "live" {
        /// Connections one user may hold at once; operators and workers may hold more.
        max_connections_per_user: usize = "5",
        /// Rooms one socket may be in.
        max_rooms: usize = "100",
        /// Updates that wait for a slow reader before it loses its rooms.
        queue_len: usize = "1024",
        /// How often the server pings a socket.
        ping_interval: Duration = "30s",
        /// A socket that does not answer a ping for this long is closed.
        ping_timeout: Duration = "20s",
        /// Largest frame a client may send.
        frame_limit: ByteSize = "1MB",
        /// Origins of pages that may connect. Empty: the gateway's own page only.
        allowed_origins: Vec<String> = "",
        /// Every how many updates a client that joined with acks is asked for one.
        ack_every: usize = "10",
        /// How long before its token expires a socket is warned.
        expiry_warning: Duration = "1m",
    }
}

impl Check for Live {
    fn check(&self, checks: &mut Checks<'_>) {
        let seconds = Duration::from_secs;
        checks.within("live.max_connections_per_user", self.max_connections_per_user, 1..=10_000);
        checks.within("live.max_rooms", self.max_rooms, 1..=10_000);
        checks.within("live.queue_len", self.queue_len, 16..=65_536);
        checks.within("live.ping_interval", self.ping_interval, seconds(1)..=seconds(300));
        checks.within("live.ping_timeout", self.ping_timeout, seconds(1)..=seconds(300));
        checks.within("live.frame_limit", self.frame_limit, ByteSize::kib(16)..=ByteSize::mib(16));
        checks.within("live.ack_every", self.ack_every, 1..=1_000_000);
        checks.within("live.expiry_warning", self.expiry_warning, seconds(1)..=seconds(3600));
        checks.origins("live.allowed_origins", &self.allowed_origins);
    }
}
