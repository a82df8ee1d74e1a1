//! What the faces share: the logs, the groups, and the way to the writer.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::group::{Group, Mode, Standing, Start};
use super::log::Partition;
use super::pattern::Filter;
use super::topology::{Limits, Reads};
use super::writer::{Answer, Changed, Command, NewRecord};
use crate::domain::Broker;

pub(super) const CLOSED: &str = "the embedded brokers are shut down";

/// Of a log or a group, which every broker names for itself.
type Name = (Broker, Arc<str>);

#[derive(Debug)]
pub(super) struct Engine {
    pub database: Database,
    pub limits: Limits,
    pub partitions: Arc<[Arc<Partition>]>,
    /// The slots of each log's partitions, by partition number.
    pub logs: HashMap<Name, Vec<usize>>,
    /// Which stream takes a subject.
    pub subjects: Vec<(Arc<str>, usize)>,
    /// Durable groups, by broker and name.
    pub groups: Mutex<HashMap<Name, Arc<Group>>>,
    /// Everything that is bound to an exchange, with whose it is.
    bindings: RwLock<HashMap<usize, Vec<Binding>>>,
    pub changed: Arc<Changed>,
    pub writer: mpsc::Sender<Command>,
    pub closing: CancellationToken,
    /// Serialises the declaration of groups.
    declaring: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Binding {
    /// `None` for a durable queue's.
    owner: Option<Arc<Group>>,
    filter: Filter,
}

impl Engine {
    pub fn new(
        database: Database,
        limits: Limits,
        partitions: Vec<Arc<Partition>>,
        subjects: Vec<(Arc<str>, usize)>,
        writer: mpsc::Sender<Command>,
    ) -> Self {
        let mut logs: HashMap<_, Vec<usize>> = HashMap::new();
        for partition in &partitions {
            logs.entry((partition.broker, partition.log.clone())).or_default().push(partition.slot);
        }
        Self {
            database,
            limits,
            partitions: partitions.into(),
            logs,
            subjects,
            groups: Mutex::default(),
            bindings: RwLock::default(),
            changed: Arc::default(),
            writer,
            closing: CancellationToken::new(),
            declaring: tokio::sync::Mutex::default(),
        }
    }

    /// The slots of a log's partitions.
    pub fn slots(&self, broker: Broker, log: &Arc<str>) -> Option<&[usize]> {
        self.logs.get(&(broker, log.clone())).map(Vec::as_slice)
    }

    /// Each partition that `reads` covers, with its filter; fails on an unknown log.
    pub fn covered(&self, reads: &Reads) -> Result<Vec<(Arc<Partition>, Filter)>, String> {
        let mut covered = Vec::new();
        for (log, filter) in &reads.logs {
            let slots = self
                .slots(reads.broker, log)
                .ok_or_else(|| format!("{} has no {log}; add it to the topology", reads.broker))?;
            covered.extend(slots.iter().map(|slot| (self.partitions[*slot].clone(), filter.clone())));
        }
        Ok(covered)
    }

    /// The durable group of these reads, declared now unless it is known. What it has not
    /// read is kept for it from here on.
    pub async fn declare(&self, reads: &Reads) -> Result<Arc<Group>, String> {
        let covered = self.covered(reads)?;
        let _one_at_a_time = self.declaring.lock().await;
        let known = self.groups.lock().get(&(reads.broker, reads.group.clone())).cloned();
        if let Some(group) = known {
            let same = covered.len() == group.cursors() && covered.iter().all(|(p, filter)| group.reads(p, filter));
            return if same {
                Ok(group)
            } else {
                Err(format!("{} is declared with other logs or filters", reads.group))
            };
        }

        let failed = |why: sqlx::Error| format!("where {} stands cannot be read: {why}", reads.group);
        let standings = self.database.standings(reads.broker, &reads.group).await.map_err(failed)?;
        let mut starts = Vec::with_capacity(covered.len());
        for (partition, filter) in covered {
            let standing = standings.get(&partition.id);
            starts.push(self.start(reads, partition, filter, standing).await.map_err(failed)?);
        }
        let mode = if reads.broker == Broker::Nats { Mode::WorkQueue } else { Mode::Ordered };
        let group = Arc::new(Group::new(reads.broker, reads.group.clone(), mode, starts));
        for cursor in 0..group.cursors() {
            self.changed.mark(&group, cursor);
        }
        // Written before anything is let through to it, or a crash would forget where it began.
        self.ask(|done| Command::Flush { done }).await?;
        self.groups.lock().insert((reads.broker, reads.group.clone()), group.clone());
        if reads.broker == Broker::Rabbitmq {
            self.bind(reads, None);
        }
        Ok(group)
    }

    /// Where a group begins in a partition: where it stood, within what is there; else a
    /// queue at the end (it gets what comes after its declaration), a group or work queue
    /// at the oldest record.
    async fn start(
        &self,
        reads: &Reads,
        partition: Arc<Partition>,
        filter: Filter,
        standing: Option<&Standing>,
    ) -> Result<Start, sqlx::Error> {
        let (oldest, _) = self.database.extent(partition.id).await?;
        let end = partition.end();
        let Some(standing) = standing else {
            let next = if reads.broker == Broker::Rabbitmq { end } else { oldest };
            return Ok(Start { partition, filter, next, owed: Vec::new() });
        };
        let next = standing.next.min(end).max(oldest);
        if next != standing.next {
            tracing::warn!(
                consumer = %reads.group, log = %partition.log, partition = partition.number,
                stood = standing.next, stands = next, "the log no longer has this position"
            );
        }
        let owed: Vec<i64> = standing.unacked.iter().copied().filter(|offset| *offset < next).collect();
        let mut messages = Vec::with_capacity(owed.len());
        for run in owed.chunk_by(|a, b| a + 1 == *b) {
            let (mut from, below) = (run[0], run[run.len() - 1] + 1);
            loop {
                let page = self.database.read(partition.id, from, below, run.len()).await?;
                let Some(last) = page.last() else { break };
                from = last.offset + 1;
                messages.extend(page);
            }
        }
        Ok(Start { partition, filter, next, owed: messages })
    }

    /// Lets an exchange's messages through to these patterns.
    pub fn bind(&self, reads: &Reads, owner: Option<&Arc<Group>>) {
        let mut bindings = self.bindings.write();
        for (log, filter) in &reads.logs {
            for slot in self.slots(reads.broker, log).unwrap_or_default() {
                let binding = Binding { owner: owner.cloned(), filter: filter.clone() };
                bindings.entry(*slot).or_default().push(binding);
            }
        }
    }

    /// Removes what `owner` had bound.
    pub fn unbind(&self, owner: &Arc<Group>) {
        for bindings in self.bindings.write().values_mut() {
            bindings.retain(|binding| !binding.owner.as_ref().is_some_and(|group| Arc::ptr_eq(group, owner)));
        }
    }

    /// Does any queue take this key from this exchange?
    pub fn is_routable(&self, slot: usize, key: &str) -> bool {
        self.bindings.read().get(&slot).is_some_and(|bindings| bindings.iter().any(|b| b.filter.matches(key)))
    }

    /// Writes records and returns their offsets once they are committed.
    pub async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<i64>, String> {
        self.ask(|done| Command::Append { records, done }).await
    }

    /// Gives the writer a command and waits for its answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, String> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            self.writer.send(command(done)).await.map_err(|_| CLOSED.to_owned())?;
            answer.await.map_err(|_| CLOSED.to_owned())?
        };
        let limit = self.limits.write_timeout;
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or_else(|_| Err(format!("no commit within {limit:?}; the disk is too slow or blocked")))
    }

    /// The lowest offset of a partition that a durable group still needs.
    pub fn needed(&self, partition: &Partition) -> i64 {
        let groups: Vec<Arc<Group>> =
            self.groups.lock().values().filter(|group| group.broker == partition.broker).cloned().collect();
        groups.iter().filter_map(|group| group.needs(partition.slot)).fold(partition.end(), i64::min)
    }
}
