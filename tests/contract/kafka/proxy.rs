//! Stands between the gateway and a registry, and fails the ways networks and gateways do.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Forward,
    /// Connections are closed at once.
    Cut,
    /// Every request gets this status, without a registry's error document.
    Answer(u16),
    /// As `Answer(401)` to connections that do not begin with this `Authorization`, forwards others.
    Guarded(&'static str),
}

pub struct Proxy {
    mode: Arc<Mutex<Mode>>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    task: JoinHandle<()>,
    port: u16,
}

impl Proxy {
    /// In front of `target` (host:port).
    pub async fn start(target: &str, mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(Mutex::new(mode));
        let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let (shared, open, target) = (mode.clone(), connections.clone(), target.to_owned());
        let task = event_gateway::task::spawn("proxy", async move {
            while let Ok((client, _)) = listener.accept().await {
                let mode = *shared.lock();
                let connection = event_gateway::task::spawn("proxied", serve(client, target.clone(), mode));
                open.lock().push(connection);
            }
        });
        Self { mode, connections, task, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on; open connections are cut.
    pub fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
        self.connections.lock().drain(..).for_each(|connection| connection.abort());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Cut);
    }
}

async fn serve(mut client: TcpStream, target: String, mode: Mode) {
    match mode {
        Mode::Cut => {}
        Mode::Answer(status) => {
            first_bytes(&mut client).await;
            refuse(client, status).await;
        }
        Mode::Forward => forward(client, &target, &[]).await,
        Mode::Guarded(authorization) => {
            let first = first_bytes(&mut client).await;
            if String::from_utf8_lossy(&first).contains(&format!("uthorization: {authorization}\r\n")) {
                forward(client, &target, &first).await;
            } else {
                refuse(client, 401).await;
            }
        }
    }
}

/// A request's head, as far as one read brings it; on the loopback that is all of it.
async fn first_bytes(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 16 << 10];
    let read = client.read(&mut bytes).await.unwrap_or(0);
    bytes.truncate(read);
    bytes
}

async fn refuse(mut client: TcpStream, status: u16) {
    let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
    // Whoever has hung up is refused as well.
    let _ = client.write_all(answer.as_bytes()).await;
    let _ = client.shutdown().await;
}

async fn forward(mut client: TcpStream, target: &str, first: &[u8]) {
    if let Ok(mut server) = TcpStream::connect(target).await
        && server.write_all(first).await.is_ok()
    {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
