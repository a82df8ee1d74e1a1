//! One connection, kept alive: tries every node in turn with growing pauses, for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::RabbitMqError;
use super::greeting::{self, ServerVersion};
use super::health::{Board, Part, Warning};
use super::topology::{self, Declared, Depth, Topology};
use crate::config;

/// Pauses between rounds over all nodes: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A connection that lived shorter was no success.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the server may take to say goodbye.
const CLOSE: Duration = Duration::from_secs(1);
/// A queue that somebody unbinds misses messages that others take, which nobody is told: what
/// is declared is declared anew this often.
const DECLARE_EVERY: Duration = Duration::from_secs(5);
/// A quorum queue is declared on a majority of nodes, some of which may be starting.
const DECLARE: Duration = Duration::from_secs(30);

/// Where and how to connect.
pub(super) struct ConnectorOptions {
    pub nodes: Vec<AMQPUri>,
    tls: OwnedTLSConfig,
    /// Of a connection to one node.
    pub timeout: Duration,
}

impl ConnectorOptions {
    pub fn new(config: &config::Rabbitmq) -> Result<Self, RabbitMqError> {
        let heartbeat = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
        let nodes = config.urls.0.iter().map(|url| {
            let mut uri: AMQPUri =
                (url.expose().parse()).map_err(|reason| RabbitMqError::Setting { field: "rabbitmq.urls", reason })?;
            uri.query.heartbeat = Some(heartbeat);
            Ok(uri)
        });
        let read = |field: &'static str, path: &Option<std::path::PathBuf>| -> Result<Option<String>, RabbitMqError> {
            let Some(path) = path else { return Ok(None) };
            let failed = |error| RabbitMqError::Setting { field, reason: format!("{}: {error}", path.display()) };
            std::fs::read_to_string(path).map(Some).map_err(failed)
        };
        let certificate = read("rabbitmq.cert_file", &config.cert_file)?;
        let key = read("rabbitmq.key_file", &config.key_file)?;
        let identity = certificate
            .zip(key)
            .map(|(certificate, key)| OwnedIdentity::PKCS8 { pem: certificate.into_bytes(), key: key.into_bytes() });
        Ok(Self {
            nodes: nodes.collect::<Result<_, _>>()?,
            tls: OwnedTLSConfig { identity, cert_chain: read("rabbitmq.ca_file", &config.ca_file)? },
            timeout: config.connect_timeout,
        })
    }

    pub fn declare_timeout(&self) -> Duration {
        DECLARE
    }
}

/// A node as messages name it: without credentials.
pub(super) fn shown(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// An open connection.
pub(super) struct Session {
    pub connection: Connection,
    /// Differs between the connections of one connector.
    pub generation: u64,
    pub server: ServerVersion,
    node: String,
    doubt: Mutex<Option<String>>,
    given_up: CancellationToken,
}

impl Session {
    /// It does not answer as it should: connect again, to another node.
    pub fn give_up(&self, why: String) {
        self.doubt.lock().get_or_insert(why);
        self.given_up.cancel();
    }

    fn why_given_up(&self) -> String {
        let why = self.doubt.lock().clone();
        format!("{}: {}", self.node, why.as_deref().unwrap_or("given up"))
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) enum DownReason {
    /// It may come back.
    Unreachable(String),
    /// What the server has contradicts what is declared.
    Topology(String),
}

impl std::fmt::Display for DownReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Topology(why) => f.write_str(why),
        }
    }
}

/// Where a connector stands.
#[derive(Clone)]
pub(super) enum State {
    /// Not every node has been tried yet.
    Starting,
    Up {
        session: Arc<Session>,
        /// Why the server takes no messages at present.
        blocked: Option<Arc<str>>,
    },
    Down(DownReason),
    Closed,
}

/// What uses the connection.
pub(super) struct Connector {
    state: watch::Receiver<State>,
}

impl Connector {
    /// Starts the task that connects. It ends after `stop`.
    pub fn spawn(
        part: Part,
        options: Arc<ConnectorOptions>,
        topology: Option<Arc<Topology>>,
        board: &Arc<Board>,
        stop: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (sender, state) = watch::channel(State::Starting);
        let supervisor = Supervisor { part, options, topology, board: board.clone(), state: sender, generation: 0 };
        let task = crate::task::spawn("rabbitmq-connection", supervisor.run(stop.clone()));
        (Self { state }, task)
    }

    /// The open connection, or why there is none.
    pub fn session(&self) -> Result<Arc<Session>, String> {
        match &*self.state.borrow() {
            State::Up { blocked: Some(why), .. } => Err(blocked(why)),
            State::Up { session, .. } => Ok(session.clone()),
            State::Down(why) => Err(why.to_string()),
            State::Starting => Err("not connected yet".to_owned()),
            State::Closed => Err("closed".to_owned()),
        }
    }

    /// Waits until it is connected or has tried every node once.
    pub async fn tried_all(&self) -> State {
        let mut state = self.state.clone();
        match state.wait_for(|state| !matches!(state, State::Starting)).await {
            Ok(state) => state.clone(),
            Err(_) => State::Closed,
        }
    }
}

/// Names the queues that will refuse messages soon: when they hold four fifths of what they may.
fn nearly_full(depths: &[Depth], limit: u32) -> String {
    let full = depths.iter().filter(|(_, messages)| u64::from(*messages) * 5 >= u64::from(limit) * 4);
    let lines = full.map(|(name, messages)| {
        format!("queue {name} holds {messages} of {limit} messages; is its consumer keeping up?")
    });
    lines.collect::<Vec<_>>().join("; ")
}

fn blocked(why: &str) -> String {
    format!("the server takes no messages at present: {why}")
}

struct Supervisor {
    part: Part,
    options: Arc<ConnectorOptions>,
    topology: Option<Arc<Topology>>,
    board: Arc<Board>,
    state: watch::Sender<State>,
    generation: u64,
}

impl Supervisor {
    async fn run(mut self, stop: CancellationToken) {
        let nodes = self.options.nodes.len();
        // Queues are led by the node that they were declared at: the first named, as a rule. There
        // messages need no way between nodes.
        let mut node = 0;
        let mut failures = 0;
        loop {
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                opened = self.open(&self.options.nodes[node]) => opened,
            };
            match opened {
                Ok(session) => {
                    let since = Instant::now();
                    let why = self.watch(session, &stop).await;
                    failures = if since.elapsed() >= SETTLED { 0 } else { failures + 1 };
                    self.set_down(DownReason::Unreachable(why));
                }
                Err(why) => {
                    failures += 1;
                    tracing::debug!(connection = self.part.name(), %why, "cannot connect to RabbitMQ");
                    let decided = failures as usize >= nodes || matches!(why, DownReason::Topology(_));
                    if decided || !matches!(*self.state.borrow(), State::Starting) {
                        self.set_down(why);
                    }
                }
            }
            node = (node + 1) % nodes;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause(failures, nodes as u32)) => {}
            }
        }
        self.set(State::Closed, Some("closed".to_owned()));
    }

    fn set_down(&self, why: DownReason) {
        let shown = why.to_string();
        self.set(State::Down(why), Some(shown));
    }

    /// Connects to one node and declares the topology.
    async fn open(&self, uri: &AMQPUri) -> Result<Session, DownReason> {
        let node = shown(uri);
        let unreachable = |why: String| DownReason::Unreachable(format!("{node}: {why}"));
        let limit = self.options.timeout;
        let opening = async {
            // lapin has a thread for each connection, which waits for ever for a silent server
            // to speak: whether it does has to be known before.
            let server = greeting::ask(uri, &self.options.tls).await?;
            Ok::<_, lapin::Error>((server, connect(uri.clone(), &self.options, self.part).await?))
        };
        let (server, connection) = match tokio::time::timeout(limit, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("does not answer within {limit:?}"))),
        };
        if let Some(topology) = &self.topology {
            match tokio::time::timeout(DECLARE, topology::declare(&connection, topology, server)).await {
                // Who has begun goes on with what there is.
                Ok(Ok(declared)) if self.generation == 0 && !declared.mismatches.is_empty() => {
                    return Err(DownReason::Topology(declared.differing()));
                }
                Ok(Ok(declared)) => self.tell(topology, &declared),
                Ok(Err(error)) => return Err(unreachable(error.to_string())),
                Err(_) => return Err(unreachable(format!("did not declare the topology within {DECLARE:?}"))),
            }
        }
        let session = Session {
            connection,
            generation: self.generation + 1,
            server,
            node,
            doubt: Mutex::default(),
            given_up: CancellationToken::new(),
        };
        Ok(session)
    }

    /// Follows an open connection until it is lost; says why.
    async fn watch(&mut self, session: Session, stop: &CancellationToken) -> String {
        self.generation = session.generation;
        let session = Arc::new(session);
        let mut events = std::pin::pin!(session.connection.events_listener());
        let mut pulse = tokio::time::interval(Duration::from_secs(1));
        let mut declare = tokio::time::interval_at(Instant::now() + DECLARE_EVERY, DECLARE_EVERY);
        declare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.set_up(&session, None);
        tracing::debug!(connection = self.part.name(), node = session.node, "connected to RabbitMQ");
        let why = loop {
            tokio::select! {
                () = stop.cancelled() => break "closing".to_owned(),
                () = session.given_up.cancelled() => break session.why_given_up(),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => self.set_up(&session, Some(why.into())),
                    Some(Event::ConnectionUnblocked) => self.set_up(&session, None),
                    // Channels fail on their own; the connection's end is what counts here.
                    Some(Event::Error(error)) if !session.connection.status().connected() => {
                        break format!("{}: {error}", session.node);
                    }
                    Some(_) => {}
                    None => break format!("{}: the connection ended", session.node),
                },
                _ = pulse.tick() => {
                    if !session.connection.status().connected() {
                        break format!("{}: the connection was lost", session.node);
                    }
                    self.board.look();
                }
                _ = declare.tick() => self.declare_again(&session).await,
            }
        };
        let closing = session.connection.close(200, "bye".into());
        // A lost connection cannot be closed; the server notices by itself.
        let _ = tokio::time::timeout(CLOSE, closing).await;
        why
    }

    /// Nobody sees one without the other: who reads that it is up may publish.
    fn set(&self, state: State, why: Option<String>) {
        self.state.send_modify(|known| {
            *known = state;
            self.board.set(self.part, why);
        });
    }

    /// Whatever is wrong with it, the connection stays: what is as it must be goes on.
    async fn declare_again(&self, session: &Session) {
        let Some(topology) = &self.topology else { return };
        if session.connection.status().blocked() {
            return;
        }
        let declaring = topology::declare(&session.connection, topology, session.server);
        match tokio::time::timeout(DECLARE_EVERY, declaring).await {
            Ok(Ok(declared)) => self.tell(topology, &declared),
            Ok(Err(error)) => tracing::debug!(%error, "RabbitMQ's topology cannot be declared again"),
            Err(_) => tracing::debug!(limit = ?DECLARE_EVERY, "RabbitMQ's topology was not declared again in time"),
        }
    }

    /// Readiness shows what differs until it is mended, and the log says it once.
    fn tell(&self, topology: &Topology, declared: &Declared) {
        self.board.warn(Warning::NearlyFull, nearly_full(&declared.depths, topology.max_length));
        let why = declared.differing();
        if self.board.warn(Warning::Topology, why.clone()) && !why.is_empty() {
            tracing::error!(why, "RabbitMQ's topology has been changed");
        }
    }

    fn set_up(&self, session: &Arc<Session>, why: Option<Arc<str>>) {
        let shown = why.as_deref().map(blocked);
        self.set(State::Up { session: session.clone(), blocked: why }, shown);
    }
}

/// The other nodes come at once; then the pauses between rounds grow, with jitter, so that
/// not every instance comes back at the same moment.
fn pause(failures: u32, nodes: u32) -> Duration {
    let rounds = failures / nodes;
    if rounds == 0 {
        return BACKOFF.0.mul_f64(rand::random_range(0.0..0.2));
    }
    let longest = (BACKOFF.0 * (1 << (rounds - 1).min(10))).min(BACKOFF.1);
    longest.mul_f64(rand::random_range(0.5..1.0))
}

async fn connect(uri: AMQPUri, options: &Arc<ConnectorOptions>, part: Part) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("event-gateway {} ({})", part.name(), std::process::id()).into());
    let options = options.clone();
    let connect = async move |uri: AMQPUri, runtime| {
        let connecting = uri.connect_with_config_async(options.tls.as_ref(), &runtime);
        match tokio::time::timeout(options.timeout, connecting).await {
            Ok(connected) => connected.map_err(Into::into),
            Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
        }
    };
    Connection::connector(uri, lapin::runtime::default_runtime()?, connect, properties).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_rounds_and_have_an_end() {
        assert!((0..3).all(|failures| pause(failures, 3) <= BACKOFF.0 / 5));
        for (failures, longest) in [(3, 250), (6, 500), (12, 2_000), (3_000, 10_000)] {
            let longest = Duration::from_millis(longest);
            for _ in 0..100 {
                assert!((longest / 2..=longest).contains(&pause(failures, 3)), "{failures}");
            }
        }
    }
}
