//! Waiting for something to hold.

use std::time::{Duration, Instant};

use crate::play::psql;
use crate::world::World;

pub const MINUTE: Duration = Duration::from_secs(60);

/// Returns when it holds; fails when it does not within this time.
pub fn await_that(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the database answers so.
pub fn becomes(world: &World, deadline: Instant, query: &str, wanted: &str) {
    loop {
        let found = psql(&world.database, query);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found} instead of {wanted}: {query}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
