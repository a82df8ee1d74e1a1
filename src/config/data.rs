use std::path::PathBuf;

use super::setting::{Check, Checks, settings};

settings! {
    /// Where the gateway keeps its files.
    pub struct Data in "data" {
        /// The data directory. Created when missing; one gateway at a time may use it.
        dir: PathBuf = "./data",
    }
}

impl Check for Data {
    fn check(&self, checks: &mut Checks<'_>) {
        let in_the_way = self.dir.exists() && !self.dir.is_dir();
        checks.require(!in_the_way, "data.dir", "is a file", "name a directory, or a path that does not exist yet");
    }
}
