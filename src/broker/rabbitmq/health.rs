//! Whether RabbitMQ works, out of what its two connections say.

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::confirm::{Ready, Settled};
use super::refusals::Refusals;

/// RabbitMQ as readiness shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub up: bool,
    /// Why it is not up; empty when it is. No secrets.
    pub why: String,
    /// What is wrong although it works: queues that are nearly full, refuse messages, or are not
    /// as they are declared; nodes that take no connections. Empty when there is nothing.
    pub warning: String,
}

impl Health {
    /// What operators should look at; `None` when there is nothing.
    pub fn trouble(&self) -> Option<String> {
        let found: Vec<&str> = [&*self.why, &*self.warning].into_iter().filter(|text| !text.is_empty()).collect();
        (!found.is_empty()).then(|| found.join("; "))
    }
}

/// One of the connections.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Publishing,
    Consuming,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Consuming => "consuming",
        }
    }
}

/// What a warning is about; each replaces the last of its kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Warning {
    Topology,
    NearlyFull,
    Refused,
    Nodes,
}

/// Puts both connections' words together.
#[derive(Debug)]
pub(super) struct Board {
    /// Why each does not work; `None` when it does.
    parts: Mutex<[Option<String>; 2]>,
    warnings: Mutex<[String; 4]>,
    refusals: Mutex<Refusals>,
    health: watch::Sender<Health>,
}

impl Default for Board {
    fn default() -> Self {
        let starting = || Some("not connected yet".to_owned());
        let health = Health { up: false, why: "not connected yet".to_owned(), warning: String::new() };
        Self {
            parts: Mutex::new([starting(), starting()]),
            warnings: Mutex::default(),
            refusals: Mutex::default(),
            health: watch::Sender::new(health),
        }
    }
}

impl Board {
    pub fn receiver(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// `why` it does not work; `None` when it does.
    pub fn set(&self, part: Part, why: Option<String>) {
        let mut parts = self.parts.lock();
        parts[part as usize] = why;
        let reasons: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        let why = match reasons.as_slice() {
            [first, second] if first == second => (*first).to_owned(),
            reasons => reasons.join("; "),
        };
        self.change(|health| {
            health.up = why.is_empty();
            health.why = why;
        });
    }

    /// What should be known although it works; empty when there is nothing. Is that new?
    pub fn warn(&self, about: Warning, warning: String) -> bool {
        let mut warnings = self.warnings.lock();
        let known = &mut warnings[about as usize];
        if *known == warning {
            return false;
        }
        *known = warning;
        let all: Vec<&str> = warnings.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let warning = all.join("; ");
        self.change(|health| health.warning = warning);
        true
    }

    /// What became of a window: what a queue refuses for longer is shown until it is taken.
    pub fn settled(&self, window: &[Ready], settled: &[Settled]) {
        let mut refusals = self.refusals.lock();
        if !refusals.note(window, settled, Instant::now()) {
            return;
        }
        drop(refusals);
        self.look();
    }

    /// Time makes the difference between a full moment and a full queue: asked for regularly.
    pub fn look(&self) {
        let lasting = self.refusals.lock().lasting(Instant::now());
        self.warn(Warning::Refused, lasting);
    }

    fn change(&self, change: impl FnOnce(&mut Health)) {
        self.health.send_if_modified(|health| {
            let before = health.clone();
            change(health);
            *health != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_up_when_both_connections_are() {
        let board = Board::default();
        let mut health = board.receiver();
        assert!(!health.borrow_and_update().up);
        board.set(Part::Publishing, None);
        assert!(!health.borrow_and_update().up);
        board.set(Part::Consuming, None);
        assert_eq!(*health.borrow_and_update(), Health { up: true, why: String::new(), warning: String::new() });
        board.set(Part::Consuming, None);
        assert!(!health.has_changed().unwrap(), "nothing new was said");
        board.set(Part::Publishing, Some("blocked".into()));
        assert_eq!(health.borrow_and_update().why, "blocked");
        board.warn(Warning::NearlyFull, "nearly full".into());
        assert_eq!(health.borrow_and_update().trouble().unwrap(), "blocked; nearly full");
        board.set(Part::Publishing, None);
        assert!(health.borrow_and_update().up, "a warning is no failure");
        assert!(board.warn(Warning::Topology, "differs".into()));
        assert!(!board.warn(Warning::Topology, "differs".into()), "that is known");
        assert_eq!(health.borrow_and_update().warning, "differs; nearly full");
        board.warn(Warning::NearlyFull, String::new());
        assert_eq!(health.borrow_and_update().warning, "differs", "each kind for itself");
    }
}
