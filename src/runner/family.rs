//! Who belongs to a run: its first process (the leader), the leader's process group and
//! session, all their descendants, and whoever carries the run's mark in its environment.
//!
//! Everything here reads `/proc` and blocks.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use procfs::process::{Process, Stat};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::protocol::ENV_RUN_ID;
use crate::domain::Id;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, from `/proc/<pid>/stat`.
    pub start_time: u64,
}

impl Identity {
    /// Who has this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).map_err(io::Error::other)?;
        Ok(Self::from(&stat))
    }

    /// Is it there, and not just a zombie?
    pub fn is_living(self) -> bool {
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| Self::from(&stat) == self && !matches!(stat.state, 'Z' | 'X'))
    }

    /// [`Identity::signal`]; failures are logged.
    pub fn try_signal(self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::warn!(pid = self.pid, %signal, %error, "cannot signal a process of a run");
        }
    }

    /// Sends `signal` to exactly this process; false when it is gone.
    fn signal(self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(false) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            pidfd => pidfd?,
        };
        // The descriptor holds on to one process; only now is it safe to ask which.
        if Self::of(self.pid).ok() != Some(self) {
            return Ok(false);
        }
        let signal = match signal {
            Signal::SIGTERM => rustix::process::Signal::TERM,
            Signal::SIGCONT => rustix::process::Signal::CONT,
            _ => rustix::process::Signal::KILL,
        };
        match pidfd_send_signal(&pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(false),
            sent => Ok(sent.map(|()| true)?),
        }
    }
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self { pid: stat.pid, start_time: stat.starttime }
    }
}

/// The processes of one run.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub run_id: Id,
    /// `None` when it is not known (the gateway died while starting it).
    pub leader: Option<Identity>,
}

/// How to look for members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// The leader, its group and session, and their descendants.
    Kin,
    /// Also whoever carries the mark: those who left group and session behind. Reads the
    /// environment of every process of this user.
    Marked,
}

impl Family {
    /// Its processes with their state, zombies too.
    pub fn members(&self, search: Search) -> Vec<Stat> {
        let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
        // Each `Process` holds a descriptor: one at a time.
        let all: Vec<Stat> = processes.filter_map(|process| process.ok()?.stat().ok()).collect();
        let leader = self.leader.filter(|leader| all.iter().any(|stat| Identity::from(stat) == *leader));
        let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let mut found: HashSet<i32> = all
            .iter()
            .filter(|stat| {
                // Without the leader its number may be somebody else's: only the mark tells.
                let kin = leader.is_some_and(|leader| {
                    stat.pid == leader.pid || stat.pgrp == leader.pid || stat.session == leader.pid
                });
                kin || (search == Search::Marked && stat.state != 'Z' && self.marks(stat.pid))
            })
            .map(|stat| stat.pid)
            .collect();
        loop {
            let before = found.len();
            let children = all.iter().filter(|stat| found.contains(&stat.ppid)).map(|stat| stat.pid);
            let children: Vec<i32> = children.collect();
            found.extend(children);
            if found.len() == before {
                break;
            }
        }
        // Never ourselves, should the gateway have been started by a job of another one.
        found.remove(&own);
        all.into_iter().filter(|stat| found.contains(&stat.pid)).collect()
    }

    /// Members that still run.
    pub fn living(&self, search: Search) -> Vec<Identity> {
        let members = self.members(search);
        members.iter().filter(|stat| !matches!(stat.state, 'Z' | 'X')).map(Identity::from).collect()
    }

    /// Signals every living member, each by its identity; how many there were.
    pub fn signal_each(&self, search: Search, signal: Signal) -> usize {
        let living = self.living(search);
        living.iter().for_each(|member| member.try_signal(signal));
        living.len()
    }

    /// Signals the leader's group at once, then members outside it. Only for a leader that
    /// is our child and not reaped: nobody else can have its number.
    pub fn signal_group(&self, signal: Signal) {
        let Some(leader) = self.leader else { return };
        // ESRCH: all gone. EPERM cannot be: no_new_privs keeps the group ours.
        let _ = killpg(Pid::from_raw(leader.pid), signal);
        for stat in self.members(Search::Kin) {
            if stat.pgrp != leader.pid && !matches!(stat.state, 'Z' | 'X') {
                Identity::from(&stat).try_signal(signal);
            }
        }
    }

    fn marks(&self, pid: i32) -> bool {
        let mark = format!("{ENV_RUN_ID}={}", self.run_id);
        let mut environ = Vec::new();
        // Unreadable: another user's, so not ours.
        let read =
            File::open(format!("/proc/{pid}/environ")).and_then(|file| file.take(1 << 20).read_to_end(&mut environ));
        read.is_ok() && environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }
}

/// Identifies this boot: process numbers and start times mean nothing in another one.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
