use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;

use super::setting::{Check, Checks, settings};

settings! {
    /// The HTTP front end and its limits.
    pub struct Http in "http" {
        /// Address and port to listen on. Port 0 takes a free one, which the log names.
        /// Any address but a loopback one needs auth.jwt_secret or auth.jwks_url.
        listen: SocketAddr = "127.0.0.1:8080",
        /// Largest request body.
        body_limit: ByteSize = "1MiB",
        /// Largest body of a batch (POST /jobs/batch, a batch of events).
        batch_body_limit: ByteSize = "8MiB",
        /// Largest event, encoded. A larger one is refused with 413.
        event_limit: ByteSize = "512kB",
        /// A request that takes longer is answered with 503.
        request_timeout: Duration = "30s",
        /// A connection on which no request has come for so long is closed.
        idle_timeout: Duration = "75s",
        /// Requests that may be open at once; more are answered with 503.
        max_in_flight: usize = "4096",
        /// Requests a second that one user may go on making; more are answered with 429. 0: no limit.
        /// Operators and workers have none.
        rate_limit: u32 = "100",
        /// Requests that a user may make at once after a pause.
        rate_burst: u32 = "200",
        /// Origins of other pages that may call the API (CORS). Empty: the gateway's own page only.
        allowed_origins: Vec<String> = "",
    }
}

impl Check for Http {
    fn check(&self, checks: &mut Checks<'_>) {
        let sizes = ByteSize::kib(1)..=ByteSize::mib(64);
        checks.within("http.body_limit", self.body_limit, sizes.clone());
        checks.within("http.batch_body_limit", self.batch_body_limit, sizes.clone());
        // Brokers refuse messages over 1 MB unless they are told otherwise.
        checks.within("http.event_limit", self.event_limit, ByteSize::kib(1)..=ByteSize::kb(1000));
        checks.within("http.request_timeout", self.request_timeout, Duration::from_secs(1)..=Duration::from_secs(600));
        checks.within("http.idle_timeout", self.idle_timeout, Duration::from_millis(100)..=Duration::from_secs(3600));
        checks.within("http.max_in_flight", self.max_in_flight, 16..=1_000_000);
        checks.within("http.rate_limit", self.rate_limit, 0..=1_000_000);
        checks.within("http.rate_burst", self.rate_burst, 1..=1_000_000);
        checks.origins("http.allowed_origins", &self.allowed_origins);
    }
}
