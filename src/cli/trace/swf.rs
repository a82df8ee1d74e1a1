//! The Standard Workload Format (version 2.2 of the Parallel Workloads Archive): one job a
//! line, 18 fields, -1 where nothing is known, `;` before comments.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

const FIELDS: usize = 18;
/// A longer line is no SWF.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// Why a log cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum SwfError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("line {line}: {reason}; is this a Standard Workload Format log?")]
    Line { line: usize, reason: String },
    #[error("there is no job in it")]
    Empty,
}

/// How a job ended, by the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    Failed,
    Cancelled,
    /// -1: counts as completed.
    Unknown,
}

/// One job of a log. Times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct SwfJob {
    pub number: u64,
    /// Since the beginning of the log.
    pub submit: f64,
    pub wait: Option<f64>,
    pub run: f64,
    pub processors: u32,
    /// CPU time used, mean of its processors.
    pub cpu: Option<f64>,
    /// Memory used, mean of its processors.
    pub memory_kb: Option<f64>,
    pub requested_seconds: Option<f64>,
    pub requested_memory_kb: Option<f64>,
    pub end: End,
    /// -1: unknown.
    pub user: i64,
    pub application: i64,
}

/// A log, its jobs by the time of their submission.
#[derive(Clone, Debug)]
pub struct Log {
    pub jobs: Vec<SwfJob>,
    /// Lines that describe only a part of a job (status 2, 3, 4).
    pub partial_lines: usize,
}

/// Reads the first `limit` jobs of the log at `path`, plain or gzip (told by its first bytes).
pub fn read(path: &Path, limit: Option<usize>) -> Result<Log, SwfError> {
    let mut file = BufReader::new(File::open(path)?);
    if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        parse(BufReader::new(MultiGzDecoder::new(file)), limit)
    } else {
        parse(file, limit)
    }
}

fn parse(mut text: impl BufRead, limit: Option<usize>) -> Result<Log, SwfError> {
    let mut log = Log { jobs: Vec::new(), partial_lines: 0 };
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let bad = |reason: String| SwfError::Line { line: number, reason };
        let read = text.by_ref().take(MAX_LINE_BYTES).read_line(&mut line);
        let bytes = read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => bad("is not text".to_owned()),
            _ => SwfError::Io(error),
        })?;
        if bytes == 0 || limit.is_some_and(|limit| log.jobs.len() >= limit) {
            break;
        }
        if bytes as u64 == MAX_LINE_BYTES && !line.ends_with('\n') {
            return Err(bad(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        let content = line.trim();
        if content.is_empty() || content.starts_with(';') {
            continue;
        }
        match job(content).map_err(bad)? {
            Some(job) => log.jobs.push(job),
            None => log.partial_lines += 1,
        }
    }
    if log.jobs.is_empty() {
        return Err(SwfError::Empty);
    }
    // Nearly sorted already; stable, so that equal times keep the log's order.
    log.jobs.sort_by(|a, b| a.submit.total_cmp(&b.submit));
    Ok(log)
}

/// The job of a line; `None` for a part of a job, whose summary is a line of its own.
fn job(line: &str) -> Result<Option<SwfJob>, String> {
    let mut fields = [0.0f64; FIELDS];
    let mut count = 0;
    for text in line.split_whitespace() {
        if count == FIELDS {
            return Err(format!("has more than {FIELDS} fields"));
        }
        let value: f64 = text.parse().map_err(|_| format!("field {} is '{text}', not a number", count + 1))?;
        if !value.is_finite() {
            return Err(format!("field {} is '{text}', not a number", count + 1));
        }
        fields[count] = value;
        count += 1;
    }
    if count != FIELDS {
        return Err(format!("has {count} fields instead of {FIELDS}"));
    }
    let known = |field: usize| Some(fields[field - 1]).filter(|value| *value >= 0.0);
    let end = match fields[10] as i64 {
        0 => End::Failed,
        1 => End::Completed,
        2..=4 => return Ok(None),
        5 => End::Cancelled,
        -1 => End::Unknown,
        other => return Err(format!("field 11, the status, is {other}; known are -1 to 5")),
    };
    Ok(Some(SwfJob {
        number: known(1).ok_or("field 1, the job's number, is negative")? as u64,
        submit: known(2).ok_or("field 2, the submit time, is negative")?,
        wait: known(3),
        run: known(4).unwrap_or(0.0),
        processors: known(5).filter(|n| *n >= 1.0).or(known(8)).unwrap_or(1.0).clamp(1.0, 100_000.0) as u32,
        cpu: known(6),
        memory_kb: known(7),
        requested_seconds: known(9),
        requested_memory_kb: known(10),
        end,
        user: fields[11] as i64,
        application: fields[13] as i64,
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOG: &str = "\
; Version: 2.2
;
    2    60    5  120   32   96.5  2048    -1    300    -1  0   7   1   3 -1 -1 -1 -1
    1     0   -1 1451   -1     -1    -1   128     -1    -1 -1   1   1  -1 -1 -1 -1 -1
    3    61    0   10    1     -1    -1    -1     -1    -1  2   7   1   3 -1 -1 -1 -1
    3    61    0   20    1     -1    -1    -1     -1    -1  1   7   1   3 -1 -1 -1 -1
    4    90   -1   -1    1     -1    -1    -1     -1    -1  5   7   1   3 -1 -1 -1 -1
";

    #[test]
    fn jobs_are_read_and_sorted_by_submission() {
        let log = parse(LOG.as_bytes(), None).unwrap();
        assert_eq!(log.jobs.iter().map(|job| job.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(log.partial_lines, 1);
        let ends: Vec<_> = log.jobs.iter().map(|job| job.end).collect();
        assert_eq!(ends, [End::Unknown, End::Failed, End::Completed, End::Cancelled]);
        assert_eq!((log.jobs[0].processors, log.jobs[0].wait, log.jobs[0].cpu), (128, None, None));
        let second = &log.jobs[1];
        assert_eq!((second.run, second.wait, second.processors, second.user), (120.0, Some(5.0), 32, 7));
        assert_eq!((second.cpu, second.memory_kb, second.requested_seconds), (Some(96.5), Some(2048.0), Some(300.0)));
        assert_eq!(log.jobs[3].run, 0.0);
    }

    #[test]
    fn the_limit_counts_jobs() {
        assert_eq!(parse(LOG.as_bytes(), Some(2)).unwrap().jobs.len(), 2);
    }

    #[test]
    fn gzip_is_told_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        encoder.write_all(LOG.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(read(&path, None).unwrap().jobs.len(), 4);
        std::fs::write(&path, LOG).unwrap();
        assert_eq!(read(&path, None).unwrap().jobs.len(), 4);
    }

    #[test]
    fn what_is_no_log_is_refused_with_its_line() {
        for (text, expected) in [
            ("1 2 3", "line 1: has 3 fields"),
            ("; c\n1 0 -1 x 1 -1 -1 -1 -1 -1 1 1 1 1 1 1 1 1", "line 2: field 4 is 'x'"),
            ("1 0 -1 5 1 -1 -1 -1 -1 -1 9 1 1 1 1 1 1 1", "line 1: field 11"),
            ("1 0 -1 5 1 -1 -1 -1 -1 -1 1 1 1 1 1 1 1 1 1", "line 1: has more than"),
            ("-1 0 -1 5 1 -1 -1 -1 -1 -1 1 1 1 1 1 1 1 1", "line 1: field 1"),
            ("", "there is no job"),
        ] {
            let error = parse(text.as_bytes(), None).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let endless = "1".repeat(100_000);
        assert!(parse(endless.as_bytes(), None).unwrap_err().to_string().contains("longer"));
        assert!(parse(&[0xff, 0xfe, 0x00][..], None).unwrap_err().to_string().contains("not text"));
    }
}
