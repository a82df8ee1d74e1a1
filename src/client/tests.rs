//! The client against socketioxide, the server it will meet.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use socketioxide::handler::ConnectHandler;
use tokio::net::TcpListener;
use url::Url;

use super::{Event, Incoming, Socket, SocketError};

const LIMIT: Duration = Duration::from_secs(10);

struct Server {
    url: Url,
    io: SocketIo,
    /// What clients sent as `note`.
    notes: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
#[error("no such token")]
struct NoSuchToken;

impl Server {
    /// Accepts the token "good"; echoes `echo`, keeps `note`, emits twice for `twice`.
    async fn start(ping: Duration) -> Self {
        let (layer, io) = SocketIo::builder().ping_interval(ping).ping_timeout(ping).build_layer();
        let notes: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = notes.clone();
        let auth = |Data(auth): Data<Value>| async move {
            if auth["token"] == json!("good") { Ok(()) } else { Err(NoSuchToken) }
        };
        let connected = move |socket: SocketRef| {
            let kept = kept.clone();
            async move {
                socket.on("echo", async |Data(data): Data<Value>, ack: AckSender| {
                    ack.send(&json!({ "echo": data })).ok();
                });
                socket.on("note", async move |Data(data): Data<Value>| kept.lock().push(data));
                socket.on("twice", async |socket: SocketRef, ack: AckSender| {
                    socket.emit("tick", &json!(1)).ok();
                    socket.emit("tick", &json!(2)).ok();
                    ack.send(&json!("done")).ok();
                });
            }
        };
        io.ns("/messaging", connected.with(auth));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let app = axum::Router::new().layer(layer);
        let task = crate::task::spawn("socket server", async move { axum::serve(listener, app).await.unwrap() });
        Self { url, io, notes, task }
    }

    async fn client(&self) -> Socket {
        Socket::connect(&self.url, "/messaging", &json!({"token": "good"}), LIMIT).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(socket: &mut Socket) -> Result<Incoming, SocketError> {
    tokio::time::timeout(LIMIT, socket.next()).await.expect("nothing came")
}

fn tick(number: i32) -> Incoming {
    Incoming::Event(Event { name: "tick".to_owned(), data: json!(number) })
}

#[tokio::test]
async fn calls_are_answered_and_events_meanwhile_are_kept_in_order() {
    let server = Server::start(LIMIT).await;
    let mut socket = server.client().await;
    assert_eq!(socket.call("twice", &json!(null), LIMIT).await.unwrap(), json!("done"));
    assert_eq!(socket.call("echo", &json!({"a": [1]}), LIMIT).await.unwrap(), json!({"echo": {"a": [1]}}));
    let id = socket.emit_with_ack("echo", &json!("later"));
    assert_eq!(next(&mut socket).await.unwrap(), tick(1));
    assert_eq!(next(&mut socket).await.unwrap(), tick(2));
    assert_eq!(next(&mut socket).await.unwrap(), Incoming::Ack { id, data: json!({"echo": "later"}) });
}

#[tokio::test]
async fn an_event_that_asks_for_an_ack_gets_it() {
    let server = Server::start(LIMIT).await;
    let mut socket = server.client().await;
    let room = server.io.of("/messaging").unwrap();
    let acks = room.emit_with_ack::<_, Value>("tick", &json!(7)).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap(), tick(7));
    let acks: Vec<_> = tokio::time::timeout(LIMIT, acks.collect()).await.expect("no ack came");
    assert!(acks.len() == 1 && acks[0].1.is_ok(), "{acks:?}");
}

#[tokio::test]
async fn a_refused_token_says_why() {
    let server = Server::start(LIMIT).await;
    let refused = Socket::connect(&server.url, "/messaging", &json!({"token": "bad"}), LIMIT).await;
    assert_eq!(refused.err(), Some(SocketError::Refused("no such token".to_owned())));
    let nowhere = Socket::connect(&server.url, "/nowhere", &json!({}), LIMIT).await;
    assert!(matches!(nowhere.err(), Some(SocketError::Refused(_))));
    let nobody = Socket::connect(&"http://127.0.0.1:1".parse().unwrap(), "/messaging", &json!({}), LIMIT).await;
    assert!(matches!(nobody.err(), Some(SocketError::Unreachable(_))));
}

#[tokio::test]
async fn pings_are_answered_while_waiting() {
    let server = Server::start(Duration::from_millis(100)).await;
    let mut socket = server.client().await;
    // Ten pings; without pongs the server would close after the second.
    let quiet = tokio::time::timeout(Duration::from_secs(1), socket.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(socket.call("echo", &json!(1), LIMIT).await.unwrap(), json!({"echo": 1}));
}

#[tokio::test]
async fn nothing_is_lost_when_waiting_is_given_up_again_and_again() {
    let server = Server::start(Duration::from_millis(20)).await;
    let mut socket = server.client().await;
    let mut got = Vec::new();
    for number in 0..200 {
        server.io.of("/messaging").unwrap().emit("tick", &json!(number)).await.unwrap();
        socket.emit("note", &json!(number));
        if let Ok(incoming) = tokio::time::timeout(Duration::from_micros(200), socket.next()).await {
            got.push(incoming.unwrap());
        }
    }
    while got.len() < 200 {
        got.push(next(&mut socket).await.unwrap());
    }
    assert_eq!(got, (0..200).map(tick).collect::<Vec<_>>());
    socket.call("echo", &json!("flushed"), LIMIT).await.unwrap();
    let mut notes: Vec<_> = server.notes.lock().iter().map(|note| note.as_i64().unwrap()).collect();
    // Handlers of one socket run side by side there.
    notes.sort_unstable();
    assert_eq!(notes, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_end_of_a_connection_is_noticed() {
    let server = Server::start(LIMIT).await;
    let mut socket = server.client().await;
    server.io.of("/messaging").unwrap().disconnect().await.unwrap();
    assert!(matches!(next(&mut socket).await, Err(SocketError::Closed(_))));

    let mut socket = server.client().await;
    server.io.close().await;
    assert!(matches!(next(&mut socket).await, Err(SocketError::Closed(_))));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed() {
    // Speaks the opening, then nothing: no pings.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let server = crate::task::spawn("silent server", async move {
        use futures_util::SinkExt;
        use tokio_tungstenite::tungstenite::Message;
        let (stream, _) = listener.accept().await.unwrap();
        let mut ws = tokio_tungstenite::accept_async(stream).await.unwrap();
        let open = json!({"sid": "s", "upgrades": [], "pingInterval": 100, "pingTimeout": 50, "maxPayload": 1000});
        ws.send(Message::text(format!("0{open}"))).await.unwrap();
        ws.next().await;
        ws.send(Message::text(r#"40/messaging,{"sid":"x"}"#)).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut socket = Socket::connect(&url, "/messaging", &json!({}), LIMIT).await.unwrap();
    assert_eq!(next(&mut socket).await, Err(SocketError::Silent));
    server.abort();
}
