//! A way to a PostgreSQL server that cuts the next COMMIT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use event_gateway::task;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What happens to the next COMMIT that passes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    No = 0,
    /// The server never gets it.
    Before = 1,
    /// The server does it, the client gets no answer.
    After = 2,
    /// Neither: the server's side stays open, the client's is closed.
    Hold = 3,
    /// Nothing goes on, both sides stay open.
    Freeze = 4,
    /// As `After`, and nobody gets through from then on.
    AfterAndAway = 5,
    /// As `Before`, and nobody gets through from then on.
    BeforeAndAway = 6,
}

/// What the proxy's connections share.
#[derive(Default)]
struct Orders {
    cut: AtomicU8,
    /// What a connection has to have sent for its COMMIT to be cut.
    word: Mutex<String>,
    away: AtomicBool,
    frozen: Notify,
}

pub struct Proxy {
    pub address: SocketAddr,
    orders: Arc<Orders>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: (String, u16)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let orders = Arc::new(Orders::default());
        let given = orders.clone();
        // Owner: the proxy, which aborts it.
        let accepting = task::spawn("proxy", async move {
            while let Ok((client, _)) = listener.accept().await {
                if given.away.load(Ordering::SeqCst) {
                    continue;
                }
                let server = TcpStream::connect((server.0.as_str(), server.1)).await.unwrap();
                // Ends with its connection.
                task::spawn("proxied", relay(client, server, given.clone()));
            }
        });
        Self { address, orders, accepting }
    }

    pub fn cut_next_commit(&self, how: Cut) {
        self.cut_commit_of("", how);
    }

    /// As [`Proxy::cut_next_commit`], of a connection that has sent this word.
    pub fn cut_commit_of(&self, word: &str, how: Cut) {
        *self.orders.word.lock() = word.to_owned();
        self.orders.cut.store(how as u8, Ordering::SeqCst);
    }

    /// The server can be reached again.
    pub fn heal(&self) {
        self.orders.away.store(false, Ordering::SeqCst);
    }

    /// Until [`Cut::Freeze`] has stopped a COMMIT.
    pub async fn frozen(&self) {
        self.orders.frozen.notified().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes bytes until one side ends or a COMMIT is cut.
async fn relay(mut client: TcpStream, mut server: TcpStream, orders: Arc<Orders>) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    // The word that it has sent last, of those that were asked for.
    let mut sent = String::new();
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                if orders.away.load(Ordering::SeqCst) {
                    return;
                }
                let word = orders.word.lock().clone();
                if has(&up[..count], &word) {
                    sent.clone_from(&word);
                }
                let commit = sent == word && has(&up[..count], "COMMIT\0");
                let how = if commit { orders.cut.swap(Cut::No as u8, Ordering::SeqCst) } else { Cut::No as u8 };
                if how == Cut::AfterAndAway as u8 || how == Cut::BeforeAndAway as u8 {
                    orders.away.store(true, Ordering::SeqCst);
                }
                if how == Cut::Before as u8 || how == Cut::BeforeAndAway as u8 {
                    return;
                }
                if how == Cut::Freeze as u8 {
                    orders.frozen.notify_one();
                    // Until the test ends.
                    std::future::pending::<()>().await;
                }
                if how == Cut::Hold as u8 {
                    drop(client);
                    // Until the server ends it.
                    while matches!(server.read(&mut down).await, Ok(1..)) {}
                    return;
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if how == Cut::After as u8 || how == Cut::AfterAndAway as u8 {
                    // The answer shows that it is done.
                    let answered = server.read(&mut down).await;
                    assert!(matches!(answered, Ok(1..)), "the server committed");
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|part| part == text.as_bytes())
}
