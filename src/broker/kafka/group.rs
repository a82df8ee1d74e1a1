//! One member of a consumer group, on a thread of its own: librdkafka's poll blocks, and
//! rebalances happen inside it.
//!
//! The thread fills a buffer that the subscription empties. Buffered and unacknowledged
//! messages together are at most the prefetch; when that is reached for long, partitions
//! are paused and polling goes on, so that the group keeps its member.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::headers;
use super::identity::TopicId;
use super::rebalance::Group;
use crate::broker::AckToken;
use crate::domain::event::Headers;

/// One poll; what ends or stores positions waits at most so long.
const POLL: Duration = Duration::from_millis(50);
/// A buffer that stays full for so long has its partitions paused.
const FULL: Duration = Duration::from_millis(500);

/// Between two questions where paused partitions end, and how long an answer may take.
const ENDS: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(1);

/// What a position's metadata begins with; then comes the id of the topic.
const TOPIC_ID: &str = "topic-id:";

/// A partition of a topic.
pub(super) type Place = (Arc<str>, i32);

/// A message as it was read.
pub(super) struct Received {
    pub place: Place,
    pub offset: i64,
    pub key: Arc<str>,
    pub headers: Result<Headers, String>,
    pub body: Bytes,
}

/// How far a partition of ours is done.
#[derive(Default)]
struct Progress {
    /// Offsets received and not acknowledged.
    open: BTreeSet<i64>,
    /// One after the last offset received.
    next: Option<i64>,
    /// Changed since it was last stored.
    dirty: bool,
    /// One after the partition's last offset, as the brokers say.
    end: Option<i64>,
    /// Where reading began or would begin, as the brokers say.
    start: Option<i64>,
}

impl Progress {
    /// The first offset not done with.
    fn position(&self) -> Option<i64> {
        self.open.first().copied().or(self.next)
    }

    /// Messages not done with; `None` until the brokers have told where the partition ends:
    /// before, what was read would pass for all there is.
    fn lag(&self) -> Option<u64> {
        let end = self.end?.max(self.next.unwrap_or_default());
        let position = self.position().or(self.start)?;
        Some(end.saturating_sub(position).max(0) as u64)
    }
}

#[derive(Default)]
struct Inner {
    buffer: VecDeque<Received>,
    /// Handed out and not acknowledged.
    tokens: BTreeMap<u64, (Place, i64)>,
    last_token: u64,
    ours: HashMap<Place, Progress>,
    /// The group has given us partitions once, or none.
    assigned: bool,
    lost: Option<String>,
    stopping: bool,
}

impl Inner {
    fn lag(&self) -> Option<u64> {
        self.assigned.then(|| self.ours.values().map(Progress::lag).sum()).flatten()
    }
}

/// What the thread and the subscription share.
pub(super) struct State {
    pub consumer: Arc<str>,
    /// The topics that are read, as they were before the group was joined, as far as that is known.
    /// Positions are stored with these ids: offsets of another topic of the same name mean nothing.
    topics: OnceLock<HashMap<Arc<str>, TopicId>>,
    prefetch: usize,
    handover: Duration,
    inner: Mutex<Inner>,
    /// For the subscription: messages have come, or it is over.
    pub arrived: Notify,
    /// For the thread: something was acknowledged or taken, or it is over.
    changed: Condvar,
    /// The thread has ended.
    pub ended: CancellationToken,
}

impl State {
    pub fn new(consumer: Arc<str>, prefetch: usize, handover: Duration) -> Self {
        Self {
            consumer,
            topics: OnceLock::new(),
            prefetch: prefetch.max(1),
            handover,
            inner: Mutex::default(),
            arrived: Notify::new(),
            changed: Condvar::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Before the group is joined.
    pub fn reads(&self, topics: HashMap<Arc<str>, TopicId>) {
        let _ = self.topics.set(topics);
    }

    fn id(&self, topic: &str) -> Option<&TopicId> {
        self.topics.get()?.get(topic)
    }

    /// Was a position with this metadata stored in another topic of that name? Not known of those of
    /// versions before, or of other tools, which say nothing about it.
    pub fn is_of_another(&self, topic: &str, metadata: &str) -> bool {
        let of = metadata.strip_prefix(TOPIC_ID);
        of.zip(self.id(topic)).is_some_and(|(of, id)| *of != **id)
    }

    /// Ends the subscription if one of its topics is not the same any more: the next one begins at
    /// the new one's beginning.
    pub fn compare(&self, now: &HashMap<Arc<str>, TopicId>) {
        for (topic, id) in now {
            if self.id(topic).is_some_and(|before| before != id) {
                self.lose(format!("topic {topic} was deleted and is another one now"));
            }
        }
    }

    /// Asks the thread to end.
    pub fn stop(&self) {
        self.inner.lock().stopping = true;
        self.changed.notify_all();
        self.arrived.notify_waiters();
    }

    /// Is there no more to do than to leave the group?
    pub fn is_over(&self) -> bool {
        let inner = self.inner.lock();
        inner.stopping || inner.lost.is_some()
    }

    /// Why nothing comes any more.
    pub fn lost(&self) -> Option<String> {
        self.inner.lock().lost.clone()
    }

    pub fn lose(&self, why: String) {
        self.inner.lock().lost.get_or_insert(why);
        self.changed.notify_all();
        self.arrived.notify_waiters();
    }

    /// Hands out the first messages, as many as `ready` says yes to and at most `max`; the
    /// value of the first no.
    pub fn take<N>(
        &self,
        max: usize,
        mut ready: impl FnMut(&Received) -> Result<(), N>,
    ) -> (Vec<(AckToken, Received)>, Option<N>) {
        let mut inner = self.inner.lock();
        let mut taken = Vec::new();
        let mut not_ready = None;
        while taken.len() < max && inner.tokens.len() < self.prefetch {
            let Some(first) = inner.buffer.front() else { break };
            if let Err(need) = ready(first) {
                not_ready = Some(need);
                break;
            }
            let Some(message) = inner.buffer.pop_front() else { break };
            inner.last_token += 1;
            let token = inner.last_token;
            inner.tokens.insert(token, (message.place.clone(), message.offset));
            taken.push((AckToken(token), message));
        }
        (taken, not_ready)
    }

    /// Notes that these are done. Those of partitions that have gone are not ours to note.
    pub fn acknowledge(&self, tokens: &[AckToken]) {
        let mut inner = self.inner.lock();
        for token in tokens {
            let Some((place, offset)) = inner.tokens.remove(&token.0) else { continue };
            if let Some(progress) = inner.ours.get_mut(&place) {
                progress.open.remove(&offset);
                progress.dirty = true;
            }
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Messages of our partitions that are not acknowledged; `None` until the brokers have told where
    /// each ends, which they do once a second.
    pub fn lag(&self) -> Option<u64> {
        self.inner.lock().lag()
    }

    /// Partitions that the group has given us.
    pub fn partitions(&self) -> usize {
        self.inner.lock().ours.len()
    }

    fn is_full(&self, inner: &Inner) -> bool {
        inner.buffer.len() + inner.tokens.len() >= self.prefetch
    }

    /// Waits until there is room, but not longer than [`FULL`].
    fn has_room(&self) -> bool {
        let mut inner = self.inner.lock();
        let limit = Instant::now() + FULL;
        while self.is_full(&inner) && !inner.stopping && !inner.ours.values().any(|progress| progress.dirty) {
            if self.changed.wait_until(&mut inner, limit).timed_out() {
                break;
            }
        }
        !self.is_full(&inner)
    }

    fn receive(&self, message: &BorrowedMessage<'_>, names: &[Arc<str>]) {
        let topic = names.iter().find(|name| ***name == *message.topic());
        let topic = topic.cloned().unwrap_or_else(|| message.topic().into());
        let received = Received {
            place: (topic, message.partition()),
            offset: message.offset(),
            key: String::from_utf8_lossy(message.key().unwrap_or_default()).into(),
            headers: headers::read(message.headers()),
            body: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        };
        let mut inner = self.inner.lock();
        let Some(progress) = inner.ours.get_mut(&received.place) else { return };
        progress.open.insert(received.offset);
        progress.next = Some(received.offset + 1);
        inner.buffer.push_back(received);
        drop(inner);
        self.arrived.notify_waiters();
    }

    fn places(&self) -> Vec<Place> {
        self.inner.lock().ours.keys().cloned().collect()
    }

    fn ends(&self, place: &Place, start: i64, end: i64) {
        if let Some(progress) = self.inner.lock().ours.get_mut(place) {
            progress.end = Some(end);
            // Where nothing was committed or read, reading begins at the oldest.
            progress.start.get_or_insert(start);
        }
    }

    /// Positions to store, with what is new in them.
    pub fn positions(&self, only: Option<&[Place]>) -> Option<TopicPartitionList> {
        let mut inner = self.inner.lock();
        let mut list = TopicPartitionList::new();
        for (place, progress) in &mut inner.ours {
            if only.is_some_and(|only| !only.contains(place)) || !std::mem::take(&mut progress.dirty) {
                continue;
            }
            let Some(position) = progress.position() else { continue };
            if let Err(error) = list.add_partition_offset(&place.0, place.1, Offset::Offset(position)) {
                tracing::warn!(consumer = %self.consumer, %error, "a position cannot be stored");
            } else if let (Some(mut stored), Some(id)) = (list.find_partition(&place.0, place.1), self.id(&place.0)) {
                stored.set_metadata(format!("{TOPIC_ID}{id}"));
            }
        }
        (list.count() > 0).then_some(list)
    }

    /// Lets go of partitions: nothing of them is handed out any more, and what is being
    /// handled gets some time to be acknowledged, so that the next owner does not see it.
    pub fn hand_over(&self, places: &[Place]) {
        let mut inner = self.inner.lock();
        let mut dropped = Vec::new();
        inner.buffer.retain(|message| {
            let stays = !places.contains(&message.place);
            if !stays {
                dropped.push((message.place.clone(), message.offset));
            }
            stays
        });
        // The first of them is where the next owner begins.
        for (place, offset) in dropped {
            if let Some(progress) = inner.ours.get_mut(&place) {
                progress.next = Some(progress.next.map_or(offset, |next| next.min(offset)));
                progress.open.remove(&offset);
            }
        }
        let limit = Instant::now() + self.handover;
        // Nobody acknowledges any more what is lost.
        while !inner.stopping && inner.lost.is_none() && inner.tokens.values().any(|(place, _)| places.contains(place))
        {
            if self.changed.wait_until(&mut inner, limit).timed_out() {
                tracing::debug!(consumer = %self.consumer, "what is being handled will be handled again elsewhere");
                break;
            }
        }
    }

    /// What the brokers have told about our partitions.
    pub fn told(&self, statistics: &Statistics) {
        let mut inner = self.inner.lock();
        let known = |offset: i64| (offset >= 0).then_some(offset);
        for ((topic, partition), progress) in &mut inner.ours {
            let Some(told) = statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(partition)) else {
                continue;
            };
            progress.end = known(told.hi_offset).max(progress.end);
            let start = known(told.app_offset).or(known(told.committed_offset)).or(known(told.lo_offset));
            progress.start = start.or(progress.start);
        }
    }

    /// The group has given us these, or none.
    pub fn come(&self, places: Vec<Place>) {
        let mut inner = self.inner.lock();
        inner.assigned = true;
        inner.ours.extend(places.into_iter().map(|place| (place, Progress::default())));
    }

    pub fn forget(&self, places: &[Place]) {
        let mut inner = self.inner.lock();
        inner.tokens.retain(|_, (place, _)| !places.contains(place));
        inner.ours.retain(|place, _| !places.contains(place));
        drop(inner);
        self.changed.notify_all();
    }
}

/// Partitions that have gone meanwhile are refused: the next owner repeats a little.
pub(super) fn store(state: &State, consumer: &BaseConsumer<Group>, positions: &TopicPartitionList) {
    if let Err(error) = consumer.store_offsets(positions) {
        tracing::debug!(consumer = %state.consumer, %error, "positions of partitions that have gone");
    }
}

/// Starts the member's thread. Nobody joins it: where brokers are away, leaving the group lasts
/// until they are back, and neither a new subscription nor the end of the process waits for that.
pub(super) fn start(state: Arc<State>, consumer: BaseConsumer<Group>, topics: Vec<Arc<str>>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("kafka-group".to_owned());
    let member = thread.spawn(move || {
        let _ended = state.ended.clone().drop_guard();
        run(&state, consumer, &topics);
    });
    member.map(drop)
}

/// Polls until it is told to stop or cannot go on, then leaves the group.
fn run(state: &State, consumer: BaseConsumer<Group>, topics: &[Arc<str>]) {
    let mut paused = false;
    let mut asked = Instant::now();
    while !state.is_over() {
        if let Some(positions) = state.positions(None) {
            store(state, &consumer, &positions);
        }
        let room = state.has_room();
        if room == paused {
            paused = !room;
            pause(state, &consumer, paused);
        }
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => state.receive(&message, topics),
            Some(Err(ClientError::MessageConsumptionFatal(code))) => {
                state.lose(format!("the client has failed for good: {code}"));
            }
            // A topic was deleted, rights were taken away: a new subscription says what is wrong.
            Some(Err(error)) if is_final(&error) => state.lose(error.to_string()),
            // Everything else the client recovers from by itself.
            Some(Err(error)) => tracing::debug!(consumer = %state.consumer, %error, "while polling"),
        }
        if paused {
            // Partitions that came meanwhile deliver: they wait with the others.
            pause(state, &consumer, true);
            if asked.elapsed() > ENDS {
                ask_for_ends(state, &consumer);
                asked = Instant::now();
            }
        }
    }
    if let Some(positions) = state.positions(None) {
        store(state, &consumer, &positions);
    }
    // Leaves the group and commits what is stored.
    drop(consumer);
    state.lose("the subscription has ended".to_owned());
}

/// Paused partitions are not fetched, and only fetches tell where a partition begins and ends.
fn ask_for_ends(state: &State, consumer: &BaseConsumer<Group>) {
    for place in state.places() {
        match consumer.fetch_watermarks(&place.0, place.1, ANSWER) {
            Ok((start, end)) => state.ends(&place, start, end),
            // The others would have to be waited for as well.
            Err(error) => return tracing::debug!(consumer = %state.consumer, %error, "ends are not known"),
        }
    }
}

fn is_final(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed)
    )
}

fn pause(state: &State, consumer: &BaseConsumer<Group>, paused: bool) {
    let changed = consumer.assignment().and_then(|all| {
        if all.count() == 0 {
            Ok(())
        } else if paused {
            consumer.pause(&all)
        } else {
            consumer.resume(&all)
        }
    });
    if let Err(error) = changed {
        tracing::debug!(consumer = %state.consumer, %error, paused, "while pausing");
    }
}
