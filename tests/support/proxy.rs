//! A TCP proxy in front of a server: late, slow, silent or away when a test says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use event_gateway::task;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// What becomes of the bytes, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They go through.
    Open,
    /// They arrive so much later.
    Late(Duration),
    /// All connections share so many a second.
    Slow(u32),
    /// They are swallowed, connections stay open and are accepted; those that have lost
    /// something are reset when another mode begins.
    Silent,
    /// Connections are reset at once.
    Cut,
}

/// Read at once, and what one direction of a connection may have on its way.
const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 64;

/// Forwards to a server for as long as it lives.
pub struct Proxy {
    /// As it was given, with the proxy's address instead of the server's.
    pub url: String,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of the server that `url` names: host:port, or a URL with both.
    pub async fn before(url: &str) -> Self {
        Self::at("127.0.0.1:0", url).await
    }

    /// As [`Proxy::before`], where others expect the server to be.
    pub async fn at(listen: &str, url: &str) -> Self {
        let server = place(url);
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        // Owner: the proxy, which aborts it.
        let accepting = task::spawn("proxy", accept(listener, server.to_owned(), mode.clone()));
        Self { url: url.replace(server, &address), mode, accepting }
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

/// Host and port.
fn place(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap();
    authority.rsplit('@').next().unwrap()
}

/// One direction of all connections: when what is under way with [`Mode::Slow`] is through.
#[derive(Default)]
struct Line(Mutex<Option<Instant>>);

impl Line {
    fn arrival(&self, mode: Mode, bytes: usize) -> Instant {
        let now = Instant::now();
        match mode {
            Mode::Late(by) => now + by,
            Mode::Slow(rate) => {
                let mut free = self.0.lock();
                let begin = free.map_or(now, |free| free.max(now));
                *free.insert(begin + Duration::from_secs_f64(bytes as f64 / f64::from(rate)))
            }
            Mode::Open | Mode::Silent | Mode::Cut => now,
        }
    }
}

async fn accept(listener: TcpListener, server: String, mode: Arc<watch::Sender<Mode>>) {
    let lines: Arc<[Line; 2]> = Arc::default();
    while let Ok((client, _)) = listener.accept().await {
        // Ends with its connection.
        task::spawn("proxied", forward(client, server.clone(), mode.subscribe(), lines.clone()));
    }
}

async fn forward(mut client: TcpStream, server: String, mut mode: watch::Receiver<Mode>, lines: Arc<[Line; 2]>) {
    if *mode.borrow_and_update() == Mode::Silent {
        // Who connects now is heard by nobody, later neither.
        let _ = mode.changed().await;
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    let whole = {
        let ((read, write), (other_read, other_write)) = (client.split(), server.split());
        tokio::select! {
            whole = carry(read, other_write, mode.clone(), &lines[0]) => whole,
            whole = carry(other_read, write, mode.clone(), &lines[1]) => whole,
            _ = mode.wait_for(|mode| *mode == Mode::Cut) => false,
        }
    };
    if !whole {
        reset(&client);
        reset(&server);
    }
}

/// Closing it says RST.
fn reset(end: &TcpStream) {
    end.set_zero_linger().unwrap();
}

/// Carries one direction to its end; false when something got lost on the way.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    line: &Line,
) -> bool {
    let mut buffer = vec![0; CHUNK];
    // When each arrives; the end is empty.
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut ended, mut lost) = (false, false);
    loop {
        let now = *mode.borrow();
        let (size, room) = match now {
            // Small, so that connections take turns.
            Mode::Slow(rate) => ((rate as usize / 10).clamp(1, CHUNK), 1),
            _ => (CHUNK, CHUNKS),
        };
        let next = under_way.front().map(|(arrival, _)| *arrival);
        tokio::select! {
            changed = mode.changed() => {
                if changed.is_err() || lost {
                    return false;
                }
                if *mode.borrow() == Mode::Silent {
                    lost = !under_way.is_empty();
                    under_way.clear();
                }
                // What the last mode held back.
                under_way.iter_mut().for_each(|(arrival, _)| *arrival = Instant::now());
            }
            read = from.read(&mut buffer[..size]), if !ended && under_way.len() < room => {
                let bytes = buffer[..read.unwrap_or(0)].to_vec();
                ended = bytes.is_empty();
                if now == Mode::Silent {
                    lost = true;
                } else {
                    under_way.push_back((line.arrival(now, bytes.len()), bytes));
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let bytes = under_way.pop_front().map(|(_, bytes)| bytes).unwrap_or_default();
                if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                    return true;
                }
            }
        }
    }
}
