//! The group against its definition, under any order of events.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::broker::Encoding;
use crate::broker::embedded::topology::Retention;
use crate::domain::Timestamp;

const WAIT: Duration = Duration::from_secs(3600);
const PREFETCH: usize = 4;

fn terms(now: Instant) -> Terms {
    Terms { now, prefetch: PREFETCH, ack_wait: WAIT }
}

fn message(offset: i64, key: &str) -> Arc<Message> {
    Arc::new(Message {
        offset,
        key: key.into(),
        headers: Err("none".into()),
        encoding: Encoding::Json,
        body: Bytes::new(),
        time: Timestamp(0),
    })
}

fn partition(slot: usize) -> Arc<Partition> {
    let place = (Broker::Kafka, "log".into(), slot as i32);
    Arc::new(Partition::new(slot, slot as i64 + 1, place, Retention::default(), 0))
}

fn group(mode: Mode, partitions: &[Arc<Partition>]) -> Group {
    let start = |partition: &Arc<Partition>| Start {
        partition: partition.clone(),
        filter: Filter::Topic(vec![crate::broker::topic_pattern::TopicPattern::parse("mine")]),
        next: 0,
        owed: Vec::new(),
    };
    Group::new(Broker::Kafka, "group".into(), mode, partitions.iter().map(start).collect())
}

#[derive(Clone, Debug)]
enum Step {
    /// Messages for the group, or for others.
    Append {
        partition: usize,
        count: u8,
        mine: bool,
    },
    /// The oldest message leaves memory.
    Evict {
        partition: usize,
    },
    Take {
        member: usize,
        max: usize,
    },
    /// Acknowledges one of what the member holds.
    Ack {
        member: usize,
        which: prop::sample::Index,
    },
    Leave {
        member: usize,
    },
    /// A crash: the group is built again from its standings.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2usize, 1..5u8, any::<bool>())
            .prop_map(|(partition, count, mine)| Step::Append { partition, count, mine }),
        2 => (0..2usize).prop_map(|partition| Step::Evict { partition }),
        5 => (0..3usize, 1..6usize).prop_map(|(member, max)| Step::Take { member, max }),
        5 => (0..3usize, any::<prop::sample::Index>()).prop_map(|(member, which)| Step::Ack { member, which }),
        1 => (0..3usize).prop_map(|member| Step::Leave { member }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The file, the group and what each member was given.
struct World {
    mode: Mode,
    logs: Vec<Vec<Arc<Message>>>,
    partitions: Vec<Arc<Partition>>,
    group: Group,
    members: Vec<Member>,
    held: Vec<Vec<(usize, i64)>>,
    acked: BTreeSet<(usize, i64)>,
    /// The highest offset of each partition that was delivered for the first time.
    first: Vec<i64>,
}

impl World {
    fn new(mode: Mode) -> Self {
        let partitions: Vec<_> = (0..2).map(partition).collect();
        let group = group(mode, &partitions);
        let members = (0..3).map(|_| group.join()).collect();
        let logs = vec![Vec::new(); 2];
        Self {
            mode,
            logs,
            partitions,
            group,
            members,
            held: vec![Vec::new(); 3],
            acked: BTreeSet::new(),
            first: vec![-1; 2],
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append { partition, count, mine } => {
                let log = &mut self.logs[partition];
                let from = log.len();
                log.extend(
                    (0..count).map(|n| message((from + usize::from(n)) as i64, if mine { "mine" } else { "other" })),
                );
                self.partitions[partition].extend(log[from..].iter().cloned());
            }
            Step::Evict { partition } => self.partitions[partition].evict(),
            Step::Take { member, max } => self.take(member, max),
            Step::Ack { member, which } => {
                if !self.held[member].is_empty() {
                    let at = which.index(self.held[member].len());
                    let (cursor, offset) = self.held[member].remove(at);
                    let ack = || self.group.ack(self.members[member], [(cursor, offset)]);
                    assert_eq!(ack(), [cursor].into());
                    assert_eq!(ack(), [].into(), "only once");
                    self.acked.insert((cursor, offset));
                }
            }
            Step::Leave { member } => {
                self.group.leave(self.members[member]);
                self.held[member].clear();
                self.members[member] = self.group.join();
            }
            Step::Restart => self.restart(),
        }
        self.check();
    }

    fn take(&mut self, member: usize, max: usize) {
        let taken = loop {
            while let Some(missing) = self.group.missing(self.members[member], PREFETCH) {
                let wanted = missing.from..missing.below;
                let log = self.logs[missing.cursor].iter();
                let page = log.filter(|m| wanted.contains(&m.offset)).take(3).cloned().collect();
                self.group.supply(&missing, page);
            }
            let taken = self.group.take(self.members[member], max, terms(Instant::now())).0;
            if !taken.is_empty() || self.group.missing(self.members[member], PREFETCH).is_none() {
                break taken;
            }
        };
        assert!(taken.len() <= max);
        for taken in taken {
            let place = (taken.cursor, taken.message.offset);
            assert_eq!(&*taken.message.key, "mine");
            assert!(!self.acked.contains(&place), "{place:?} was done");
            assert!(self.held.iter().flatten().all(|held| *held != place), "{place:?} is in somebody's hands");
            if self.mode == Mode::Ordered {
                let others = (0..3).filter(|other| *other != member).flat_map(|other| &self.held[other]);
                assert!(others.into_iter().all(|(cursor, _)| *cursor != taken.cursor), "one member a partition");
                let behind = self.held[member].iter().filter(|(cursor, _)| *cursor == taken.cursor);
                assert!(behind.into_iter().all(|(_, offset)| *offset < taken.message.offset), "in order");
            }
            if !taken.redelivered {
                let first = &mut self.first[taken.cursor];
                assert!(*first < taken.message.offset, "first deliveries are in order");
                *first = taken.message.offset;
            }
            self.held[member].push(place);
        }
        assert!(self.held[member].len() <= PREFETCH);
    }

    /// As the engine starts a group: from what `standing` says.
    fn restart(&mut self) {
        let standings: Vec<Standing> = (0..2).map(|at| self.group.standing(at).1).collect();
        self.held.iter_mut().for_each(Vec::clear);
        let starts = standings.into_iter().enumerate().map(|(at, standing)| {
            // What is delivered again counts as first again.
            self.first[at] = self.first[at].min(standing.next - 1);
            if self.mode == Mode::Ordered {
                self.acked.retain(|(cursor, offset)| *cursor != at || *offset < standing.next);
            }
            let owed = standing.unacked.iter().map(|offset| self.logs[at][*offset as usize].clone()).collect();
            let filter = Filter::Topic(vec![crate::broker::topic_pattern::TopicPattern::parse("mine")]);
            Start { partition: self.partitions[at].clone(), filter, next: standing.next, owed }
        });
        self.group = Group::new(Broker::Kafka, "group".into(), self.mode, starts.collect());
        self.members = (0..3).map(|_| self.group.join()).collect();
    }

    fn check(&self) {
        for (at, log) in self.logs.iter().enumerate() {
            let owed: Vec<i64> = (log.iter())
                .filter(|m| &*m.key == "mine" && !self.acked.contains(&(at, m.offset)))
                .map(|m| m.offset)
                .collect();
            let needs = self.group.needs(at).unwrap();
            assert!(owed.iter().all(|offset| *offset >= needs), "{owed:?} but only from {needs}");
        }
        let owed = (0..2).flat_map(|at| self.logs[at].iter().map(move |m| (at, m)));
        let owed = owed.filter(|(at, m)| &*m.key == "mine" && !self.acked.contains(&(*at, m.offset))).count();
        assert!(self.group.lag() >= owed as u64);
    }

    /// One member takes and acknowledges everything that is left.
    fn finish(mut self) {
        for member in 1..3 {
            self.step(Step::Leave { member });
        }
        loop {
            self.take(0, PREFETCH);
            if self.held[0].is_empty() {
                break;
            }
            while !self.held[0].is_empty() {
                let (cursor, offset) = self.held[0].remove(0);
                assert_eq!(self.group.ack(self.members[0], [(cursor, offset)]), [cursor].into());
                self.acked.insert((cursor, offset));
            }
        }
        for (at, log) in self.logs.iter().enumerate() {
            for message in log.iter().filter(|m| &*m.key == "mine") {
                assert!(self.acked.contains(&(at, message.offset)), "{} of {at} was never delivered", message.offset);
            }
            assert_eq!(self.group.standing(at).1, Standing { next: log.len() as i64, unacked: Vec::new() });
        }
        assert_eq!(self.group.lag(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn an_ordered_group_delivers_everything_in_order(steps in steps()) {
        let mut world = World::new(Mode::Ordered);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }

    #[test]
    fn a_work_queue_delivers_everything_once_at_a_time(steps in steps()) {
        let mut world = World::new(Mode::WorkQueue);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}

#[test]
fn work_goes_on_when_its_time_is_up() {
    let partition = partition(0);
    let group = group(Mode::WorkQueue, std::slice::from_ref(&partition));
    partition.extend((0..2).map(|offset| message(offset, "mine")));
    let (slow, quick) = (group.join(), group.join());
    let start = Instant::now();
    assert_eq!(group.take(slow, 10, terms(start)).0.len(), 2);
    let just_before = start + WAIT - Duration::from_millis(1);
    assert!(group.take(quick, 10, terms(just_before)).0.is_empty());
    assert_eq!(group.next_deadline(), Some(start + WAIT));

    let taken = group.take(quick, 1, terms(start + WAIT)).0;
    assert!(taken.len() == 1 && taken[0].redelivered);
    // A late answer counts, whoever has the message now or nobody.
    assert_eq!(group.ack(slow, [(0, 0), (0, 1)]), [0].into());
    assert!(group.take(quick, 10, terms(start + WAIT)).0.is_empty());
    assert_eq!(group.standing(0).1, Standing { next: 2, unacked: Vec::new() });
}

#[test]
fn a_lossy_reader_skips_what_has_left_memory() {
    let partition = partition(0);
    let group = group(Mode::Private { lossy: true }, std::slice::from_ref(&partition));
    let member = group.join();
    partition.extend((0..10).map(|offset| message(offset, "mine")));
    (0..7).for_each(|_| partition.evict());
    assert!(group.missing(member, PREFETCH).is_none(), "it never reads the file");
    let taken = group.take(member, 100, terms(Instant::now())).0;
    assert_eq!(taken.iter().map(|taken| taken.message.offset).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(group.skipped(), 7);
}
