use std::time::Duration;

use bytesize::ByteSize;

use super::setting::{Check, Checks, settings};

settings! {
    /// The relays: committed events on their way to the brokers.
    pub struct Relay in "relay" {
        /// Lanes per broker. More let several windows be in flight at once; a key keeps its lane.
        lanes: u8 = "1",
        /// Events a lane holds in memory; behind that it reads from the store.
        lane_capacity: usize = "8192",
        /// Bytes of events a lane holds in memory, as `lane_capacity`: many large ones do not take more than
        /// this either. What is handed to it meanwhile may take as much again.
        lane_bytes: ByteSize = "64MiB",
        /// Messages published, confirmed and marked together, at most.
        window: usize = "512",
        /// The least time between windows of a lane that are not full, on real brokers: fuller
        /// windows cost brokers and database less. The first after a pause goes at once.
        spacing: Duration = "30ms",
    }
}

impl Check for Relay {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("relay.lanes", self.lanes, 1..=64);
        checks.within("relay.lane_capacity", self.lane_capacity, 1..=1_000_000);
        checks.within("relay.lane_bytes", self.lane_bytes, ByteSize::mib(1)..=ByteSize::gib(64));
        checks.within("relay.spacing", self.spacing, Duration::ZERO..=Duration::from_secs(1));
        checks.within("relay.window", self.window, 1..=10_000);
        checks.require(
            self.lane_capacity >= self.window,
            "relay.lane_capacity",
            "is smaller than relay.window: a window could never be filled",
            "make it at least as large",
        );
    }
}
