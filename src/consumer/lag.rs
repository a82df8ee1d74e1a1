//! How far behind a consumer is, in seconds.
//!
//! Nobody tells when the oldest message was made that still waits. But it was made after what the
//! consumer has handled last, and after the last moment at which nothing waited.

use crate::domain::Timestamp;

/// Nothing that was made before waits, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Lag(Option<Timestamp>);

impl Lag {
    /// A batch is in hand whose oldest event was made then.
    pub fn in_hand(&mut self, made: Timestamp) {
        self.0 = Some(made);
    }

    /// The broker was asked then how many messages wait.
    pub fn told(&mut self, messages: u64, asked: Timestamp) {
        if messages == 0 || self.0.is_none() {
            self.0 = Some(asked);
        }
    }

    /// The oldest message that waits is no older than this, if there is one.
    pub fn seconds(&self, now: Timestamp) -> f64 {
        self.0.map_or(0.0, |since| now.ms_since(since).max(0) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_grows_older() {
        let mut lag = Lag::default();
        assert_eq!(lag.seconds(Timestamp(1_000)), 0.0, "nothing is known");
        lag.told(0, Timestamp(1_000));
        lag.told(7, Timestamp(2_000));
        assert_eq!(lag.seconds(Timestamp(61_000)), 60.0, "nothing comes, and messages wait");
    }

    #[test]
    fn what_was_handled_last_says_how_old_the_rest_can_be() {
        let mut lag = Lag::default();
        lag.in_hand(Timestamp(5_000));
        lag.told(7, Timestamp(9_000));
        assert_eq!(lag.seconds(Timestamp(10_000)), 5.0);
        lag.in_hand(Timestamp(9_500));
        assert_eq!(lag.seconds(Timestamp(10_000)), 0.5);
        lag.told(0, Timestamp(10_000));
        assert_eq!(lag.seconds(Timestamp(10_000)), 0.0);
    }
}
