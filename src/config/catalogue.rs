use std::path::PathBuf;

use super::setting::{Check, Checks, settings};

settings! {
    /// The catalogue: what types of event there are.
    pub struct Catalogue in "catalogue" {
        /// Directories with more types of event, beside the built-in ones.
        dirs: Vec<PathBuf> = "",
    }
}

impl Check for Catalogue {
    fn check(&self, checks: &mut Checks<'_>) {
        for dir in &self.dirs {
            let reason = format!("'{}' is not a directory", dir.display());
            checks.require(dir.is_dir(), "catalogue.dirs", reason, "create it or correct the path");
        }
    }
}
