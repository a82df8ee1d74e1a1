//! What the brokers must have for the catalogue's routes: exchanges, topics, streams.

use std::sync::Arc;
use std::time::Duration;

/// How a RabbitMQ exchange matches routing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    Topic,
    Direct,
}

/// A durable RabbitMQ exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub name: Arc<str>,
    pub kind: ExchangeKind,
}

/// A Kafka topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: Arc<str>,
    pub partitions: u32,
    pub retention: Duration,
}

/// What a JetStream stream keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Until one consumer has acknowledged it.
    WorkQueue,
    /// For a time, whoever has read it.
    Limits { max_age: Duration },
}

/// A NATS JetStream stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    pub name: Arc<str>,
    /// Subject filters; `*` stands for one token, a last `>` for one or more.
    pub subjects: Vec<Arc<str>>,
    pub kind: StreamKind,
}

impl Stream {
    /// Does every subject of `pattern` land in this stream?
    pub fn covers(&self, pattern: &str) -> bool {
        self.subjects.iter().any(|filter| covers(filter, pattern))
    }
}

/// Does `filter` match every subject that `pattern` matches?
pub fn covers(filter: &str, pattern: &str) -> bool {
    let (mut filter, mut pattern) = (filter.split('.'), pattern.split('.'));
    loop {
        match (filter.next(), pattern.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

/// Is there a subject that both filters match?
pub fn overlaps(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

/// Is this a well-formed subject filter?
pub fn is_subject_filter(text: &str) -> bool {
    let tokens: Vec<_> = text.split('.').collect();
    let plain = |token: &str| {
        !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '*' | '>' | '{' | '}'))
    };
    tokens.iter().enumerate().all(|(i, token)| match *token {
        "*" => true,
        ">" => i + 1 == tokens.len(),
        token => plain(token),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_covers_what_it_matches_completely() {
        for (filter, pattern, expected) in [
            ("commands.job.submit.>", "commands.job.submit.*", true),
            ("commands.job.submit.>", "commands.job.submit.process", true),
            ("commands.job.submit.>", "commands.job.submit", false),
            ("commands.job.*", "commands.job.>", false),
            ("commands.job.*", "commands.job.cancel", true),
            ("commands.job.cancel", "commands.job.*", false),
            ("commands.>", "commands.a.b.c", true),
            ("commands.a", "commands.a.b", false),
        ] {
            assert_eq!(covers(filter, pattern), expected, "{filter} covers {pattern}");
        }
    }

    #[test]
    fn filters_overlap_when_one_subject_matches_both() {
        for (a, b, expected) in [
            ("commands.job.submit.>", "commands.job.cancel", false),
            ("commands.>", "commands.job.cancel", true),
            ("a.*.c", "a.b.*", true),
            ("a.*.c", "a.b.d", false),
            ("a.>", "a", false),
            ("a.b", "a.b", true),
        ] {
            assert_eq!(overlaps(a, b), expected, "{a} overlaps {b}");
            assert_eq!(overlaps(b, a), expected, "{b} overlaps {a}");
        }
    }

    #[test]
    fn subject_filters_have_whole_tokens() {
        for good in ["a", "a.b.c", "a.*.c", "a.>", "commands.officer.change-status"] {
            assert!(is_subject_filter(good), "{good}");
        }
        for bad in ["", "a.", ".a", "a..b", "a.>.b", "a.b*", "a b", "a.{x}"] {
            assert!(!is_subject_filter(bad), "{bad}");
        }
    }
}
