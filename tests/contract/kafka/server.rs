//! Kafka nodes of a test's own, to secure, freeze and kill. `EVENT_GATEWAY_TEST_KAFKA_LIBS`
//! names the directory of Kafka's jars (`scripts/brokers env tests` says it).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::environment::{given, or_skip};

/// How long virtual machines may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Settings that the real clusters have, too.
const SHARED: &str = include_str!("../../../deploy/brokers/kafka.properties");

/// Where the jars are, or `None` when they are nowhere and that is fine.
pub fn jars() -> Option<PathBuf> {
    let found = given("EVENT_GATEWAY_TEST_KAFKA_LIBS").map(PathBuf::from).filter(|path| path.is_dir());
    or_skip(found, "EVENT_GATEWAY_TEST_KAFKA_LIBS names no directory")
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A node, broker and controller at once. It ends with the test.
pub struct Node {
    jars: PathBuf,
    directory: PathBuf,
    pub id: i32,
    pub port: u16,
    process: Option<Child>,
}

impl Node {
    fn java(&self, main: &str) -> Command {
        let mut java = Command::new("java");
        java.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .arg(format!("-Dlog4j2.configurationFile={}", self.directory.join("log.yaml").display()))
            .arg(main)
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        for stream in [Command::stdout, Command::stderr] {
            stream(&mut java, Stdio::from(self.log()));
        }
        java
    }

    fn log(&self) -> std::fs::File {
        std::fs::File::options().create(true).append(true).open(self.directory.join("log")).unwrap()
    }

    fn format(&self, more: &[&str]) -> Child {
        let id = ["format", "-t", "AAAAAAAAQACAAAAAAAAAAA", "-c", "server.properties"];
        self.java("kafka.tools.StorageTool").args(id).args(more).spawn().unwrap()
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "node {} runs", self.id);
        self.process = Some(self.java("kafka.Kafka").arg("server.properties").spawn().unwrap());
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        kill(Pid::from_raw(process.id() as i32), signal).unwrap();
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(8).collect();
            eprintln!("node {} said last:", self.id);
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Nodes that know each other.
pub struct Cluster {
    pub nodes: Vec<Node>,
    _directory: tempfile::TempDir,
}

/// What differs from one cluster to another.
#[derive(Clone, Default)]
pub struct Shape {
    pub nodes: usize,
    /// Of the listener that clients use; with another protocol than PLAINTEXT, the nodes
    /// have one of their own for each other.
    pub protocol: Option<&'static str>,
    pub properties: String,
    /// For the format of the storage, e.g. users.
    pub format: Vec<&'static str>,
}

impl Cluster {
    /// Takes some seconds and blocks meanwhile.
    pub fn start(jars: &Path, shape: &Shape) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let controllers: Vec<u16> = (0..shape.nodes).map(|_| free_port()).collect();
        let mut nodes: Vec<Node> = (1..=shape.nodes)
            .map(|id| {
                let directory = directory.path().join(id.to_string());
                std::fs::create_dir(&directory).unwrap();
                std::fs::write(directory.join("log.yaml"), LOGGING).unwrap();
                let node = Node { jars: jars.to_owned(), directory, id: id as i32, port: free_port(), process: None };
                std::fs::write(node.directory.join("server.properties"), properties(&node, &controllers, shape))
                    .unwrap();
                node
            })
            .collect();
        let formats: Vec<Child> = nodes.iter().map(|node| node.format(&shape.format)).collect();
        for (mut format, node) in formats.into_iter().zip(&nodes) {
            let log = node.directory.join("log");
            assert!(format.wait().unwrap().success(), "{}", std::fs::read_to_string(log).unwrap());
        }
        nodes.iter_mut().for_each(Node::start);
        Self { nodes, _directory: directory }
    }

    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// Waits until every node that runs takes part; `client` says how to connect.
    pub fn wait(&self, mut client: ClientConfig) {
        let wanted = self.nodes.iter().filter(|node| node.is_running()).count();
        let client: BaseConsumer = client.set("bootstrap.servers", self.bootstrap()).create().unwrap();
        let limit = Instant::now() + START;
        loop {
            let known = client.fetch_metadata(None, Duration::from_secs(5));
            match known {
                Ok(metadata) if metadata.brokers().len() >= wanted => return,
                _ if Instant::now() < limit => std::thread::sleep(Duration::from_millis(100)),
                other => panic!("{wanted} nodes are not there: {:?}", other.map(|metadata| metadata.brokers().len())),
            }
        }
    }

    pub fn node(&mut self, id: i32) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).expect("a node of this cluster")
    }

    /// The id of the node that leads a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", self.bootstrap()).create().unwrap();
        let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        metadata.topics()[0].partitions().iter().find(|known| known.id() == partition).unwrap().leader()
    }
}

const LOGGING: &str = r#"Configuration:
  Appenders:
    Console: { name: STDOUT, PatternLayout: { pattern: "%d %p %c %m%n" } }
  Loggers:
    Root: { level: WARN, AppenderRef: [ { ref: STDOUT } ] }
"#;

/// Properties that come later rule.
fn properties(node: &Node, controllers: &[u16], shape: &Shape) -> String {
    let (id, port, controller) = (node.id, node.port, controllers[node.id as usize - 1]);
    let voters: Vec<String> =
        controllers.iter().enumerate().map(|(n, port)| format!("{}@127.0.0.1:{port}", n + 1)).collect();
    let mut listeners = format!("CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
    let mut advertised = format!("CLIENT://127.0.0.1:{port}");
    let mut inter_broker = "CLIENT";
    if shape.protocol.is_some() {
        let internal = format!(",INTERNAL://127.0.0.1:{}", free_port());
        listeners.push_str(&internal);
        advertised.push_str(&internal);
        inter_broker = "INTERNAL";
    }
    let protocol = shape.protocol.unwrap_or("PLAINTEXT");
    format!(
        "{SHARED}\n\
         node.id={id}\n\
         controller.quorum.voters={}\n\
         listeners={listeners}\n\
         advertised.listeners={advertised}\n\
         listener.security.protocol.map=CLIENT:{protocol},CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT\n\
         inter.broker.listener.name={inter_broker}\n\
         log.dirs={}\n\
         {}\n",
        voters.join(","),
        node.directory.join("data").display(),
        shape.properties
    )
}
