//! Publishes windows and waits for all their confirms together.
//!
//! Order per key: a window holds one event of a key, and the relay sends the next one
//! after this one's confirm. A message that was reported as not confirmed may still
//! arrive: from a client's buffer after a reconnect, from a server that was frozen. It is
//! the same event, published again until it is confirmed, so whatever arrives late is a
//! repeat of a first occurrence that is in its place; the stream drops it within its
//! duplicate window, the inbox later. To keep such repeats few, nothing is sent without a
//! connection, and a window ends with the connection it was sent over.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::client::PublishErrorKind;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Message, StatusCode, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Shared, headers};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::Broker;
use crate::domain::catalogue::covers;

/// JetStream's answers that no repetition changes.
const REFUSED: [ErrorCode; 2] = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
/// "Service unavailable" in JetStream's answers.
const UNAVAILABLE: usize = 503;

type Outcome = Result<Position, PublishError>;

pub(super) struct NatsPublisher {
    shared: Arc<Shared>,
    /// Inboxes that no window uses now: at most one for each lane.
    inboxes: Mutex<Vec<Inbox>>,
    /// The streams' names, shared by all positions.
    streams: HashMap<String, Arc<str>>,
}

/// Where the confirms of one window after the other arrive. An inbox of our own leaves
/// nothing behind for a confirm that never comes, as a request for each message would.
struct Inbox {
    subscriber: Subscriber,
    prefix: String,
    window: u64,
}

/// What is known about each message of a window.
struct Window {
    outcomes: Vec<Option<Outcome>>,
    /// Why a message that was sent has no confirm: whether it is one message's trouble or
    /// everybody's shows when all have been heard.
    unconfirmed: Vec<(usize, String)>,
    awaited: usize,
}

impl NatsPublisher {
    pub fn new(shared: Arc<Shared>) -> Self {
        let streams = shared.topology.streams.iter().map(|stream| (stream.name.to_string(), stream.name.clone()));
        Self { streams: streams.collect(), shared, inboxes: Mutex::default() }
    }

    async fn inbox(&self) -> Result<Inbox, String> {
        let idle = self.inboxes.lock().pop();
        if let Some(inbox) = idle {
            return Ok(Inbox { window: inbox.window + 1, ..inbox });
        }
        let client = &self.shared.connection.client;
        let prefix = format!("{}.", client.new_inbox());
        let subscriber = client.subscribe(format!("{prefix}>")).await.map_err(|why| why.to_string())?;
        Ok(Inbox { subscriber, prefix, window: 0 })
    }

    /// Hands one message to the connection.
    async fn send(&self, outgoing: &Outgoing, reply: String) -> Result<(), PublishError> {
        let Outgoing { event, route } = outgoing;
        if !self.shared.topology.streams.iter().any(|stream| stream.subjects.iter().any(|s| covers(s, &route.target))) {
            let why = format!("no stream takes subject {}; add one to the catalogue", route.target);
            return Err(if route.optional { PublishError::NoQueueBound } else { PublishError::Permanent(why) });
        }
        let client = &self.shared.connection.client;
        let body = event.payload.json.clone();
        let length = body.len();
        let subject = route.target.to_string();
        let sent = client.publish_with_reply_and_headers(subject, reply, headers::encode(&event.headers()), body).await;
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => PublishError::Permanent(format!(
                "the body has {length} bytes; with its headers at most {} are taken (max_payload of the servers)",
                client.max_payload()
            )),
            PublishErrorKind::InvalidSubject => {
                PublishError::Permanent(format!("{:?} is no subject: leave out spaces", route.target))
            }
            PublishErrorKind::Send => PublishError::Down("the client is closed".into()),
        })
    }

    /// What a server's answer means.
    fn read(&self, answer: &Message) -> Result<Outcome, String> {
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            // A stream without a leader does not listen, nor does one that is gone.
            self.shared.recheck.notify_one();
            return Err("no stream listens: it has no leader now, or was deleted".into());
        }
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(PublishAck { stream, sequence, .. })) => {
                let log = self.streams.get(&stream).cloned().unwrap_or_else(|| stream.into());
                Ok(Ok(Position { log, partition: 0, offset: i64::try_from(sequence).ok() }))
            }
            Ok(Response::Err { error }) if REFUSED.contains(&error.error_code()) => {
                Ok(Err(PublishError::Permanent(error.to_string())))
            }
            Ok(Response::Err { error }) if error.code() == UNAVAILABLE => Err(error.to_string()),
            Ok(Response::Err { error }) => Ok(Err(PublishError::Transient(error.to_string()))),
            Err(why) => Ok(Err(PublishError::Transient(format!("the confirm cannot be read: {why}")))),
        }
    }

    /// Waits until every message sent is answered, the connection is lost (which is then
    /// told) or time is up.
    async fn collect(
        &self,
        inbox: &mut Inbox,
        window: &mut Window,
        generation: u64,
        deadline: Instant,
    ) -> Option<String> {
        let prefix = format!("{}{}.", inbox.prefix, inbox.window);
        let mut lost = std::pin::pin!(self.shared.connection.lost(generation));
        let mut late = std::pin::pin!(tokio::time::sleep_until(deadline));
        while window.awaited > 0 {
            let answer = tokio::select! {
                biased;
                answer = inbox.subscriber.next() => answer,
                why = &mut lost => return Some(why),
                () = &mut late => return None,
            };
            let Some(answer) = answer else { return Some("the client is closed".into()) };
            // Others are late confirms of earlier windows.
            let index = answer.subject.strip_prefix(&*prefix).and_then(|index| index.parse().ok());
            if let Some(index) = index {
                window.answered(index, self.read(&answer));
            }
        }
        None
    }
}

impl Window {
    fn answered(&mut self, index: usize, answer: Result<Outcome, String>) {
        let Some(place @ None) = self.outcomes.get_mut(index) else { return };
        match answer {
            Ok(outcome) => *place = Some(outcome),
            Err(why) if self.unconfirmed.iter().all(|(known, _)| *known != index) => {
                self.unconfirmed.push((index, why));
            }
            Err(_) => return,
        }
        self.awaited -= 1;
    }

    /// Time was up before anybody was heard.
    fn is_unanswered(&self) -> bool {
        self.awaited > 0 && !self.has_confirms()
    }

    fn has_confirms(&self) -> bool {
        self.outcomes.iter().any(|outcome| matches!(outcome, Some(Ok(_))))
    }

    /// Nothing more will be heard.
    fn end(mut self, lost: Option<String>, limit: std::time::Duration) -> Vec<Outcome> {
        // Where others are confirmed, those that are not fail alone: the lane goes on.
        let others = self.has_confirms();
        for (index, why) in std::mem::take(&mut self.unconfirmed) {
            self.outcomes[index] =
                Some(Err(if others { PublishError::Transient(why) } else { PublishError::Down(why) }));
        }
        let missing = || match &lost {
            Some(why) => PublishError::Down(format!("{why}; it may have arrived")),
            None => {
                let why = format!("no confirm within {limit:?}; it may have arrived");
                if others { PublishError::Transient(why) } else { PublishError::Down(why) }
            }
        };
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(missing()))).collect()
    }
}

#[async_trait]
impl Publisher for NatsPublisher {
    fn broker(&self) -> Broker {
        Broker::Nats
    }

    async fn publish(&self, outgoing: &[Outgoing]) -> Vec<Outcome> {
        let down = |why: String| vec![Err(PublishError::Down(why)); outgoing.len()];
        let generation = match self.shared.usable() {
            Ok(generation) => generation,
            Err(why) => return down(why),
        };
        let mut inbox = match self.inbox().await {
            Ok(inbox) => inbox,
            Err(why) => return down(why),
        };
        let limit = self.shared.publish_timeout;
        let deadline = Instant::now() + limit;
        let mut window = Window { outcomes: vec![None; outgoing.len()], unconfirmed: Vec::new(), awaited: 0 };
        let sending = async {
            for (index, message) in outgoing.iter().enumerate() {
                match self.send(message, format!("{}{}.{index}", inbox.prefix, inbox.window)).await {
                    Ok(()) => window.awaited += 1,
                    Err(error) => window.outcomes[index] = Some(Err(error)),
                }
            }
        };
        // Waits for room in the client's buffer, which there may not be when a connection ends.
        let lost = tokio::select! {
            biased;
            () = sending => None,
            why = self.shared.connection.lost(generation) => Some(why),
            () = tokio::time::sleep_until(deadline) => None,
        };
        let lost = match lost {
            None => self.collect(&mut inbox, &mut window, generation, deadline).await,
            lost => lost,
        };
        self.inboxes.lock().push(inbox);
        if lost.is_none() && window.is_unanswered() {
            // A network that carries too little is no lost connection.
            self.shared.recheck.notify_one();
        }
        window.end(lost, limit)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn position() -> Position {
        Position { log: "WORK".into(), partition: 0, offset: Some(1) }
    }

    fn window(messages: usize) -> Window {
        Window { outcomes: vec![None; messages], unconfirmed: Vec::new(), awaited: messages }
    }

    #[test]
    fn what_fails_while_others_are_confirmed_fails_alone() {
        let mut mixed = window(3);
        mixed.answered(0, Ok(Ok(position())));
        mixed.answered(1, Err("no stream listens".into()));
        assert_eq!(mixed.awaited, 1);
        let outcomes = mixed.end(None, LIMIT);
        assert!(outcomes[0].is_ok());
        assert!(matches!(&outcomes[1], Err(PublishError::Transient(why)) if why == "no stream listens"));
        assert!(matches!(&outcomes[2], Err(PublishError::Transient(why)) if why.contains("1s")), "{outcomes:?}");
    }

    #[test]
    fn when_nothing_is_confirmed_the_broker_is_down() {
        let mut silent = window(2);
        silent.answered(0, Err("no stream listens".into()));
        assert!(silent.is_unanswered());
        for outcome in silent.end(None, LIMIT) {
            assert!(matches!(outcome, Err(PublishError::Down(_))), "{outcome:?}");
        }
    }

    #[test]
    fn a_lost_connection_is_everybodys_trouble() {
        let mut lost = window(3);
        lost.answered(0, Ok(Ok(position())));
        lost.answered(1, Ok(Err(PublishError::Permanent("too large".into()))));
        let outcomes = lost.end(Some("gone".into()), LIMIT);
        assert!(outcomes[0].is_ok() && matches!(outcomes[1], Err(PublishError::Permanent(_))));
        assert!(matches!(&outcomes[2], Err(PublishError::Down(why)) if why.starts_with("gone")), "{outcomes:?}");
    }

    #[test]
    fn an_answer_counts_once_and_only_for_a_message_of_the_window() {
        let mut window = window(2);
        window.answered(0, Ok(Ok(position())));
        window.answered(0, Err("again".into()));
        window.answered(9, Ok(Ok(position())));
        assert_eq!(window.awaited, 1);
        window.answered(1, Err("no".into()));
        window.answered(1, Err("no".into()));
        assert_eq!(window.awaited, 0);
    }
}
