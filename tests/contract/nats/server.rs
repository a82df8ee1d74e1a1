//! Servers of a test's own, to secure, freeze and kill. `nats-server` is found on the path
//! or named by `EVENT_GATEWAY_TEST_NATS_SERVER`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::{given, or_skip};

/// The program, or `None` when there is none and that is fine.
pub fn program() -> Option<PathBuf> {
    let named = given("EVENT_GATEWAY_TEST_NATS_SERVER").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join("nats-server")).find(|program| program.is_file())
    };
    or_skip(named.or_else(on_path), "there is no nats-server on the path or in EVENT_GATEWAY_TEST_NATS_SERVER")
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with the test.
pub struct Server {
    program: PathBuf,
    directory: PathBuf,
    pub name: String,
    pub port: u16,
    process: Option<Child>,
}

impl Server {
    /// `more` goes into the configuration beside listener and JetStream.
    pub fn start(program: &Path, directory: &Path, name: &str, port: u16, more: &str) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\n\
             jetstream {{ store_dir: {:?}, max_file_store: 256MB }}\n{more}\n",
            directory.join("store")
        );
        std::fs::write(directory.join("server.conf"), text).unwrap();
        let mut server = Self { program: program.to_owned(), directory, name: name.to_owned(), port, process: None };
        server.run();
        server
    }

    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.join("server.log")).unwrap();
        let process = Command::new(&self.program)
            .arg("-c")
            .arg(self.directory.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
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
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three servers that know each other.
pub struct Cluster {
    pub nodes: Vec<Server>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    pub fn start(program: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let urls: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let nodes = routes
            .iter()
            .enumerate()
            .map(|(index, port)| {
                let cluster = format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{}] }}",
                    urls.join(", ")
                );
                Server::start(program, directory.path(), &format!("node{index}"), free_port(), &cluster)
            })
            .collect();
        Self { nodes, _directory: directory }
    }

    pub fn urls(&self) -> String {
        self.nodes.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    pub fn node(&mut self, name: &str) -> &mut Server {
        self.nodes.iter_mut().find(|node| node.name == name).expect("a node of this cluster")
    }
}
