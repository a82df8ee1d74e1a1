//! A gateway of its own for a test: the real binary on a free port.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fresh::World;
use crate::program::{Ended, Program, THIS_VERSION};

const LIMIT: Duration = Duration::from_secs(60);

pub struct Gateway {
    pub program: Program,
    pub address: SocketAddr,
    /// What serves; clients are of this version.
    pub binary: PathBuf,
    child: Child,
    /// Where it is alone on the brokers, if this run is on them; goes after the child has ended.
    world: Option<World>,
}

impl Gateway {
    /// Starts in an empty directory, in development mode: on brokers that nobody has used, if this
    /// run is on them.
    pub fn start_fresh(settings: &[&str]) -> Self {
        Self::start_in(World::chosen(), Path::new(THIS_VERSION), settings)
    }

    /// As [`Gateway::start_fresh`], but on what the settings say.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_as(Path::new(THIS_VERSION), settings)
    }

    /// As [`Gateway::start`], of another build.
    pub fn start_as(binary: &Path, settings: &[&str]) -> Self {
        Self::start_in(None, binary, settings)
    }

    fn start_in(world: Option<World>, binary: &Path, settings: &[&str]) -> Self {
        let program = Program::new();
        let (child, address) = serve(&program, binary, "127.0.0.1:0", &beside(world.as_ref(), settings));
        Self { program, address, binary: binary.to_owned(), child, world }
    }

    /// Kills it (SIGKILL) and starts it again on the same data and port.
    pub fn kill_and_restart(&mut self, settings: &[&str]) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.serve_again(settings);
    }

    /// Ends it (SIGTERM) and starts it again on the same data and port.
    pub fn restart(&mut self, settings: &[&str]) {
        assert!(self.halt().success());
        self.serve_again(settings);
    }

    fn serve_again(&mut self, settings: &[&str]) {
        let settings = beside(self.world.as_ref(), settings);
        (self.child, self.address) = serve(&self.program, &self.binary, &self.address.to_string(), &settings);
    }

    /// E.g. SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// The memory it has, in MiB.
    pub fn memory(&self) -> u64 {
        self.mebibytes("VmRSS:")
    }

    /// The most memory it had, in MiB.
    pub fn peak_memory(&self) -> u64 {
        self.mebibytes("VmHWM:")
    }

    fn mebibytes(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let found = status.lines().find_map(|line| line.strip_prefix(what)).expect("the kernel counts it");
        found.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    /// Runs a client command against it.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.program.run_with(arguments, &[("GATEWAY_URL", &self.url())])
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// TERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.halt()
    }

    /// As [`Gateway::stop`], but its data stays.
    pub fn halt(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ended already, or not needed any more.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What names its world, and more.
fn beside<'a>(world: Option<&'a World>, more: &[&'a str]) -> Vec<&'a str> {
    world.into_iter().flat_map(World::settings).chain(more.iter().copied()).collect()
}

fn serve(program: &Program, binary: &Path, listen: &str, settings: &[&str]) -> (Child, SocketAddr) {
    let mut arguments = vec!["serve", "--listen", listen];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut child =
        program.command_of(binary, &arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (said, address) = mpsc::channel();
    // Ends with the child's standard error, which it must keep reading.
    std::thread::spawn(move || follow(log, &said));
    match address.recv_timeout(LIMIT) {
        Ok(address) => (child, address),
        Err(_) => {
            child.kill().ok();
            panic!("the gateway did not say where it listens");
        }
    }
}

fn follow(log: BufReader<impl Read>, said: &mpsc::Sender<SocketAddr>) {
    for line in log.lines().map_while(Result::ok) {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let message = line["message"].as_str().unwrap_or_default();
        if let Some(address) = message.strip_prefix("listening on http://") {
            said.send(address.parse().unwrap()).ok();
        }
    }
}
