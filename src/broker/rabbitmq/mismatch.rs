//! What the server says about a thing that is there with other properties, for operators.

/// Which setting decides what is wanted of a queue.
const SETTINGS: [(&str, &str); 4] = [
    ("x-max-length", "rabbitmq.queue_max_length"),
    ("x-message-ttl", "rabbitmq.queue_ttl"),
    ("x-dead-letter-exchange", "rabbitmq.dead_letter_exchange"),
    ("x-dead-letter-routing-key", "rabbitmq.dead_letter_queue"),
];

/// A property of a queue or an exchange that is not as it is declared.
#[derive(Debug, PartialEq, Eq)]
struct Difference<'s> {
    property: &'s str,
    wanted: &'s str,
    found: &'s str,
}

/// Names the thing, the property, what it is and must be, and what to do.
pub(super) fn explained(what: &str, said: &str) -> String {
    let Some(Difference { property, wanted, found }) = difference(said) else {
        return format!(
            "{what} is not as it must be: {said}; delete it, and a running gateway declares it within seconds"
        );
    };
    let setting = SETTINGS.iter().find(|(name, _)| *name == property);
    let or = setting.map_or(String::new(), |(_, setting)| format!(", or set {setting} to what it has and restart"));
    format!(
        "{what}: {property} is {found}, wanted is {wanted}; delete it (a queue when it is empty) and a running gateway \
         declares it again within seconds{or}"
    )
}

/// Reads `inequivalent arg 'x' for queue 'q' in vhost '/': received A but current is B`.
fn difference(said: &str) -> Option<Difference<'_>> {
    let (property, rest) = said.split_once("inequivalent arg '")?.1.split_once('\'')?;
    let (_, values) = rest.rsplit_once(": received ")?;
    let (wanted, found) = values.split_once(" but current is ")?;
    Some(Difference { property, wanted: value(wanted), found: value(found) })
}

/// The server writes `none`, `'true'` or `the value '5' of type 'long'`.
fn value(said: &str) -> &str {
    let inner = said.split_once('\'').and_then(|(_, rest)| rest.split_once('\''));
    inner.map_or(said, |(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_read() {
        let words = |values: &str| {
            format!("PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'a' in vhost '/': {values}")
        };
        for (values, wanted, found) in [
            ("received the value '5' of type 'long' but current is the value '9' of type 'signedint'", "5", "9"),
            ("received the value '5' of type 'long' but current is none", "5", "none"),
            ("received '5' but current is '100000'", "5", "100000"),
        ] {
            let expected = Difference { property: "x-max-length", wanted, found };
            assert_eq!(difference(&words(values)), Some(expected), "{values}");
        }
    }

    #[test]
    fn other_words_are_passed_on() {
        let said = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'a' in vhost '/'";
        assert!(explained("queue a", said).contains(said));
    }
}
