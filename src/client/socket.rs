//! A Socket.IO client over WebSocket: one connection, one namespace, one owner.
//!
//! [`Socket::next`] drives everything and can be dropped at any await without losing a
//! packet, so it may stand in a `select!`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use url::Url;

use super::packet::{self, Packet};

/// A larger message is not one of the gateway's.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no connection, or no longer one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The gateway refuses this token or namespace.
    #[error("the gateway refuses the connection: {0}")]
    Refused(String),
    #[error("no socket to the gateway: {0}")]
    Unreachable(String),
    #[error("the connection has ended: {0}")]
    Closed(String),
    #[error("the gateway does not answer")]
    Silent,
    #[error("the gateway broke the protocol: {0}")]
    Protocol(String),
}

/// An event from the gateway. If an ack was asked for, it has been sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    /// Its first argument, else null.
    pub data: Value,
}

/// What comes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    Event(Event),
    /// The answer to [`Socket::emit_with_ack`].
    Ack {
        id: u64,
        data: Value,
    },
}

/// A connection to one namespace.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    namespace: String,
    next_ack: u64,
    /// Read, but not asked for yet.
    arrived: VecDeque<Incoming>,
    to_send: VecDeque<String>,
    /// Longer than this without a packet: the connection is dead.
    silence: Duration,
}

impl Socket {
    /// Connects to `namespace` of the gateway at `base`, with the handshake's `auth`.
    pub async fn connect(base: &Url, namespace: &str, auth: &Value, limit: Duration) -> Result<Self, SocketError> {
        timeout(limit, Self::handshake(base, namespace, auth)).await.map_err(|_| SocketError::Silent)?
    }

    async fn handshake(base: &Url, namespace: &str, auth: &Value) -> Result<Self, SocketError> {
        let address = base.as_str().trim_end_matches('/').replacen("http", "ws", 1);
        let request = format!("{address}/socket.io/?EIO=4&transport=websocket")
            .into_client_request()
            .map_err(|error| SocketError::Unreachable(error.to_string()))?;
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES));
        // true: TCP_NODELAY, else small packets wait for each other.
        let (stream, _) =
            connect_async_with_config(request, Some(config), true).await.map_err(|error| match error {
                WsError::Http(response) => SocketError::Refused(response.status().to_string()),
                other => SocketError::Unreachable(other.to_string()),
            })?;
        let mut socket = Self {
            stream,
            namespace: namespace.to_owned(),
            next_ack: 0,
            arrived: VecDeque::new(),
            to_send: VecDeque::new(),
            silence: Duration::MAX,
        };
        let Packet::Open { ping_interval_ms, ping_timeout_ms } = socket.read().await? else {
            return Err(SocketError::Protocol("it does not begin with an open packet".to_owned()));
        };
        socket.silence = Duration::from_millis(ping_interval_ms.saturating_add(ping_timeout_ms));
        socket.to_send.push_back(packet::connect(namespace, auth));
        socket.flush().await?;
        loop {
            match socket.read().await? {
                Packet::Connected => return Ok(socket),
                Packet::Refused(message) => return Err(SocketError::Refused(message)),
                other => socket.take(other).await?,
            }
        }
    }

    /// Queues an event; it goes out with the next [`Socket::next`] or [`Socket::call`].
    pub fn emit(&mut self, name: &str, data: &Value) {
        self.to_send.push_back(packet::event(&self.namespace, None, name, data));
    }

    /// [`Socket::emit`], and the answer comes as [`Incoming::Ack`] with this id.
    pub fn emit_with_ack(&mut self, name: &str, data: &Value) -> u64 {
        let id = self.next_ack;
        self.next_ack += 1;
        self.to_send.push_back(packet::event(&self.namespace, Some(id), name, data));
        id
    }

    /// Sends an event and waits for its answer; what else arrives is kept for [`Socket::next`].
    pub async fn call(&mut self, name: &str, data: &Value, limit: Duration) -> Result<Value, SocketError> {
        let id = self.emit_with_ack(name, data);
        let answered = async {
            loop {
                let is_answer = |incoming: &Incoming| matches!(incoming, Incoming::Ack { id: own, .. } if *own == id);
                if let Some(at) = self.arrived.iter().position(is_answer)
                    && let Some(Incoming::Ack { data, .. }) = self.arrived.remove(at)
                {
                    return Ok(data);
                }
                self.flush().await?;
                let packet = self.read().await?;
                self.take(packet).await?;
            }
        };
        timeout(limit, answered).await.map_err(|_| SocketError::Silent)?
    }

    /// The next event or answer.
    pub async fn next(&mut self) -> Result<Incoming, SocketError> {
        loop {
            self.flush().await?;
            if let Some(incoming) = self.arrived.pop_front() {
                return Ok(incoming);
            }
            let packet = self.read().await?;
            self.take(packet).await?;
        }
    }

    /// Leaves politely; the connection is gone afterwards either way.
    pub async fn close(mut self) {
        self.to_send.push_back(packet::disconnect(&self.namespace));
        let politely = async {
            self.flush().await.ok();
            self.stream.close(None).await.ok();
        };
        timeout(Duration::from_secs(1), politely).await.ok();
    }

    /// Does what a packet asks for.
    async fn take(&mut self, packet: Packet) -> Result<(), SocketError> {
        match packet {
            Packet::Ping => self.to_send.push_back(packet::PONG.to_owned()),
            Packet::Event { ack, name, data } => {
                if let Some(id) = ack {
                    self.to_send.push_back(packet::ack(&self.namespace, id));
                }
                self.arrived.push_back(Incoming::Event(Event { name, data }));
            }
            Packet::Ack { id, data } => self.arrived.push_back(Incoming::Ack { id, data }),
            Packet::Close | Packet::Disconnected => {
                return Err(SocketError::Closed("the gateway closed it".to_owned()));
            }
            Packet::Refused(message) => return Err(SocketError::Refused(message)),
            Packet::Noop | Packet::Connected | Packet::Open { .. } => {}
        }
        // What was read is kept by now, so being dropped in here loses nothing.
        self.flush().await
    }

    async fn read(&mut self) -> Result<Packet, SocketError> {
        loop {
            let message = match timeout(self.silence, self.stream.next()).await {
                Err(_) => return Err(SocketError::Silent),
                Ok(None) => return Err(SocketError::Closed("end of the stream".to_owned())),
                Ok(Some(message)) => message.map_err(closed)?,
            };
            match message {
                Message::Text(text) => return packet::parse(&text, &self.namespace).map_err(SocketError::Protocol),
                Message::Binary(_) => return Err(SocketError::Protocol("it sent a binary frame".to_owned())),
                Message::Close(frame) => {
                    let why = frame.map_or_else(|| "closed".to_owned(), |frame| frame.to_string());
                    return Err(SocketError::Closed(why));
                }
                // tungstenite answers WebSocket pings itself.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    async fn flush(&mut self) -> Result<(), SocketError> {
        while !self.to_send.is_empty() {
            // Popped only when the stream takes it in the same poll.
            poll_fn(|context| self.stream.poll_ready_unpin(context)).await.map_err(closed)?;
            if let Some(text) = self.to_send.pop_front() {
                self.stream.start_send_unpin(Message::text(text)).map_err(closed)?;
            }
        }
        self.stream.flush().await.map_err(closed)
    }
}

fn closed(error: WsError) -> SocketError {
    SocketError::Closed(error.to_string())
}
