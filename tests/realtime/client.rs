//! A small Socket.IO client over one WebSocket: it hides nothing, so that tests see every
//! packet in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Nothing here takes longer unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client {
    ws: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub sid: String,
    events: VecDeque<Event>,
    next_ack: u64,
    /// Acknowledge what asks for it.
    pub answers: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub body: Value,
    /// The server wants this acknowledged.
    pub ack: Option<u64>,
}

impl Event {
    pub fn channel(&self) -> &str {
        self.body["channel"].as_str().unwrap_or_default()
    }

    pub fn offset(&self) -> i64 {
        self.body["offset"].as_i64().unwrap_or_default()
    }
}

/// What the server sent.
#[derive(Debug)]
pub enum Packet {
    Event(Event),
    Ack(u64, Value),
    ConnectError(Value),
    /// The namespace has thrown the client out.
    Disconnect,
    /// The transport is closed.
    Closed,
}

impl Client {
    /// Connects and comes in with `token`. `Err` is the server's refusal.
    pub async fn connect(address: SocketAddr, token: &str) -> Result<Self, Value> {
        Self::connect_with(address, json!({ "token": token }), &[]).await
    }

    pub async fn connect_with(address: SocketAddr, auth: Value, headers: &[(&str, &str)]) -> Result<Self, Value> {
        let mut client = Self::open(address, headers).await.map_err(Value::String)?;
        client.send(&format!("40/messaging,{auth}")).await;
        match client.packet().await {
            Packet::ConnectError(error) => Err(error),
            Packet::Event(event) if event.name == "connect" => {
                client.sid = event.body["sid"].as_str().unwrap().to_owned();
                Ok(client)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Connects the transport only.
    pub async fn open(address: SocketAddr, headers: &[(&str, &str)]) -> Result<Self, String> {
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (ws, _) = tokio_tungstenite::connect_async(request).await.map_err(|error| error.to_string())?;
        let mut client = Self { ws, sid: String::new(), events: VecDeque::new(), next_ack: 0, answers: false };
        let open = client.text().await.unwrap();
        assert!(open.starts_with("0{"), "{open}");
        Ok(client)
    }

    pub async fn send(&mut self, text: &str) {
        // The server may have closed meanwhile: what it sent before is still to be read.
        let _ = self.ws.send(Message::text(text.to_owned())).await;
    }

    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        let _ = self.ws.send(Message::binary(bytes)).await;
    }

    /// The next text, pings answered. `None` when closed.
    async fn text(&mut self) -> Option<String> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("the server says nothing");
            match message {
                Some(Ok(Message::Text(text))) if text == "2" => self.send("3").await,
                Some(Ok(Message::Text(text))) if text == "1" => return None,
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next packet from the connection itself.
    pub async fn packet(&mut self) -> Packet {
        let Some(text) = self.text().await else { return Packet::Closed };
        let kind = &text[..2];
        let rest = text[2..].strip_prefix("/messaging,").unwrap_or_else(|| panic!("{text}"));
        let split = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (id, json) = rest.split_at(split);
        let id: Option<u64> = id.parse().ok();
        let body = || serde_json::from_str::<Value>(json).unwrap_or_else(|error| panic!("{error}: {text}"));
        match kind {
            "40" => Packet::Event(Event { name: "connect".into(), body: body(), ack: None }),
            "41" => Packet::Disconnect,
            "42" => {
                let [name, body] = serde_json::from_value::<[Value; 2]>(body()).unwrap();
                let event = Event { name: name.as_str().unwrap().to_owned(), body, ack: id };
                if let (Some(id), true) = (id, self.answers) {
                    self.send(&format!("43/messaging,{id}[]")).await;
                }
                Packet::Event(event)
            }
            "43" => {
                let [answer] = serde_json::from_value::<[Value; 1]>(body()).unwrap();
                Packet::Ack(id.unwrap(), answer)
            }
            "44" => Packet::ConnectError(body()),
            other => panic!("{other}: {text}"),
        }
    }

    /// Asks and returns the answer; events that come before it are kept for [`Self::event`].
    pub async fn ask(&mut self, event: &str, payload: Value) -> Value {
        let id = self.ask_later(event, payload).await;
        self.answer(id).await
    }

    /// Asks without waiting; [`Self::answer`] takes the returned number.
    pub async fn ask_later(&mut self, event: &str, payload: Value) -> u64 {
        let id = self.next_ack;
        self.next_ack += 1;
        self.send(&format!("42/messaging,{id}{}", json!([event, payload]))).await;
        id
    }

    pub async fn answer(&mut self, wanted: u64) -> Value {
        loop {
            match self.packet().await {
                Packet::Ack(id, answer) if id == wanted => return answer,
                Packet::Event(event) => self.events.push_back(event),
                other => panic!("waiting for answer {wanted}: {other:?}"),
            }
        }
    }

    /// The next event.
    pub async fn event(&mut self) -> Event {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.packet().await {
            Packet::Event(event) => event,
            other => panic!("waiting for an event: {other:?}"),
        }
    }

    /// The next event of a channel.
    pub async fn event_of(&mut self, channel: &str) -> Event {
        loop {
            let event = self.event().await;
            if event.channel() == channel {
                return event;
            }
        }
    }

    /// Everything that has come without waiting for more than the answer to a question:
    /// whatever was sent before it is in.
    pub async fn received(&mut self) -> Vec<Event> {
        self.ask("seen", json!({})).await;
        self.events.drain(..).collect()
    }

    /// Joins a job's channel.
    pub async fn join(&mut self, job: event_gateway::domain::Id, last_offset: Option<i64>) -> Value {
        self.ask("join_job_channel", json!({ "jobId": job, "lastOffset": last_offset })).await
    }

    /// Reads until the server has closed.
    pub async fn closed(&mut self) {
        while !matches!(self.packet().await, Packet::Closed) {}
    }

    /// Reads an error for another namespace, then until the server has closed.
    pub async fn closed_after_error(&mut self, namespace: &str) {
        let text = self.text().await.unwrap();
        assert!(text.starts_with(&format!("44{namespace},")), "{text}");
        self.closed().await;
    }

    /// Cuts the connection without a word.
    pub fn cut(self) {
        drop(self.ws);
    }
}

/// The offsets in a join's answer.
pub fn offsets(answer: &Value) -> Vec<i64> {
    answer["events"].as_array().unwrap().iter().map(|event| event["offset"].as_i64().unwrap()).collect()
}
