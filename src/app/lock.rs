//! One gateway at a time on a data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs4::FileExt;

/// Held for the life of the process; the kernel frees it however the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path} is used by another gateway{}; stop it, or give this one another data.dir",
        .pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken { path: PathBuf, pid: Option<String> },
    #[error("the data directory {path} cannot be used: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl DataDirLock {
    /// Creates the directory when missing (mode 0700) and takes it.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: dir.to_owned(), source };
        if !dir.exists() {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        }
        let path = dir.join("gateway.lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&path).ok().map(|text| text.trim().to_owned());
                return Err(LockError::Taken { path: dir.to_owned(), pid: pid.filter(|pid| !pid.is_empty()) });
            }
            Err(fs4::TryLockError::Error(source)) => return Err(io(source)),
        }
        // For people: who has it.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
        Ok(Self { _file: file })
    }
}
