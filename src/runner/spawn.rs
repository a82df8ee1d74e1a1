//! One child process: started in a session of its own, watched, signalled with all that
//! belongs to it, and reaped with its figures.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use procfs::process::Process;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;
use tokio::task::spawn_blocking;

use super::family::{Family, Identity, Search};
use crate::domain::Id;

/// Agents yield to the gateway when processors are scarce.
const NICENESS: libc::c_int = 5;
/// When memory runs out, agents go before the gateway does.
const OOM_SCORE_ADJ: &str = "500";
/// How long what a run left behind is hunted.
const SWEEP: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Program and arguments; never empty.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    pub directory: PathBuf,
    pub memory_limit_bytes: Option<u64>,
}

/// A started child. Dropping it unreaped kills it with its family.
#[derive(Debug)]
pub(super) struct Child {
    process: KillOnDrop,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a child ended and what it used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    pub status: ExitStatus,
    /// User and system time of the child and of the descendants that were waited for.
    pub cpu_seconds: f64,
    /// Their I/O, as `/proc/<pid>/io` counts it; `None` where the kernel does not.
    pub io: Option<IoCounts>,
}

/// I/O since a process started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct IoCounts {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl IoCounts {
    /// Of process `pid` and the children it has waited for; works for zombies.
    pub fn of(pid: i32) -> Option<Self> {
        let io = Process::new(pid).ok()?.io().ok()?;
        Some(Self { read_bytes: io.read_bytes, write_bytes: io.write_bytes, reads: io.syscr, writes: io.syscw })
    }
}

/// Starts `program` as the leader of run `run_id`; its output comes from the two pipes.
pub(super) async fn spawn(program: Program, run_id: Id) -> io::Result<(Child, Receiver, Receiver)> {
    // fork and exec take a while in a large process.
    let started = spawn_blocking(move || start(program, run_id)).await.map_err(io::Error::other)??;
    let Started { process, pidfd, stdout, stderr } = started;
    // SAFETY: the descriptor is owned by the AsyncFd from here on and never replaced.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
    let (stdout, stderr) = (Receiver::from_owned_fd(stdout)?, Receiver::from_owned_fd(stderr)?);
    Ok((Child { process, pidfd }, stdout, stderr))
}

/// Between fork and the finished [`Child`].
struct Started {
    process: KillOnDrop,
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn start(program: Program, run_id: Id) -> io::Result<Started> {
    let Some((name, arguments)) = program.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .envs(program.env)
        .current_dir(&program.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let memory_limit = program.memory_limit_bytes;
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are
    // allowed: it makes plain system calls, takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || confine(memory_limit));
    }
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Its entry stays until we reap it, even if it has ended already.
    let leader = match Identity::of(pid) {
        Ok(leader) => leader,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    // From now on we kill and reap it; dropping `child` does neither.
    let family = Family { run_id, leader: Some(leader) };
    let process = KillOnDrop(Arc::new(Owned { family, leader, reaped: Mutex::new(false) }));
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        tracing::debug!(pid, %error, "cannot make a run the first to go when memory is out");
    }
    let pidfd = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pidfd, PidfdFlags::empty())?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("the child has no output pipes"));
    };
    Ok(Started { process, pidfd, stdout: stdout.into(), stderr: stderr.into() })
}

/// What the child does to itself before it becomes the agent.
fn confine(memory_limit: Option<u64>) -> io::Result<()> {
    // A session, so a group, of its own: no terminal, and one number to signal them all.
    nix::unistd::setsid()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(bytes) = memory_limit {
        setrlimit(Resource::RLIMIT_AS, bytes, bytes)?;
    }
    // SAFETY: system calls with constant arguments.
    unsafe {
        // Nothing it starts can gain rights, so all of it stays ours to signal.
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Descriptors that a C library opened without O_CLOEXEC; old kernels cannot, which is no harm.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::nice(NICENESS);
    }
    Ok(())
}

impl Child {
    pub fn identity(&self) -> Identity {
        self.process.0.leader
    }

    pub fn family(&self) -> &Family {
        &self.process.0.family
    }

    /// Waits until it has ended (it is not reaped yet). Cancel safe.
    pub async fn exited(&self) {
        // An error means that the runtime is going away: then nobody waits any more.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Signals everything that belongs to it.
    pub async fn signal(&self, signal: Signal) {
        let process = self.process.0.clone();
        let _ = spawn_blocking(move || {
            process.signal(signal);
            if signal == Signal::SIGTERM {
                // A stopped process would not see it.
                process.signal(Signal::SIGCONT);
            }
        })
        .await;
    }

    /// After [`Child::exited`]: kills what it left behind, then reaps it.
    pub async fn reap(self) -> io::Result<Exit> {
        let process = self.process;
        spawn_blocking(move || process.0.reap()).await.map_err(io::Error::other)?
    }
}

/// A child of ours from fork until it is reaped.
#[derive(Debug)]
struct Owned {
    family: Family,
    leader: Identity,
    /// Held while its number is used: as long as it is not reaped nobody else gets it.
    reaped: Mutex<bool>,
}

impl Owned {
    /// Signals everything that belongs to it, unless it is reaped. Blocking.
    fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock();
        if !*reaped {
            self.family.signal_group(signal);
        }
    }

    /// Kills all that is left, then waits for the end of the leader. Blocking.
    fn reap(&self) -> io::Result<Exit> {
        sweep(&self.family);
        let mut reaped = self.reaped.lock();
        let io = IoCounts::of(self.leader.pid);
        let (status, cpu_seconds) = wait(self.leader.pid)?;
        *reaped = true;
        Ok(Exit { status, cpu_seconds, io })
    }
}

/// Whoever holds it last ends the child.
#[derive(Debug)]
struct KillOnDrop(Arc<Owned>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if *self.0.reaped.lock() {
            return;
        }
        self.0.signal(Signal::SIGKILL);
        let (process, pid) = (self.0.clone(), self.0.leader.pid);
        // A thread: there may be no runtime any more, and a process can take its time to die.
        let reaper = std::thread::Builder::new().name("reap".to_owned()).spawn(move || {
            if let Err(error) = process.reap() {
                tracing::debug!(pid, %error, "cannot reap a killed child");
            }
        });
        if let Err(error) = reaper {
            tracing::warn!(pid, %error, "cannot wait for a killed child; it stays a zombie");
        }
    }
}

/// Kills all living members until none is left, within [`SWEEP`].
fn sweep(family: &Family) {
    let until = Instant::now() + SWEEP;
    while family.signal_each(Search::Marked, Signal::SIGKILL) > 0 {
        if Instant::now() > until {
            tracing::warn!(run = %family.run_id, "processes of a run outlive KILL; they are left to the kernel");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for child `pid` and reaps it: its status, and its CPU time in seconds.
fn wait(pid: i32) -> io::Result<(ExitStatus, f64)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live values of the right type.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed is a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((ExitStatus::from_raw(status), seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}
