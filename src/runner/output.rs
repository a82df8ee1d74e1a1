//! Reads what the processes of a run write, line by line and within bounds.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::log::RunLog;
use super::protocol::{self, AgentError, Line, MAX_RESULT_BYTES};

/// Lines that are not for the runner are cut here.
const MAX_LOG_LINE: usize = 64 * 1024;
/// The longest line that may be a result, with its braces and key.
const MAX_STDOUT_LINE: usize = MAX_RESULT_BYTES + 1024;
const CHUNK: usize = 32 * 1024;
/// What both streams together may bring in a second; the rest waits in the pipe.
const BYTES_PER_SECOND: usize = 4 << 20;
/// The end of standard error that is shown with a failure.
const MAX_TAIL: usize = 8 * 1024;
/// How long output is read after the last process is gone (somebody else may hold the pipe).
const DRAIN: Duration = Duration::from_secs(2);

/// What an agent said in the course of a run.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    /// The last result line, or why it cannot be used.
    pub result: Option<Result<Map<String, Value>, String>>,
    pub error: Option<AgentError>,
    /// The last lines of standard error.
    pub stderr_tail: String,
}

/// Reads both streams until they end, or for a short while after `gone` is cancelled.
/// Progress goes to `progress`, everything that is not for the runner to `log`.
pub(super) async fn read(
    stdout: Receiver,
    stderr: Receiver,
    mut log: RunLog,
    gone: CancellationToken,
    mut progress: impl FnMut(f64, Option<String>),
) -> Spoken {
    let mut spoken = Spoken::default();
    let mut out = Stream::new(stdout, MAX_STDOUT_LINE);
    let mut err = Stream::new(stderr, MAX_LOG_LINE);
    let mut tail = Tail::default();
    let mut pending = Vec::with_capacity(CHUNK);
    let mut window = (Instant::now(), 0usize);
    let mut deadline = None;

    while out.open || err.open {
        let bytes = tokio::select! {
            bytes = out.fill(), if out.open => {
                out.lines(bytes, |line, dropped| {
                    let kind = protocol::parse(line, dropped > 0);
                    let log = match kind {
                        Line::Progress { progress: value, message } => { progress(value, message); false }
                        Line::Result(summary) => { spoken.result = Some(Ok(summary)); false }
                        Line::BadResult(reason) => { spoken.result = Some(Err(reason)); true }
                        Line::Error(error) => { spoken.error = Some(error); true }
                        Line::Log => true,
                    };
                    if log {
                        append(&mut pending, line, dropped);
                    }
                });
                bytes
            }
            bytes = err.fill(), if err.open => {
                err.lines(bytes, |line, dropped| {
                    let from = pending.len();
                    append(&mut pending, line, dropped);
                    tail.push(&pending[from..]);
                });
                bytes
            }
            () = gone.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + DRAIN);
                continue;
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
        };
        if !pending.is_empty() {
            log.append(&pending).await;
            pending.clear();
        }
        window.1 += bytes;
        if window.1 > BYTES_PER_SECOND {
            let full_second = window.0 + Duration::from_secs(1);
            // A run that is over must not be held up by what it wrote last.
            tokio::select! { () = sleep_until(full_second) => {} () = gone.cancelled() => {} }
            window = (Instant::now(), 0);
        } else if window.0.elapsed() > Duration::from_secs(1) {
            window = (Instant::now(), bytes);
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            break;
        }
    }
    spoken.stderr_tail = tail.text();
    spoken
}

/// Adds a line to `log`, cut to its limit.
fn append(log: &mut Vec<u8>, line: &[u8], dropped: u64) {
    let kept = &line[..line.len().min(MAX_LOG_LINE)];
    let dropped = dropped + (line.len() - kept.len()) as u64;
    log.extend_from_slice(kept);
    if dropped > 0 {
        log.extend_from_slice(format!(" [{dropped} bytes of this line were dropped]").as_bytes());
    }
    log.push(b'\n');
}

/// One pipe and its unfinished line.
struct Stream {
    pipe: Receiver,
    open: bool,
    chunk: Box<[u8]>,
    splitter: Splitter,
}

impl Stream {
    fn new(pipe: Receiver, max_line: usize) -> Self {
        Self { pipe, open: true, chunk: vec![0; CHUNK].into_boxed_slice(), splitter: Splitter::new(max_line) }
    }

    /// Waits for bytes; 0 at the end. Cancel safe.
    async fn fill(&mut self) -> usize {
        loop {
            match self.pipe.read(&mut self.chunk).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe that cannot be read has ended for us.
                Err(_) | Ok(0) => return 0,
                Ok(bytes) => return bytes,
            }
        }
    }

    fn lines(&mut self, bytes: usize, mut line: impl FnMut(&[u8], u64)) {
        if bytes == 0 {
            self.open = false;
            self.splitter.end(&mut line);
        } else {
            self.splitter.push(&self.chunk[..bytes], &mut line);
        }
    }
}

/// Splits bytes into lines of bounded length.
struct Splitter {
    line: Vec<u8>,
    max: usize,
    /// Bytes of the unfinished line beyond `max`.
    dropped: u64,
}

impl Splitter {
    fn new(max: usize) -> Self {
        Self { line: Vec::new(), max, dropped: 0 }
    }

    fn push(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8], u64)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            self.take(head);
            self.finish(line);
            bytes = &rest[1..];
        }
        self.take(bytes);
    }

    /// The last line may have no end.
    fn end(&mut self, line: &mut impl FnMut(&[u8], u64)) {
        if !self.line.is_empty() || self.dropped > 0 {
            self.finish(line);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(self.max - self.line.len());
        self.line.extend_from_slice(&bytes[..kept]);
        self.dropped += (bytes.len() - kept) as u64;
    }

    fn finish(&mut self, line: &mut impl FnMut(&[u8], u64)) {
        line(self.line.strip_suffix(b"\r").unwrap_or(&self.line), self.dropped);
        self.line.clear();
        self.line.shrink_to(CHUNK);
        self.dropped = 0;
    }
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(MAX_TAIL)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(MAX_TAIL);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(max: usize, chunks: &[&[u8]]) -> Vec<(String, u64)> {
        let mut splitter = Splitter::new(max);
        let mut lines = Vec::new();
        let mut sink = |line: &[u8], dropped| lines.push((String::from_utf8_lossy(line).into_owned(), dropped));
        for chunk in chunks {
            splitter.push(chunk, &mut sink);
        }
        splitter.end(&mut sink);
        lines
    }

    #[test]
    fn lines_are_put_together_from_chunks_and_cut() {
        assert_eq!(
            split(4, &[b"ab", b"c\nd\r\n\n", b"12345", b"678\nend"]),
            [("abc".into(), 0), ("d".into(), 0), (String::new(), 0), ("1234".into(), 4), ("end".into(), 0)]
        );
        assert_eq!(split(4, &[]), []);
        assert_eq!(split(4, &[b"x\n"]), [("x".into(), 0)]);
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        tail.push(&vec![b'x'; MAX_TAIL - 10]);
        assert_eq!(tail.0.len(), MAX_TAIL);
        assert!(tail.text().starts_with("line 9999\nx"), "{}", &tail.text()[..20]);
    }
}
