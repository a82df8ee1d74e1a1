//! A TCP proxy in front of a node, which a test can cut or freeze.

use std::net::SocketAddr;
use std::sync::Arc;

use event_gateway::task;
use lapin::uri::AMQPUri;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes go through.
    Open,
    /// Connections are accepted and kept, but nothing moves.
    Frozen,
    /// Connections end at once.
    Cut,
}

/// Forwards to a node for as long as it lives.
pub struct Proxy {
    pub url: String,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn before(url: &str) -> Self {
        let uri: AMQPUri = url.parse().unwrap();
        let node = format!("{}:{}", uri.authority.host, uri.authority.port);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let accepting = task::spawn("proxy", accept(listener, node.clone(), mode.clone()));
        Self { url: through(url, &node, address), mode, accepting }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.accepting.abort();
    }
}

fn through(url: &str, node: &str, address: SocketAddr) -> String {
    assert!(url.contains(node), "the URL names host and port");
    url.replace(node, &address.to_string())
}

async fn accept(listener: TcpListener, node: String, mode: Arc<watch::Sender<Mode>>) {
    while let Ok((client, _)) = listener.accept().await {
        task::spawn("proxied", forward(client, node.clone(), mode.subscribe()));
    }
}

async fn forward(mut client: TcpStream, node: String, mut mode: watch::Receiver<Mode>) {
    let Ok(mut server) = TcpStream::connect(node).await else { return };
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Cut => return,
            Mode::Frozen => {
                if mode.changed().await.is_err() {
                    return;
                }
            }
            Mode::Open => tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => return,
                changed = mode.changed() => if changed.is_err() { return },
            },
        }
    }
}
