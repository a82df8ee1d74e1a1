//! The log of one run: a file of bounded size that keeps the latest lines.

use std::path::{Path, PathBuf};

use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

/// Both files together hold about this many bytes.
pub(super) const MAX_LOG_BYTES: u64 = 1 << 20;

/// `agent.log`, moved to `agent.log.1` when it is half of the limit; an older one is dropped.
pub(super) struct RunLog {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    /// Bytes that are gone with an overwritten `agent.log.1`.
    dropped: u64,
    rotated: u64,
}

impl RunLog {
    /// The log in `directory`. A log that cannot be written is no reason to fail a job:
    /// it is warned of once, then nothing is kept.
    pub async fn create(directory: &Path) -> Self {
        let path = directory.join("agent.log");
        let file = open(&path).await;
        Self { path, file, written: 0, dropped: 0, rotated: 0 }
    }

    /// Appends `lines` (each with its end; at most some 100 kB).
    pub async fn append(&mut self, lines: &[u8]) {
        if self.written + lines.len() as u64 > MAX_LOG_BYTES / 2 && self.written > 0 {
            self.rotate().await;
        }
        let Some(file) = &mut self.file else { return };
        let written = match file.write_all(lines).await {
            Ok(()) => file.flush().await,
            Err(error) => Err(error),
        };
        self.written += lines.len() as u64;
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the log of a run; it ends here");
            self.file = None;
        }
    }

    async fn rotate(&mut self) {
        self.file = None;
        self.dropped += std::mem::replace(&mut self.rotated, self.written);
        if let Err(error) = fs::rename(&self.path, self.path.with_extension("log.1")).await {
            tracing::warn!(path = %self.path.display(), %error, "cannot rotate the log of a run; it ends here");
            return;
        }
        self.file = open(&self.path).await;
        self.written = 0;
        if self.dropped > 0 {
            let marker = format!("[{} bytes of earlier output were dropped]\n", self.dropped);
            if let Some(file) = &mut self.file
                && file.write_all(marker.as_bytes()).await.is_ok()
            {
                self.written = marker.len() as u64;
            }
        }
    }
}

async fn open(path: &Path) -> Option<File> {
    match File::create(path).await {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot create the log of a run; none is kept");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_latest_lines_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RunLog::create(dir.path()).await;
        let total = 50_000u64;
        for n in 0..total {
            log.append(format!("{n:063}\n").as_bytes()).await;
        }
        let current = std::fs::read_to_string(dir.path().join("agent.log")).unwrap();
        let earlier = std::fs::read_to_string(dir.path().join("agent.log.1")).unwrap();
        assert!((current.len() + earlier.len()) as u64 <= MAX_LOG_BYTES);
        assert!(current.ends_with(&format!("{:063}\n", total - 1)));
        let marker = current.lines().next().unwrap();
        let dropped: u64 = marker.trim_start_matches('[').split(' ').next().unwrap().parse().unwrap();
        let kept = (current.len() - marker.len() - 1) as u64
            + earlier.lines().filter(|l| !l.starts_with('[')).count() as u64 * 64;
        // Markers that went with dropped files are counted as dropped.
        assert!((total * 64..total * 64 + 4_096).contains(&(dropped + kept)), "{dropped} + {kept}");
    }

    #[tokio::test]
    async fn an_unwritable_log_is_survived() {
        let mut log = RunLog::create(Path::new("/nonexistent-run")).await;
        log.append(b"x\n").await;
    }
}
