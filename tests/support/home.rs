//! Where the gateways of one test live, one after the other: they find what the last has left.

use std::path::Path;

use crate::fresh::World;

/// A directory for data; and, if this run is on the real brokers, a world there.
pub struct Home {
    dir: tempfile::TempDir,
    world: Option<World>,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), world: World::chosen() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What a gateway has to be told besides its directory: key and value.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        self.world.as_ref().map(World::pairs).unwrap_or_default()
    }
}
