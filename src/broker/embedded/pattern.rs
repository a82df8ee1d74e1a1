//! Which messages of a log a consumer gets.

use std::sync::Arc;

use crate::broker::topic_pattern::TopicPattern;
use crate::domain::catalogue::covers;

/// What of a log one consumer gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    All,
    /// Any of these bindings.
    Topic(Vec<TopicPattern>),
    /// A NATS subject filter.
    Subject(Arc<str>),
}

impl Filter {
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Filter::All => true,
            Filter::Topic(patterns) => patterns.iter().any(|pattern| pattern.matches(key)),
            // A subject is a pattern that matches only itself.
            Filter::Subject(filter) => covers(filter, key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_filters_follow_nats() {
        for (filter, subject, expected) in [
            ("commands.job.cancel", "commands.job.cancel", true),
            ("commands.job.cancel", "commands.job", false),
            ("commands.job.*", "commands.job.cancel", true),
            ("commands.job.*", "commands.job.submit.process", false),
            ("commands.job.submit.>", "commands.job.submit.process", true),
            ("commands.job.submit.>", "commands.job.submit.a.b", true),
            ("commands.job.submit.>", "commands.job.submit", false),
            (">", "a", true),
            ("*.b", "a.b", true),
            ("*.b", "a.c", false),
        ] {
            assert_eq!(Filter::Subject(filter.into()).matches(subject), expected, "{filter} on {subject}");
        }
    }
}
