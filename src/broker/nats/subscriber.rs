//! Readers: each pulls as much as it is asked for and may hold, no more, so that readers
//! of one durable consumer share its work.
//!
//! JetStream has no dead letters and needs none here: whoever cannot handle a message keeps
//! it in the store, and after that commit acknowledges it like any other or, when nobody ever
//! can, terminates it: the server tells the reason in an advisory.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::Request;
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{HeaderMap, Message, StatusCode, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::hold::{ACK, Held, NAK, Times, term};
use super::{Shared, headers, hold, topology};
use crate::broker::{
    AckToken, Delivery, Encoding, Inbound, Position, Source, Subscriber, Subscription, SubscriptionLost,
};

/// A pull that brought nothing is asked for again.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server says this often that it still knows of a pull.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Bytes that one pull may bring.
const MAX_BYTES: usize = 16 << 20;
const NATS_PENDING_MESSAGES: &str = "Nats-Pending-Messages";
/// The status of a pull that is over, because it is refused or, so described, complete.
const CONFLICT: StatusCode = StatusCode::REQUEST_TERMINATED;
/// Before asking again after a pull was refused.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a figure of the server's is shown before it is asked for anew.
const LAG_AGE: Duration = Duration::from_secs(1);
/// What a pull still brings after its reader has gone is given back for this long.
const AFTERMATH: Duration = Duration::from_millis(200);

pub(super) struct NatsSubscriber {
    pub shared: Arc<Shared>,
}

#[async_trait]
impl Subscriber for NatsSubscriber {
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Inbound>, SubscriptionLost> {
        let Subscription { consumer: name, source, prefetch, ack_wait } = subscription;
        let lost = |why: String| SubscriptionLost(format!("{name}: {why}"));
        let generation = self.shared.usable().map_err(lost)?;
        let connection = &self.shared.connection;
        let (stream, ephemeral, opened) = match source {
            Source::WorkQueue { stream, .. } => {
                (stream, false, topology::declare_consumer(&connection.jetstream, subscription, false).await)
            }
            Source::Ephemeral { stream, filter } => {
                (stream, true, topology::create_ephemeral(&connection.jetstream, name, stream, filter, *ack_wait).await)
            }
            Source::Queue { .. } | Source::Topics(_) => {
                return Err(lost(format!("{source:?} is not a source of nats")));
            }
        };
        let consumer = opened.map_err(|why| lost(why.to_string()))?;
        let inbox = format!("{}.", connection.client.new_inbox());
        let subscriber = connection.client.subscribe(format!("{inbox}*")).await.map_err(|why| lost(why.to_string()))?;
        let held = Arc::new(Held::default());
        let times = Times { server: consumer.cached_info().config.ack_wait, ack_wait: *ack_wait };
        let keeper = {
            let (shared, held, name) = (self.shared.clone(), held.clone(), name.clone());
            crate::task::spawn("nats-keeper", async move {
                hold::keep(&shared.connection, held, times, &name).await;
            })
        };
        Ok(Box::new(NatsInbound {
            shared: self.shared.clone(),
            generation,
            name: name.clone(),
            stream: stream.clone(),
            consumer,
            ephemeral,
            prefetch: (*prefetch).max(1),
            subscriber: Some(subscriber),
            inbox,
            held,
            keeper,
            pull: None,
            pulls: 0,
            not_before: Instant::now(),
            last_token: 0,
            broken: None,
            lag: None,
        }))
    }
}

struct NatsInbound {
    shared: Arc<Shared>,
    generation: u64,
    name: Arc<str>,
    stream: Arc<str>,
    consumer: PullConsumer,
    ephemeral: bool,
    prefetch: usize,
    /// `None` only while it is dropped.
    subscriber: Option<async_nats::Subscriber>,
    inbox: String,
    held: Arc<Held>,
    /// Tells that work goes on; ends with this.
    keeper: JoinHandle<()>,
    pull: Option<Pull>,
    pulls: u64,
    not_before: Instant,
    last_token: u64,
    /// Found out while there was something to hand out first.
    broken: Option<String>,
    lag: Option<(Instant, u64)>,
}

/// What was asked for and has not come.
struct Pull {
    number: u64,
    remaining: usize,
    /// Without a word by then the server has forgotten it.
    silent_by: Instant,
}

impl Pull {
    /// The server has closed it and says how many messages it did not send. The others may
    /// still come: a replicated consumer sends them once its replicas agree.
    fn ended(&mut self, headers: Option<&HeaderMap>) {
        let unsent = headers.and_then(|headers| headers.get(NATS_PENDING_MESSAGES)?.as_str().parse().ok());
        self.remaining = self.remaining.saturating_sub(unsent.unwrap_or(self.remaining));
    }
}

/// What ended a wait.
enum Woken {
    Message(Option<Message>),
    Lost(String),
    /// The time has come to pull (again).
    Time,
}

impl NatsInbound {
    fn lost(&self, why: impl std::fmt::Display) -> SubscriptionLost {
        SubscriptionLost(format!("{}: {why}", self.name))
    }

    fn room(&self) -> usize {
        self.prefetch.saturating_sub(self.held.len())
    }

    /// What has arrived, without waiting.
    fn arrived(&mut self) -> Option<Message> {
        self.subscriber.as_mut()?.next().now_or_never().flatten()
    }

    /// Asks for up to `batch` messages: what is there now, or else the first that come.
    async fn pull(&mut self, batch: usize) -> Result<(), SubscriptionLost> {
        let number = self.pulls + 1;
        let request = serde_json::json!({
            "batch": batch,
            "expires": EXPIRES.as_nanos() as u64,
            "no_wait": true,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
            "max_bytes": MAX_BYTES,
        });
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer.cached_info().name);
        let reply = format!("{}{number}", self.inbox);
        let client = self.shared.connection.client.clone();
        client.publish_with_reply(subject, reply, request.to_string().into()).await.map_err(|why| self.lost(why))?;
        self.pulls = number;
        self.pull = Some(Pull { number, remaining: batch, silent_by: Instant::now() + 2 * HEARTBEAT });
        Ok(())
    }

    /// Waits for the next message, or for the time to pull again. Nothing is lost when
    /// this is given up.
    async fn wait(&mut self) -> Woken {
        let room = self.room() > 0;
        let until = match &self.pull {
            Some(pull) => Some(pull.silent_by),
            None if room => Some(self.not_before),
            None => None,
        };
        let Some(subscriber) = &mut self.subscriber else { return Woken::Message(None) };
        let time = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let (shared, held) = (&self.shared, &self.held);
        tokio::select! {
            biased;
            message = subscriber.next() => Woken::Message(message),
            () = shared.closing.cancelled() => Woken::Lost("shut down".into()),
            why = shared.connection.lost(self.generation) => Woken::Lost(why),
            () = held.freed.notified(), if !room => Woken::Time,
            () = time => Woken::Time,
        }
    }

    /// Up to `max` of what has arrived, after `first`.
    fn deliveries(&mut self, first: Option<Message>, max: usize) -> Vec<Delivery> {
        let mut deliveries: Vec<Delivery> = first.and_then(|message| self.take(message)).into_iter().collect();
        while deliveries.len() < max
            && let Some(message) = self.arrived()
        {
            deliveries.extend(self.take(message));
        }
        deliveries
    }

    /// What a message means: a delivery, or a word about a pull.
    fn take(&mut self, message: Message) -> Option<Delivery> {
        let Some(status) = message.status else { return self.delivery(message) };
        let number = message.subject.strip_prefix(&*self.inbox).and_then(|number| number.parse().ok());
        let description = message.description.as_deref().unwrap_or_default();
        if status == CONFLICT && description.contains("Consumer Deleted") {
            self.broken = Some("the consumer was deleted".into());
            return None;
        }
        let pull = self.pull.as_mut().filter(|pull| Some(pull.number) == number)?;
        if status == StatusCode::IDLE_HEARTBEAT {
            pull.silent_by = Instant::now() + 2 * HEARTBEAT;
            return None;
        }
        pull.ended(message.headers.as_ref());
        if pull.remaining == 0 {
            self.pull = None;
        }
        // Served or expired needs no pause, refused does.
        if status == CONFLICT && !description.contains("Batch Completed") {
            tracing::debug!(consumer = %self.name, %status, description, "a pull was refused");
            self.not_before = Instant::now() + PAUSE;
        }
        None
    }

    fn delivery(&mut self, message: Message) -> Option<Delivery> {
        let message = jetstream::Message { message, context: self.shared.connection.jetstream.clone() };
        let (offset, redelivered) = match message.info() {
            Ok(info) => (info.stream_sequence, info.delivered > 1),
            Err(why) => {
                tracing::warn!(consumer = %self.name, %why, "a message that is not JetStream's was left out");
                return None;
            }
        };
        if let Some(pull) = &mut self.pull {
            pull.remaining = pull.remaining.saturating_sub(1);
            pull.silent_by = Instant::now() + 2 * HEARTBEAT;
            if pull.remaining == 0 {
                self.pull = None;
            }
        }
        let Message { subject, reply, payload, headers, .. } = message.message;
        self.last_token += 1;
        let token = AckToken(self.last_token);
        self.held.add(token, reply?);
        Some(Delivery {
            headers: headers::decode(headers.as_ref()).map(Arc::new),
            encoding: Encoding::Json,
            body: payload,
            position: Position { log: self.stream.clone(), partition: 0, offset: i64::try_from(offset).ok() },
            key: subject.as_str().into(),
            token,
            redelivered,
        })
    }

    /// Answers deliveries, all at once; the server's word on the last is the word on all, since
    /// it takes those of one connection in order.
    async fn settle(&self, mut answers: Vec<(Subject, Bytes)>) -> Result<(), SubscriptionLost> {
        let Some((last, answer)) = answers.pop() else { return Ok(()) };
        let client = &self.shared.connection.client;
        let limit = self.shared.request_timeout;
        let sending = async {
            for (reply, answer) in answers {
                client.publish(reply, answer).await.map_err(|why| why.to_string())?;
            }
            client.send_request(last, Request::new().payload(answer).timeout(None)).await.map_err(|why| why.to_string())
        };
        let sent = tokio::select! {
            sent = tokio::time::timeout(limit, sending) => sent.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))),
            why = self.shared.connection.lost(self.generation) => Err(why),
        };
        sent.map(drop).map_err(|why| self.lost(format!("acknowledging: {why}")))
    }

    /// Does the consumer still exist, and has it a leader?
    async fn verify(&mut self) -> Result<(), SubscriptionLost> {
        self.consumer.info().await.map(drop).map_err(|why| SubscriptionLost(format!("{}: {why}", self.name)))
    }
}

#[async_trait]
impl Inbound for NatsInbound {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>, SubscriptionLost> {
        let max = max.max(1);
        let mut first = None;
        loop {
            let deliveries = self.deliveries(first.take(), max);
            // Nothing was awaited since the last arrival: a dropped future has handed out nothing.
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            if let Some(why) = self.broken.take() {
                return Err(self.lost(why));
            }
            let now = Instant::now();
            if self.pull.as_ref().is_some_and(|pull| pull.silent_by <= now) {
                self.verify().await?;
                self.pull = None;
            }
            let batch = max.min(self.room());
            if self.pull.is_none() && batch > 0 && self.not_before <= now {
                self.pull(batch).await?;
            }
            match self.wait().await {
                Woken::Time => {}
                Woken::Lost(why) => return Err(self.lost(why)),
                Woken::Message(None) => return Err(self.lost("the client is closed")),
                Woken::Message(message) => first = message,
            }
        }
    }

    async fn ack(&mut self, tokens: &[AckToken]) -> Result<(), SubscriptionLost> {
        self.shared.usable().map_err(|why| self.lost(why))?;
        let answers = self.held.take(tokens).into_iter().map(|reply| (reply, ACK)).collect();
        self.settle(answers).await
    }

    async fn terminate(&mut self, ended: &[(AckToken, Arc<str>)]) -> Result<(), SubscriptionLost> {
        self.shared.usable().map_err(|why| self.lost(why))?;
        let held = ended.iter().filter_map(|(token, why)| Some((self.held.take(&[*token]).pop()?, term(why))));
        let answers = held.collect();
        self.settle(answers).await
    }

    async fn lag(&mut self) -> Option<u64> {
        if let Some((at, lag)) = self.lag
            && at.elapsed() < LAG_AGE
        {
            return Some(lag);
        }
        self.shared.usable().ok()?;
        let info = tokio::time::timeout(LAG_AGE, self.consumer.info()).await.ok()?.ok()?;
        let lag = info.num_pending + info.num_ack_pending as u64;
        self.lag = Some((Instant::now(), lag));
        Some(lag)
    }
}

impl Drop for NatsInbound {
    /// Gives back what is held, so that another gets it now and not after `ack_wait`.
    fn drop(&mut self) {
        self.keeper.abort();
        let Some(subscriber) = self.subscriber.take() else { return };
        let mut replies = self.held.take_all();
        if self.ephemeral {
            replies.clear();
        }
        // At once as far as there is room, so that whoever subscribes next comes later.
        let client = &self.shared.connection.client;
        let sent = replies
            .iter()
            .take_while(|reply| client.publish((*reply).clone(), NAK).now_or_never().is_some_and(|sent| sent.is_ok()));
        let sent = sent.count();
        let leftover = Leftover {
            shared: self.shared.clone(),
            subscriber,
            replies: replies.split_off(sent),
            awaits: self.pull.is_some(),
            ephemeral: self.ephemeral.then(|| (self.stream.clone(), self.consumer.cached_info().name.clone())),
        };
        let release = self.shared.releases.track_future(leftover.give_back());
        drop(crate::task::spawn("nats-release", release));
    }
}

/// What a reader leaves behind.
struct Leftover {
    shared: Arc<Shared>,
    subscriber: async_nats::Subscriber,
    replies: Vec<Subject>,
    /// A pull may still bring something.
    awaits: bool,
    /// Stream and name of a consumer to delete.
    ephemeral: Option<(Arc<str>, String)>,
}

impl Leftover {
    /// Ends within a second or two; what fails comes again after `ack_wait`.
    async fn give_back(mut self) {
        let connection = &self.shared.connection;
        if connection.generation().is_err() {
            return;
        }
        if let Some((stream, name)) = &self.ephemeral {
            let deletion = connection.jetstream.delete_consumer_from_stream(name, &**stream);
            // Otherwise it goes by itself when it has been inactive.
            let _ = tokio::time::timeout(LAG_AGE, deletion).await;
            return;
        }
        let client = connection.client.clone();
        let giving = async {
            for reply in std::mem::take(&mut self.replies) {
                let _ = client.publish(reply, NAK).await;
            }
            let mut end = pin!(tokio::time::sleep(if self.awaits { AFTERMATH } else { Duration::ZERO }));
            loop {
                let message = tokio::select! {
                    biased;
                    message = self.subscriber.next() => message,
                    () = &mut end => return,
                };
                let Some(message) = message else { return };
                if let (None, Some(reply)) = (message.status, message.reply) {
                    let _ = client.publish(reply, NAK).await;
                }
            }
        };
        let _ = tokio::time::timeout(LAG_AGE, giving).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_has_ended_waits_for_what_was_sent() {
        let left = |remaining, unsent: Option<&str>| {
            let mut pull = Pull { number: 1, remaining, silent_by: Instant::now() };
            let mut headers = HeaderMap::new();
            if let Some(unsent) = unsent {
                headers.insert(NATS_PENDING_MESSAGES, unsent);
            }
            pull.ended(Some(&headers));
            pull.remaining
        };
        assert_eq!(left(5, Some("0")), 5, "all are on their way");
        assert_eq!(left(5, Some("2")), 3);
        assert_eq!(left(2, Some("2")), 0, "all that were sent have come");
        assert_eq!(left(5, None), 0, "refused");
    }
}
