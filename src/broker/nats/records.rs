//! Reads streams for whoever compares them with the store.
//!
//! A stream that keeps its messages is read by an ephemeral consumer that acknowledges
//! nothing and gets headers only. A work queue allows no second consumer: its messages are
//! asked for one by one, which is slow (some thousand a second), but few wait there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, Stream as JetStreamStream,
};
use async_nats::jetstream::{self, ErrorCode};
use async_trait::async_trait;
use futures_util::TryStreamExt;

use super::NatsError;
use super::connection::Connection;
use super::headers;
use crate::broker::{BrokerLog, Extent, Keeps, LogError, LogReader, LogRecord, Position};
use crate::config;
use crate::domain::Broker;
use crate::domain::catalogue::{Route, Stream};

/// Messages asked for at once.
const PAGE: usize = 1000;
/// Messages of a work queue in one page.
const PAGE_OF_QUEUE: usize = 100;
/// The consumer goes by itself this long after it was last asked.
const INACTIVE: Duration = Duration::from_secs(60);
/// Before asking again for messages that the server says are there.
const PAUSE: Duration = Duration::from_millis(50);

/// What JetStream holds. Declares nothing.
pub struct NatsLog {
    connection: Connection,
    streams: Vec<Stream>,
    request_timeout: Duration,
}

impl NatsLog {
    /// Connects; `streams` are read as far as they exist.
    ///
    /// # Errors
    /// A setting that cannot work, or no server answers within `nats.connect_timeout`.
    pub async fn open(config: &config::Nats, streams: &[Stream]) -> Result<Self, NatsError> {
        let connection = Connection::open(config).await?;
        connection.wait(config.connect_timeout).await.map_err(NatsError::Away)?;
        Ok(Self { connection, streams: streams.to_vec(), request_timeout: config.request_timeout })
    }

    /// `None`: there is no such stream.
    async fn stream(&self, name: &str) -> Result<Option<JetStreamStream>, LogError> {
        match self.connection.jetstream.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(failed(name, error)),
            },
        }
    }

    async fn extent(&self, stream: &JetStreamStream, name: &Arc<str>) -> Result<Extent, LogError> {
        let Info { config, state, .. } = stream.cached_info();
        let keeps = match config.retention {
            RetentionPolicy::Limits => keeps(config),
            // Interest in a message ends with its acknowledgement, too.
            RetentionPolicy::WorkQueue | RetentionPolicy::Interest => {
                let consumers = stream.consumers().try_collect::<Vec<_>>();
                let consumers = tokio::time::timeout(self.request_timeout, consumers).await;
                let consumers = consumers.map_err(|why| failed(name, why))?.map_err(|why| failed(name, why))?;
                Keeps::UntilConsumed(consumers.iter().flat_map(handed_out).collect())
            }
        };
        let (start, end) = (offset(state.first_sequence), offset(state.last_sequence) + 1);
        Ok(Extent { log: name.clone(), partition: 0, start: start.min(end), end, keeps })
    }
}

fn keeps(config: &Config) -> Keeps {
    let bounded = config.max_messages > 0 || config.max_bytes > 0 || config.max_messages_per_subject > 0;
    if bounded && config.discard == DiscardPolicy::Old {
        Keeps::Bounded
    } else if config.max_age.is_zero() {
        Keeps::For(Duration::MAX)
    } else {
        Keeps::For(config.max_age)
    }
}

/// What a consumer was given, by filter.
fn handed_out(info: &jetstream::consumer::Info) -> Vec<(Arc<str>, i64)> {
    let end = offset(info.delivered.stream_sequence) + 1;
    let config = &info.config;
    let everything = [">".to_owned()];
    let one = std::slice::from_ref(&config.filter_subject);
    let filters = match &*config.filter_subjects {
        [] if config.filter_subject.is_empty() => &everything[..],
        [] => one,
        several => several,
    };
    filters.iter().map(|filter| (filter.as_str().into(), end)).collect()
}

fn offset(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn failed(what: &str, why: impl std::fmt::Display) -> LogError {
    LogError { broker: Broker::Nats, what: what.to_owned(), why: why.to_string() }
}

fn record(log: &Arc<str>, sequence: u64, map: Option<&HeaderMap>) -> LogRecord {
    LogRecord {
        position: Position { log: log.clone(), partition: 0, offset: Some(offset(sequence)) },
        headers: headers::decode(map).map(Arc::new),
    }
}

#[async_trait]
impl BrokerLog for NatsLog {
    fn broker(&self) -> Broker {
        Broker::Nats
    }

    fn log_of(&self, route: &Route) -> Option<Arc<str>> {
        self.streams.iter().find(|stream| stream.covers(&route.target)).map(|stream| stream.name.clone())
    }

    async fn extents(&self) -> Result<Option<Vec<Extent>>, LogError> {
        let mut extents = Vec::new();
        for Stream { name, .. } in &self.streams {
            if let Some(stream) = self.stream(name).await? {
                extents.push(self.extent(&stream, name).await?);
            }
        }
        Ok(Some(extents))
    }

    async fn read(&self, extent: &Extent) -> Result<Box<dyn LogReader>, LogError> {
        let log = extent.log.clone();
        let Some(stream) = self.stream(&log).await? else { return Err(failed(&log, "it was deleted meanwhile")) };
        if matches!(extent.keeps, Keeps::UntilConsumed(_)) || extent.start >= extent.end {
            return Ok(Box::new(QueueReader { log, stream, next: extent.start, end: extent.end }));
        }
        let config = pull::Config {
            name: Some(format!("event-gateway-reading-{:016x}", rand::random::<u64>())),
            description: Some("event-gateway reads this stream once".into()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: extent.start.max(1).unsigned_abs() },
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|why| failed(&log, why))?;
        Ok(Box::new(StreamReader {
            stream,
            consumer,
            given: 0,
            next: extent.start,
            extent: extent.clone(),
            timeout: self.request_timeout,
            over: false,
        }))
    }
}

struct StreamReader {
    stream: JetStreamStream,
    consumer: PullConsumer,
    /// Messages that the consumer has given.
    given: u64,
    next: i64,
    extent: Extent,
    timeout: Duration,
    /// The consumer is gone.
    over: bool,
}

impl StreamReader {
    /// What comes now, maybe nothing: a server may not know yet of a consumer that was just
    /// made, or have lost its leader.
    async fn page(&mut self) -> Result<Vec<LogRecord>, LogError> {
        let log = self.extent.log.clone();
        let mut records = Vec::new();
        let mut messages =
            self.consumer.fetch().max_messages(PAGE).messages().await.map_err(|why| failed(&log, why))?;
        loop {
            let message = match messages.try_next().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(why) => {
                    tracing::debug!(log = &*log, %why, "a page of the stream broke off; asking again");
                    break;
                }
            };
            let info = message.info().map_err(|why| failed(&log, why))?;
            let (sequence, given) = (info.stream_sequence, info.consumer_sequence);
            // What a lost connection swallowed would look like a message that is not there.
            if given != self.given + 1 {
                return Err(failed(&log, "messages were lost on the way"));
            }
            self.given = given;
            self.next = offset(sequence) + 1;
            if self.next <= self.extent.end {
                records.push(record(&log, sequence, message.headers.as_ref()));
            }
        }
        Ok(records)
    }

    /// Is there anything that was not given yet?
    async fn more(&mut self) -> Result<bool, LogError> {
        let info = self.consumer.info().await.map_err(|why| failed(&self.extent.log, why))?;
        if info.delivered.consumer_sequence > self.given {
            return Err(failed(&self.extent.log, "messages were lost on the way"));
        }
        Ok(info.num_pending > 0)
    }

    async fn pages(&mut self) -> Result<Vec<LogRecord>, LogError> {
        while self.next < self.extent.end {
            let records = self.page().await?;
            if !records.is_empty() {
                return Ok(records);
            }
            if !self.more().await? {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.over = true;
        // Otherwise it goes by itself.
        let _ = self.stream.delete_consumer(&self.consumer.cached_info().name).await;
        Ok(Vec::new())
    }
}

#[async_trait]
impl LogReader for StreamReader {
    async fn next(&mut self) -> Result<Vec<LogRecord>, LogError> {
        if self.over {
            return Ok(Vec::new());
        }
        let (limit, log) = (self.timeout, self.extent.log.clone());
        let pages = tokio::time::timeout(limit, self.pages()).await;
        pages.unwrap_or_else(|_| Err(failed(&log, format!("no answer within {limit:?}"))))
    }
}

struct QueueReader {
    log: Arc<str>,
    stream: JetStreamStream,
    next: i64,
    end: i64,
}

#[async_trait]
impl LogReader for QueueReader {
    /// Each request has the connection's request timeout.
    async fn next(&mut self) -> Result<Vec<LogRecord>, LogError> {
        let mut records = Vec::new();
        while self.next < self.end && records.len() < PAGE_OF_QUEUE {
            let found = self.stream.get_first_raw_message_by_subject(">", self.next.max(1).unsigned_abs()).await;
            let message = match found {
                Ok(message) => message,
                Err(why) if why.kind() == RawMessageErrorKind::NoMessageFound => {
                    self.next = self.end;
                    break;
                }
                Err(why) => return Err(failed(&self.log, why)),
            };
            self.next = offset(message.sequence) + 1;
            if self.next <= self.end {
                records.push(record(&self.log, message.sequence, Some(&message.headers)));
            }
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_keeps_follows_from_its_limits() {
        let day = Duration::from_secs(24 * 3600);
        let by_age = Config { max_age: day, ..Config::default() };
        assert_eq!(keeps(&by_age), Keeps::For(day));
        assert_eq!(keeps(&Config::default()), Keeps::For(Duration::MAX));
        let bounded = Config { max_messages: 10, ..by_age };
        assert_eq!(keeps(&bounded), Keeps::Bounded);
        assert_eq!(keeps(&Config { discard: DiscardPolicy::New, ..bounded }), Keeps::For(day));
    }
}
