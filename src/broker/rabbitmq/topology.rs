//! What RabbitMQ must have, as plain data, and how it is declared and checked.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind};

use super::greeting::ServerVersion;
use super::mismatch;
use crate::broker::topic_pattern::TopicPattern;
use crate::broker::{Source, Subscription};
use crate::config;
use crate::domain::catalogue::{Catalogue, ExchangeKind};

/// A queue and what it takes: (exchange, pattern).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub name: Arc<str>,
    pub bindings: Vec<(Arc<str>, Arc<str>)>,
}

/// Everything that is there from the start. Exchanges are durable, queues are quorum queues
/// with one active consumer, whose dead letters go to the dead-letter queue.
#[derive(Clone, Debug)]
pub struct Topology {
    pub exchanges: Vec<(Arc<str>, ExchangeKind)>,
    pub queues: Vec<Queue>,
    pub dead_letter_exchange: Arc<str>,
    /// Also the routing key of every dead letter.
    pub dead_letter_queue: Arc<str>,
    /// Messages a queue holds before it refuses more.
    pub max_length: u32,
    /// Age at which a message becomes a dead letter.
    pub ttl: Option<Duration>,
    /// The same for the queues of single instances, which drop their oldest instead.
    pub broadcast_max_length: u32,
    pub broadcast_ttl: Duration,
}

impl Topology {
    /// The catalogue's exchanges and a queue for each durable consumer.
    pub fn new(config: &config::Rabbitmq, catalogue: &Catalogue, durable: &[Subscription]) -> Self {
        let queues = durable.iter().filter_map(|subscription| match &subscription.source {
            Source::Queue { name, bindings, exclusive: false } => {
                Some(Queue { name: name.clone(), bindings: bindings.clone() })
            }
            _ => None,
        });
        Self {
            exchanges: catalogue.exchanges().iter().map(|exchange| (exchange.name.clone(), exchange.kind)).collect(),
            queues: queues.collect(),
            dead_letter_exchange: config.dead_letter_exchange.as_str().into(),
            dead_letter_queue: config.dead_letter_queue.as_str().into(),
            max_length: config.queue_max_length,
            ttl: config.queue_ttl,
            broadcast_max_length: config.broadcast_max_length,
            broadcast_ttl: config.broadcast_ttl,
        }
    }

    pub(super) fn has_exchange(&self, name: &str) -> bool {
        self.exchanges.iter().any(|(known, _)| **known == *name)
    }

    /// Should a queue of ours get what is published there?
    pub(super) fn takes(&self, exchange: &str, key: &str) -> bool {
        let mut bindings = self.queues.iter().flat_map(|queue| &queue.bindings);
        bindings.any(|(bound, pattern)| **bound == *exchange && TopicPattern::parse(pattern).matches(key))
    }

    fn effect_arguments(&self, server: ServerVersion) -> FieldTable {
        let mut table = FieldTable::default();
        insert(&mut table, "x-queue-type", text("quorum"));
        insert(&mut table, "x-single-active-consumer", AMQPValue::Boolean(true));
        insert(&mut table, "x-max-length", AMQPValue::LongLongInt(self.max_length.into()));
        insert(&mut table, "x-overflow", text("reject-publish"));
        insert(&mut table, "x-dead-letter-exchange", text(&self.dead_letter_exchange));
        insert(&mut table, "x-dead-letter-routing-key", text(&self.dead_letter_queue));
        insert(&mut table, "x-dead-letter-strategy", text("at-least-once"));
        if let Some(ttl) = self.ttl {
            insert(&mut table, "x-message-ttl", milliseconds(ttl));
        }
        unlimited_deliveries(&mut table, server);
        table
    }

    /// No limits. One reader at a time: it releases messages in key order.
    fn dead_letter_arguments(&self, server: ServerVersion) -> FieldTable {
        let mut table = FieldTable::default();
        insert(&mut table, "x-queue-type", text("quorum"));
        insert(&mut table, "x-single-active-consumer", AMQPValue::Boolean(true));
        unlimited_deliveries(&mut table, server);
        table
    }

    fn broadcast_arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        insert(&mut table, "x-message-ttl", milliseconds(self.broadcast_ttl));
        insert(&mut table, "x-max-length", AMQPValue::LongLongInt(self.broadcast_max_length.into()));
        insert(&mut table, "x-overflow", text("drop-head"));
        table
    }
}

const NOT_FOUND: u16 = 404;
/// Somebody made it for one connection alone.
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;

/// Our backlog counts attempts, not the server. From 4.0 on it has a limit unless told
/// otherwise; before, it had none, and would have taken -1 for "dead at the first return".
fn unlimited_deliveries(table: &mut FieldTable, server: ServerVersion) {
    if server.limits_deliveries() {
        insert(table, "x-delivery-limit", AMQPValue::LongLongInt(-1));
    }
}

fn insert(table: &mut FieldTable, key: &str, value: AMQPValue) {
    table.insert(key.into(), value);
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn milliseconds(duration: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// Why something could not be declared.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeclareError {
    /// It is there with other properties: only an operator can settle that.
    #[error("{0}")]
    Mismatch(String),
    /// Anything else, which may pass.
    #[error("{what}: {source}")]
    Failed { what: String, source: lapin::Error },
}

impl DeclareError {
    fn of(what: String, source: lapin::Error) -> Self {
        match refusal(&source) {
            Some((PRECONDITION_FAILED | RESOURCE_LOCKED, said)) => Self::Mismatch(mismatch::explained(&what, &said)),
            _ => Self::Failed { what, source },
        }
    }
}

/// The server's code and words, when it is what refused.
fn refusal(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
        _ => None,
    }
}

/// How many messages wait in a queue.
pub(super) type Depth = (Arc<str>, u32);

/// What declaring everything has shown.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// What waits in the queues that have a limit.
    pub depths: Vec<Depth>,
    /// What is there with other properties, each with what to do. It is left as it is.
    pub mismatches: Vec<String>,
}

impl Declared {
    /// Everything that differs, for people; empty when nothing does.
    pub fn differing(&self) -> String {
        self.mismatches.join("; ")
    }
}

/// Declares everything; what is there already is checked. What differs or fails keeps nothing
/// else from being declared.
///
/// # Errors
/// The first thing that failed for another reason than a mismatch.
pub(super) async fn declare(
    connection: &Connection,
    topology: &Topology,
    server: ServerVersion,
) -> Result<Declared, DeclareError> {
    let mut declaring =
        Declaring { connection, channel: open(connection).await?, mismatches: Vec::new(), failed: None };
    let mut depths = Vec::with_capacity(topology.queues.len());
    let dead_letters = (topology.dead_letter_exchange.clone(), ExchangeKind::Direct);
    let more = (!topology.has_exchange(&dead_letters.0)).then_some(&dead_letters);
    for (name, kind) in topology.exchanges.iter().chain(more) {
        let declared = declare_exchange(&declaring.channel, name, *kind).await;
        declaring.note(declared).await?;
    }
    let dead_letters = Queue {
        name: topology.dead_letter_queue.clone(),
        bindings: vec![(topology.dead_letter_exchange.clone(), topology.dead_letter_queue.clone())],
    };
    let declared = declare_durable(&declaring.channel, &dead_letters, topology.dead_letter_arguments(server)).await;
    declaring.note(declared).await?;
    for queue in &topology.queues {
        let declared = declare_queue(&declaring.channel, topology, queue, server).await;
        if let Some(messages) = declaring.note(declared).await? {
            depths.push((queue.name.clone(), messages));
        }
    }
    match declaring.failed {
        Some(error) => Err(error),
        None => Ok(Declared { depths, mismatches: declaring.mismatches }),
    }
}

/// A refusal closes the channel: what comes next has a new one.
struct Declaring<'c> {
    connection: &'c Connection,
    channel: Channel,
    mismatches: Vec<String>,
    /// The first.
    failed: Option<DeclareError>,
}

impl Declaring<'_> {
    /// `None` if it was not declared; an error when nothing more can be.
    async fn note<T>(&mut self, declared: Result<T, DeclareError>) -> Result<Option<T>, DeclareError> {
        match declared {
            Ok(declared) => return Ok(Some(declared)),
            Err(DeclareError::Mismatch(what)) => self.mismatches.push(what),
            Err(error) if !self.connection.status().connected() => return Err(error),
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
        self.channel = open(self.connection).await?;
        Ok(None)
    }
}

/// What is missing or has other properties; changes nothing. Bindings are not looked at: AMQP
/// does not tell about them.
pub(super) async fn differences(
    connection: &Connection,
    topology: &Topology,
    server: ServerVersion,
) -> Result<Vec<String>, DeclareError> {
    let mut differences = Vec::new();
    let dead_letters = (topology.dead_letter_exchange.clone(), ExchangeKind::Direct);
    let more = (!topology.has_exchange(&dead_letters.0)).then_some(&dead_letters);
    for (name, kind) in topology.exchanges.iter().chain(more) {
        // A refusal closes the channel.
        let channel = open(connection).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let asked = channel.exchange_declare(short(name), lapin_kind(*kind), passive, FieldTable::default()).await;
        if is_there(&format!("exchange {name}"), asked, &mut differences)? {
            note(declare_exchange(&channel, name, *kind).await, &mut differences)?;
        }
    }
    let dead_letters = (topology.dead_letter_queue.clone(), topology.dead_letter_arguments(server));
    let queues = topology.queues.iter().map(|queue| (queue.name.clone(), topology.effect_arguments(server)));
    for (name, arguments) in queues.chain([dead_letters]) {
        let channel = open(connection).await?;
        let asked = depth(&channel, &name).await;
        if is_there(&format!("queue {name}"), asked.map(drop), &mut differences)? {
            let unbound = Queue { name, bindings: Vec::new() };
            note(declare_durable(&channel, &unbound, arguments).await.map(drop), &mut differences)?;
        }
    }
    Ok(differences)
}

/// How many messages wait in a queue, and how many readers it has. Asking for one that is not there
/// closes the channel.
pub(super) async fn depth(channel: &Channel, queue: &Arc<str>) -> lapin::Result<(u32, u32)> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(short(queue), passive, FieldTable::default()).await?;
    Ok((found.message_count(), found.consumer_count()))
}

/// Asks a queue with a single reader for a message, which it refuses: its leader has answered, and a
/// majority. A server that gets no answer from a leader tells of an empty queue without readers.
///
/// # Errors
/// It has not answered, or has given a message: it is another kind of queue.
pub(super) async fn probe(channel: &Channel, queue: &Arc<str>) -> Result<(), String> {
    match channel.basic_get(short(queue), BasicGetOptions::default()).await {
        Ok(None) => Ok(()),
        // It goes back with the channel.
        Ok(Some(_)) => Err("it is not of a single reader, and not empty".to_owned()),
        Err(error) if refusal(&error).is_some_and(|(code, _)| code == RESOURCE_LOCKED) => Ok(()),
        Err(error) => Err(format!("it has no leader that answers: {error}")),
    }
}

/// Does the server say that there is no such thing?
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    refusal(error).is_some_and(|(code, _)| code == NOT_FOUND)
}

fn is_there(what: &str, asked: Result<(), lapin::Error>, differences: &mut Vec<String>) -> Result<bool, DeclareError> {
    match asked {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => {
            differences.push(format!("{what} is missing"));
            Ok(false)
        }
        Err(error) => note(Err(DeclareError::of(what.to_owned(), error)), differences).map(|()| false),
    }
}

/// Declaring what is there only compares it.
fn note(declared: Result<(), DeclareError>, differences: &mut Vec<String>) -> Result<(), DeclareError> {
    match declared {
        Err(DeclareError::Mismatch(what)) => differences.push(what),
        other => return other,
    }
    Ok(())
}

/// Declares the queue of a durable consumer; how many messages wait in it.
pub(super) async fn declare_queue(
    channel: &Channel,
    topology: &Topology,
    queue: &Queue,
    server: ServerVersion,
) -> Result<u32, DeclareError> {
    declare_durable(channel, queue, topology.effect_arguments(server)).await
}

/// Declares a queue of this connection alone, gone with its only consumer.
pub(super) async fn declare_broadcast(
    channel: &Channel,
    topology: &Topology,
    queue: &Queue,
) -> Result<(), DeclareError> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(&queue.name), options, topology.broadcast_arguments()).await;
    declared.map_err(|error| DeclareError::of(format!("queue {}", queue.name), error))?;
    bind(channel, queue).await
}

async fn open(connection: &Connection) -> Result<Channel, DeclareError> {
    let opened = connection.create_channel().await;
    opened.map_err(|source| DeclareError::Failed { what: "opening a channel".into(), source })
}

async fn declare_exchange(channel: &Channel, name: &Arc<str>, kind: ExchangeKind) -> Result<(), DeclareError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(short(name), lapin_kind(kind), options, FieldTable::default()).await;
    declared.map_err(|error| DeclareError::of(format!("exchange {name}"), error))
}

fn lapin_kind(kind: ExchangeKind) -> lapin::ExchangeKind {
    match kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
    }
}

async fn declare_durable(channel: &Channel, queue: &Queue, arguments: FieldTable) -> Result<u32, DeclareError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(&queue.name), options, arguments).await;
    let declared = declared.map_err(|error| DeclareError::of(format!("queue {}", queue.name), error))?;
    bind(channel, queue).await?;
    Ok(declared.message_count())
}

async fn bind(channel: &Channel, queue: &Queue) -> Result<(), DeclareError> {
    for (exchange, pattern) in &queue.bindings {
        let bound = channel
            .queue_bind(
                short(&queue.name),
                short(exchange),
                short(pattern),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await;
        bound.map_err(|error| DeclareError::of(format!("binding {} to {exchange} by {pattern}", queue.name), error))?;
    }
    Ok(())
}

/// Names come from the catalogue and the configuration, which keep to AMQP's 255 bytes.
fn short(text: &Arc<str>) -> ShortString {
    (&**text).into()
}
