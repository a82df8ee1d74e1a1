use std::path::PathBuf;
use std::time::Duration;

use super::setting::{Check, Checks, FromSetting, settings};

settings! {
    /// The store: the truth about jobs, events and deliveries.
    pub struct Store in "store" {
        /// The store's URL: sqlite://PATH. {data.dir} stands for the data directory.
        url: StoreUrl = "sqlite://{data.dir}/gateway.db",
        /// Connections that only read.
        readers: usize = "4",
        /// A read that takes longer is given up, so that checkpoints go on.
        read_timeout: Duration = "1s",
    }
}

/// Which store, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A database file.
    Sqlite(PathBuf),
}

impl FromSetting for StoreUrl {
    const KIND: &'static str = "sqlite://PATH";

    fn from_text(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("sqlite", "")) => Err("names no file".to_owned()),
            Some(("sqlite", path)) => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("postgres" | "postgresql", _)) => Err("this version has no PostgreSQL store".to_owned()),
            _ => Err("names no store that is known".to_owned()),
        }
    }
}

impl Check for Store {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("store.readers", self.readers, 1..=64);
        checks.within("store.read_timeout", self.read_timeout, Duration::from_millis(50)..=Duration::from_secs(30));
    }
}
