//! One child process: started in a session of its own, watched, signalled with all that
//! belongs to it, and reaped with its figures.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
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

/// A started child. Dropping it unreaped kills it with its group.
#[derive(Debug)]
pub(super) struct Child {
    family: Family,
    leader: Identity,
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
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
    pub fn of(process: &Process) -> Option<Self> {
        let io = process.io().ok()?;
        Some(Self { read_bytes: io.read_bytes, write_bytes: io.write_bytes, reads: io.syscr, writes: io.syscw })
    }
}

/// Starts `program` as the leader of run `run_id`; its output comes from the two pipes.
pub(super) async fn spawn(program: Program, run_id: Id) -> io::Result<(Child, Receiver, Receiver)> {
    // fork and exec take a while in a large process.
    let started = spawn_blocking(move || start(program, run_id)).await.map_err(io::Error::other)??;
    let Started { mut guard, pidfd, stdout, stderr } = started;
    // SAFETY: the descriptor is owned by the AsyncFd from here on and never replaced.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
    let child = Child { pidfd, leader: guard.leader, family: guard.family(), reaped: false };
    guard.disarm();
    Ok((child, Receiver::from_owned_fd(stdout)?, Receiver::from_owned_fd(stderr)?))
}

/// Between fork and the finished [`Child`].
struct Started {
    guard: Guard,
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Kills and reaps a child that nobody watches yet.
struct Guard {
    leader: Identity,
    run_id: Id,
    armed: bool,
}

impl Guard {
    fn family(&self) -> Family {
        Family { run_id: self.run_id, leader: Some(self.leader) }
    }

    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            kill_and_reap(self.family(), self.leader.pid);
        }
    }
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
    let guard = Guard { leader, run_id, armed: true };
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        tracing::debug!(pid, %error, "cannot make a run the first to go when memory is out");
    }
    let pidfd = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pidfd, PidfdFlags::empty())?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("the child has no output pipes"));
    };
    // `child` is dropped here, which neither kills nor reaps it: from now on we do.
    Ok(Started { guard, pidfd, stdout: stdout.into(), stderr: stderr.into() })
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
        self.leader
    }

    pub fn family(&self) -> &Family {
        &self.family
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
        let family = self.family.clone();
        let _ = spawn_blocking(move || {
            family.signal_group(signal);
            if signal == Signal::SIGTERM {
                // A stopped process would not see it.
                family.signal_group(Signal::SIGCONT);
            }
        })
        .await;
    }

    /// After [`Child::exited`]: kills what it left behind, then reaps it.
    pub async fn reap(mut self) -> io::Result<Exit> {
        let family = self.family.clone();
        let leader = self.leader;
        // Until it is reaped its number is not given to anybody else.
        let exit = spawn_blocking(move || {
            sweep(&family);
            let io = Process::new(leader.pid).ok().as_ref().and_then(IoCounts::of);
            wait(leader.pid).map(|(status, cpu_seconds)| Exit { status, cpu_seconds, io })
        })
        .await
        .map_err(io::Error::other)??;
        self.reaped = true;
        Ok(exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            kill_and_reap(self.family.clone(), self.leader.pid);
        }
    }
}

/// Kills all members but the leader's zombie until none is left, within [`SWEEP`].
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

/// For a child whose owner is going away.
fn kill_and_reap(family: Family, pid: i32) {
    family.signal_group(Signal::SIGKILL);
    // A thread: there may be no runtime any more, and a process can take its time to die.
    let reaper = std::thread::Builder::new().name("reap".to_owned()).spawn(move || {
        sweep(&family);
        wait(pid)
    });
    if let Err(error) = reaper {
        tracing::warn!(pid, %error, "cannot wait for a killed child; it stays a zombie");
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
