use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::setting::{Check, Checks, FromSetting, Secret, settings};

settings! {
    /// The store: the truth about jobs, events and deliveries.
    pub struct Store in "store" {
        /// The store's URL: sqlite://PATH for one instance, or postgres://USER@HOST/DATABASE
        /// for several (add ?sslmode=verify-full&sslrootcert=FILE across a network).
        /// {data.dir} stands for the data directory.
        url: StoreUrl = "sqlite://{data.dir}/gateway.db",
        /// Connections that only read.
        readers: usize = "4",
        /// Connections that write (PostgreSQL).
        writers: usize = "4",
        /// Password of the PostgreSQL user, if it is not in the URL.
        password: Option<Secret> = "",
        /// A read that takes longer is given up, so that checkpoints and vacuum go on.
        read_timeout: Duration = "1s",
    }
}

/// Which store, and where.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A database file.
    Sqlite(PathBuf),
    /// A PostgreSQL server; may hold a password.
    Postgres(Url),
}

impl std::fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "Sqlite({})", path.display()),
            Self::Postgres(url) => write!(f, "Postgres({}{})", url.host_str().unwrap_or_default(), url.path()),
        }
    }
}

impl FromSetting for StoreUrl {
    const KIND: &'static str = "sqlite://PATH or postgres://USER@HOST/DATABASE";

    fn from_text(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("sqlite", "")) => Err("names no file".to_owned()),
            Some(("sqlite", path)) => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("postgres" | "postgresql", _)) => match Url::parse(text) {
                Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) || url.query().is_some() => {
                    Ok(Self::Postgres(url))
                }
                Ok(_) => Err("names no host".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            _ => Err("names no store that is known".to_owned()),
        }
    }
}

impl Check for Store {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("store.readers", self.readers, 1..=64);
        checks.within("store.writers", self.writers, 2..=32);
        checks.within("store.read_timeout", self.read_timeout, Duration::from_millis(50)..=Duration::from_secs(30));
    }
}
