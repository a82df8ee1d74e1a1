//! One connection, as everyone but its own task sees it: what goes out and what came in,
//! both bounded, neither ever waited for.
//!
//! Engine.IO has a channel of its own towards each client. When that is full, its pings
//! fail and the connection dies, and it tells nobody when there is room again. So at most
//! [`WINDOW`] packets of ours are ever in it ([`InChannel`] counts them out), the rest
//! waits here, and a reader that lets too much wait loses its rooms.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engineioxide::{DisconnectReason, Socket, Str};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::{Frame, Kind};
use super::packet::{self, Incoming};
use crate::domain::{Channel, Timestamp};
use crate::telemetry::metrics::Resync;

/// The most packets of ours in Engine.IO's channel.
const WINDOW: u64 = 64;
/// The channel's capacity: pings, and what an upgrade of the transport needs, always fit.
pub(super) const ENGINE_CHANNEL: usize = WINDOW as usize + 16;
/// With so few left in it the channel is filled again.
const LOW_WATER: u64 = WINDOW / 2;
/// Bytes of updates that may wait, whatever their number.
const UPDATE_BYTES: usize = 4 << 20;
/// Bytes of answers that may wait: a client that asks and never reads is cut off.
const ANSWER_BYTES: usize = 8 << 20;
/// Requests that may wait for their turn.
const REQUESTS: usize = 256;
/// Acks asked for and not arrived, and how long they are waited for.
const ASKED: usize = 16;
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// What Engine.IO keeps with each connection.
#[derive(Default)]
pub(super) struct Connection {
    pub link: OnceLock<Arc<Link>>,
}

pub(super) type EngineSocket = Socket<Connection>;

/// See the module.
pub(super) struct Link {
    /// Tells links apart; never used again.
    pub id: u64,
    /// Weak: packets in Engine.IO's channel hold the link.
    engine: Weak<EngineSocket>,
    queue_len: usize,
    out: Mutex<Out>,
    /// Packets taken out of Engine.IO's channel, ever.
    drained: AtomicU64,
    /// Packets put into it, ever. Written under `out`.
    emitted: AtomicU64,
    /// Somebody wants to know when the channel has room.
    waiting: AtomicBool,
    inbox: Mutex<Inbox>,
    /// The link's task has something to look at.
    wake: Notify,
    /// The connection is gone, or must go: nothing is sent any more.
    closed: AtomicBool,
    /// The gateway stops: flush, then close.
    stopping: AtomicBool,
    /// The client answers when it is asked.
    answers: AtomicBool,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Out {
    queue: VecDeque<Arc<Frame>>,
    updates: usize,
    update_bytes: usize,
    answer_bytes: usize,
    /// The reader was too slow: updates are refused until it has read what it has.
    overrun: bool,
    lost: Lost,
}

/// Channels whose updates this socket no longer gets: the last offset it got and why.
pub(super) type Lost = HashMap<Channel, (i64, Resync)>;

#[derive(Default)]
struct Inbox {
    queue: VecDeque<Incoming>,
    bytes: usize,
}

#[derive(Default)]
struct Asked {
    next: i64,
    open: VecDeque<(i64, Timestamp, Instant)>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is on its way.
    Sent,
    /// It waits for the reader.
    Queued,
    /// The reader is too slow or gone; the channel is among the lost ones.
    Refused,
}

/// A shared packet in the channel of one connection.
struct InChannel {
    frame: Arc<Frame>,
    link: Arc<Link>,
}

impl AsRef<[u8]> for InChannel {
    fn as_ref(&self) -> &[u8] {
        self.frame.text.as_bytes()
    }
}

impl Drop for InChannel {
    /// The transport has taken it.
    fn drop(&mut self) {
        let drained = self.link.drained.fetch_add(1, Ordering::SeqCst) + 1;
        let left = self.link.emitted.load(Ordering::SeqCst).saturating_sub(drained);
        if (left == LOW_WATER || left == 0) && self.link.waiting.load(Ordering::SeqCst) {
            self.link.wake.notify_one();
        }
    }
}

impl Link {
    pub fn new(id: u64, engine: &Arc<EngineSocket>, queue_len: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            engine: Arc::downgrade(engine),
            queue_len,
            out: Mutex::default(),
            drained: AtomicU64::new(0),
            emitted: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            inbox: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            asked: Mutex::default(),
        })
    }

    // --- Out ---------------------------------------------------------------------------

    /// Sends a packet, now or as soon as the reader has room.
    pub fn push(self: &Arc<Self>, frame: &Arc<Frame>) -> Pushed {
        if self.is_closed() {
            return Pushed::Refused;
        }
        let mut out = self.out.lock();
        if out.overrun && !frame.is_kept() {
            out.lose(frame);
            return Pushed::Refused;
        }
        if out.queue.is_empty() && self.emit(frame) {
            return Pushed::Sent;
        }
        if frame.is_kept() {
            if out.answer_bytes + frame.text.len() > ANSWER_BYTES && !out.queue.is_empty() {
                drop(out);
                tracing::info!(link = self.id, "a socket asks and does not read: it is closed");
                self.close(DisconnectReason::TransportError);
                return Pushed::Refused;
            }
        } else if out.updates >= self.queue_len || out.update_bytes + frame.text.len() > UPDATE_BYTES {
            out.overrun(frame);
            drop(out);
            self.wake.notify_one();
            return Pushed::Refused;
        }
        out.push(frame.clone());
        self.want_room();
        Pushed::Queued
    }

    /// Sends an update and asks the client to acknowledge it; `occurred_at` is what the
    /// time is taken from. Sends it without asking when too many acks are open.
    pub fn push_asking(self: &Arc<Self>, frame: &Arc<Frame>, occurred_at: Timestamp) -> Pushed {
        let id = {
            let mut asked = self.asked.lock();
            let now = Instant::now();
            while asked.open.front().is_some_and(|(_, _, at)| now.duration_since(*at) > ACK_TIMEOUT) {
                asked.open.pop_front();
            }
            if asked.open.len() >= ASKED {
                drop(asked);
                return self.push(frame);
            }
            let id = asked.next;
            asked.next += 1;
            asked.open.push_back((id, occurred_at, now));
            id
        };
        let Kind::Update { channel, offset } = &frame.kind else { return self.push(frame) };
        self.push(&Frame::update(packet::asking(&frame.text, id), channel.clone(), *offset))
    }

    /// The client has acknowledged `id`: when what it acknowledges had happened.
    pub fn acknowledged(&self, id: i64) -> Option<Timestamp> {
        let mut asked = self.asked.lock();
        let index = asked.open.iter().position(|(open, _, _)| *open == id)?;
        asked.open.remove(index).map(|(_, occurred_at, _)| occurred_at)
    }

    /// Puts waiting packets into the channel as far as there is room.
    pub fn drain(self: &Arc<Self>) {
        let mut out = self.out.lock();
        while let Some(frame) = out.queue.front() {
            if self.is_closed() {
                out.queue.clear();
                break;
            }
            if !self.emit(frame) {
                self.want_room();
                return;
            }
            out.pop();
        }
        self.waiting.store(false, Ordering::SeqCst);
    }

    /// Into Engine.IO's channel, if our share of it has room. Call with `out` locked: that
    /// is what keeps packets in order.
    fn emit(self: &Arc<Self>, frame: &Arc<Frame>) -> bool {
        if self.in_channel() >= WINDOW {
            return false;
        }
        let Some(engine) = self.engine.upgrade() else {
            self.closed.store(true, Ordering::SeqCst);
            return true;
        };
        match engine.reserve() {
            Ok(permit) => {
                self.emitted.fetch_add(1, Ordering::SeqCst);
                let shared = Bytes::from_owner(InChannel { frame: frame.clone(), link: self.clone() });
                // SAFETY: the bytes are those of `Frame::text`, a `str`, and cannot change.
                permit.emit(unsafe { Str::from_bytes_unchecked(shared) });
                true
            }
            // Closed; full it cannot be, with all but our share free.
            Err(error) => {
                tracing::debug!(link = self.id, %error, "a socket's channel takes nothing");
                self.gone();
                true
            }
        }
    }

    fn in_channel(&self) -> u64 {
        self.emitted.load(Ordering::SeqCst).saturating_sub(self.drained.load(Ordering::SeqCst))
    }

    /// Has the task woken when the channel has room. It may have got it just before.
    fn want_room(&self) {
        self.waiting.store(true, Ordering::SeqCst);
        if self.in_channel() <= LOW_WATER {
            self.wake.notify_one();
        }
    }

    /// Everything has been taken by the transport. Otherwise the task is woken when it is.
    pub fn is_flushed(&self) -> bool {
        let out = self.out.lock();
        self.waiting.store(true, Ordering::SeqCst);
        out.queue.is_empty() && self.in_channel() == 0
    }

    /// The reader keeps up: nothing waits here. Otherwise the task is woken when it does.
    pub fn has_room(&self) -> bool {
        let out = self.out.lock();
        if out.queue.is_empty() && self.in_channel() <= LOW_WATER {
            return true;
        }
        self.want_room();
        false
    }

    /// Few enough answers wait to make another.
    pub fn may_answer(&self) -> bool {
        self.out.lock().answer_bytes < (1 << 20)
    }

    /// Packets the client's transport has taken, ever: grows while it reads.
    pub fn progress(&self) -> u64 {
        self.drained.load(Ordering::SeqCst)
    }

    /// Something waits for the client to read.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) || self.in_channel() > 0
    }

    // --- Slow readers --------------------------------------------------------------------

    /// The socket no longer gets `channel` after offset `last`.
    pub fn lose(&self, channel: &Channel, last: i64, why: Resync) {
        self.out.lock().lost.entry(channel.clone()).or_insert((last, why));
        self.wake.notify_one();
    }

    /// The reader was too slow; all its rooms are to be left.
    pub fn is_overrun(&self) -> bool {
        self.out.lock().overrun
    }

    /// The reader has read what it had: what it has lost, and updates are taken again.
    pub fn recover(&self) -> Lost {
        let mut out = self.out.lock();
        out.overrun = false;
        std::mem::take(&mut out.lost)
    }

    pub fn has_lost(&self) -> bool {
        !self.out.lock().lost.is_empty()
    }

    // --- In ------------------------------------------------------------------------------

    /// Takes what the client sent. What is too much is answered at once, or ends the
    /// connection where there is no answer.
    pub fn receive(self: &Arc<Self>, incoming: Incoming) {
        let mut inbox = self.inbox.lock();
        if inbox.queue.len() < REQUESTS && inbox.bytes < UPDATE_BYTES {
            inbox.bytes += weight(&incoming);
            inbox.queue.push_back(incoming);
            drop(inbox);
            self.wake.notify_one();
            return;
        }
        drop(inbox);
        match incoming {
            Incoming::Request(request) => {
                if let Some(id) = request.ack {
                    self.push(&Frame::kept(packet::ack(id, &super::request::too_many())));
                }
            }
            _ => self.close(DisconnectReason::PacketParsingError),
        }
    }

    pub fn next_incoming(&self) -> Option<Incoming> {
        let mut inbox = self.inbox.lock();
        let incoming = inbox.queue.pop_front()?;
        inbox.bytes -= weight(&incoming);
        Some(incoming)
    }

    // --- Life ----------------------------------------------------------------------------

    /// Waits until there may be something to do. Every change since the last call counts.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn set_answers(&self) {
        self.answers.store(true, Ordering::Relaxed);
    }

    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The transport is gone.
    pub fn gone(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the connection. What is in the channel is still written, if the client reads.
    pub fn close(&self, reason: DisconnectReason) {
        self.gone();
        if let Some(engine) = self.engine.upgrade() {
            engine.close(reason);
        }
    }

    pub fn engine(&self) -> Option<Arc<EngineSocket>> {
        self.engine.upgrade()
    }
}

impl Out {
    fn push(&mut self, frame: Arc<Frame>) {
        if frame.is_kept() {
            self.answer_bytes += frame.text.len();
        } else {
            self.updates += 1;
            self.update_bytes += frame.text.len();
        }
        self.queue.push_back(frame);
    }

    fn pop(&mut self) {
        let Some(frame) = self.queue.pop_front() else { return };
        if frame.is_kept() {
            self.answer_bytes -= frame.text.len();
        } else {
            self.updates -= 1;
            self.update_bytes -= frame.text.len();
        }
        if self.queue.is_empty() && self.queue.capacity() > 1024 {
            self.queue = VecDeque::new();
        }
    }

    /// Drops every waiting update, and `refused`, which did not fit.
    fn overrun(&mut self, refused: &Arc<Frame>) {
        self.overrun = true;
        for frame in std::mem::take(&mut self.queue) {
            if frame.is_kept() {
                self.queue.push_back(frame);
            } else {
                self.lose(&frame);
            }
        }
        self.lose(refused);
        self.updates = 0;
        self.update_bytes = 0;
    }

    fn lose(&mut self, frame: &Frame) {
        let Kind::Update { channel, offset } = &frame.kind else { return };
        let last = offset - 1;
        let lost = self.lost.entry(channel.clone()).or_insert((last, Resync::SlowReader));
        lost.0 = lost.0.min(last);
    }
}

fn weight(incoming: &Incoming) -> usize {
    64 + match incoming {
        Incoming::Request(request) => {
            request.event.len() + request.payload.as_ref().map_or(0, |payload| payload.get().len())
        }
        Incoming::Connect { auth: Some(auth) } => auth.len(),
        _ => 0,
    }
}
