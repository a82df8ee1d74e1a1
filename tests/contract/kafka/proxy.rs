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

async fn serve(client: TcpStream, target: String, mode: Mode) {
    match mode {
        Mode::Cut => {}
        Mode::Answer(status) => refuse(client, status).await,
        Mode::Forward => forward(client, &target).await,
    }
}

async fn refuse(mut client: TcpStream, status: u16) {
    // A request's head, as far as one read brings it; whoever has hung up is refused as well.
    let _ = client.read(&mut [0; 16 << 10]).await;
    let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
    let _ = client.write_all(answer.as_bytes()).await;
    let _ = client.shutdown().await;
}

async fn forward(mut client: TcpStream, target: &str) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
