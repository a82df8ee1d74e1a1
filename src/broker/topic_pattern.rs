//! Which routing keys an AMQP binding takes.

use std::str::Split;

/// An AMQP topic pattern: words between dots, `*` one word, `#` zero or more.
/// A direct exchange's binding is a pattern without either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Word(Box<str>),
    One,
    Many,
}

/// The words of a routing key. The empty key has none (as RabbitMQ counts them).
fn words(key: &str) -> std::iter::Peekable<Split<'_, char>> {
    let mut words = key.split('.');
    if key.is_empty() {
        words.next();
    }
    words.peekable()
}

impl TopicPattern {
    pub fn parse(text: &str) -> Self {
        let mut segments: Vec<Segment> = Vec::new();
        for word in words(text) {
            match word {
                "*" => segments.push(Segment::One),
                // `#.#` takes what `#` takes.
                "#" if segments.last() == Some(&Segment::Many) => {}
                "#" => segments.push(Segment::Many),
                word => segments.push(Segment::Word(word.into())),
            }
        }
        Self(segments)
    }

    /// Linear in words times segments: on a mismatch only the last `#` takes one word more.
    pub fn matches(&self, key: &str) -> bool {
        let mut rest = words(key);
        let mut at = 0;
        let mut retry = None;
        loop {
            match (self.0.get(at), rest.peek()) {
                (None, None) => return true,
                (Some(Segment::Many), _) => {
                    at += 1;
                    retry = Some((at, rest.clone()));
                    continue;
                }
                (Some(Segment::One), Some(_)) => {}
                (Some(Segment::Word(wanted)), Some(word)) if **wanted == **word => {}
                _ => {
                    let Some((after, from)) = &mut retry else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    at = *after;
                    rest = from.clone();
                    continue;
                }
            }
            at += 1;
            rest.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topic_patterns_follow_amqp() {
        for (pattern, key, expected) in [
            ("job.submitted", "job.submitted", true),
            ("job.submitted", "job.failed", false),
            ("job.submitted", "job.submitted.x", false),
            ("job.*", "job.submitted", true),
            ("job.*", "job", false),
            ("job.*", "job.1.status", false),
            ("job.*.status", "job.1.status", true),
            ("*.*", "job.submitted", true),
            ("*", "", false),
            ("job.#", "job", true),
            ("job.#", "job.1.status", true),
            ("job.#", "jobs.1", false),
            ("#", "", true),
            ("#", "a.b.c", true),
            ("", "", true),
            ("", "a", false),
            ("#.status", "status", true),
            ("#.status", "job.1.status", true),
            ("#.status", "job.status.1", false),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.b.b", true),
            ("a.#.b", "a.x.b.y.b", true),
            ("a.#.b", "a.b.c", false),
            ("#.a.#.b.#", "x.a.y.b.z", true),
            ("#.a.#.b.#", "x.b.y.a.z", false),
            ("#.*", "", false),
            ("#.*", "a", true),
            ("*.#.*", "a", false),
            ("*.#.*", "a.b", true),
            ("a.*.c", "a..c", true),
        ] {
            assert_eq!(TopicPattern::parse(pattern).matches(key), expected, "{pattern:?} on {key:?}");
        }
    }

    /// The definition, with all its backtracking.
    fn matches_by_definition(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => (0..=key.len()).any(|taken| matches_by_definition(rest, &key[taken..])),
            (Some((word, rest)), Some((first, key))) => {
                (*word == "*" || word == first) && matches_by_definition(rest, key)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn topic_patterns_agree_with_the_definition(
            pattern in proptest::collection::vec(prop_oneof!["a", "b", r"\*", "#"], 1..6),
            key in proptest::collection::vec("[ab]", 1..7),
        ) {
            let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            prop_assert_eq!(
                TopicPattern::parse(&pattern.join(".")).matches(&key.join(".")),
                matches_by_definition(&pattern, &key)
            );
        }
    }
}
