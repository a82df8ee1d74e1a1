//! Which deliveries are still to be acknowledged, and with how few commands.

use std::collections::BTreeMap;

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub tag: u64,
    /// All up to `tag`.
    pub multiple: bool,
}

/// Delivery tags handed out on one channel; they increase. Acknowledging one twice would
/// make the server close the channel, so each is remembered until then.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    tags: BTreeMap<u64, ()>,
}

impl Unsettled {
    pub fn handed_out(&mut self, tag: u64) {
        self.tags.insert(tag, ());
    }

    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// The commands that acknowledge `tags`: one for all that nothing older holds back, one
    /// each for the rest. Unknown tags were acknowledged before.
    pub fn settle(&mut self, tags: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let mut settled: Vec<u64> = tags.into_iter().filter(|tag| self.tags.remove(tag).is_some()).collect();
        settled.sort_unstable();
        let oldest = self.tags.first_key_value().map_or(u64::MAX, |(tag, ())| *tag);
        let together = settled.partition_point(|tag| *tag < oldest);
        let (together, single) = settled.split_at(together);
        let all = together.last().map(|tag| Ack { tag: *tag, multiple: true });
        all.into_iter().chain(single.iter().map(|tag| Ack { tag: *tag, multiple: false })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_out(tags: std::ops::RangeInclusive<u64>) -> Unsettled {
        let mut unsettled = Unsettled::default();
        tags.for_each(|tag| unsettled.handed_out(tag));
        unsettled
    }

    #[test]
    fn a_batch_is_one_command() {
        let mut unsettled = handed_out(1..=5);
        assert_eq!(unsettled.settle([2, 1, 3]), [Ack { tag: 3, multiple: true }]);
        assert_eq!(unsettled.len(), 2);
    }

    #[test]
    fn what_is_older_and_open_is_not_acknowledged_with_it() {
        let mut unsettled = handed_out(1..=5);
        let single = |tag| Ack { tag, multiple: false };
        assert_eq!(unsettled.settle([1, 3, 5]), [Ack { tag: 1, multiple: true }, single(3), single(5)]);
        assert_eq!(unsettled.settle([2]), [Ack { tag: 2, multiple: true }]);
    }

    #[test]
    fn a_tag_is_acknowledged_once() {
        let mut unsettled = handed_out(1..=2);
        assert_eq!(unsettled.settle([1]).len(), 1);
        assert_eq!(unsettled.settle([1, 9]), []);
    }
}
