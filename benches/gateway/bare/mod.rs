//! The baseline: a loop that writes to the same store what the gateway writes for a
//! submission (job, two events, their legs, three heads), in the same statements and batch
//! sizes, and does nothing else.

mod postgres;
mod sqlite;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use event_gateway::domain::job::Job;
use event_gateway::domain::{Event, EventDraft, Origin};
use event_gateway::store::plan::bucket;

use crate::rows;

/// Made before the clock starts.
const JOBS: usize = 60_000;
const LIMIT: Duration = Duration::from_secs(20);

pub struct Figures {
    /// Jobs a second.
    pub rate: f64,
    /// Microseconds of CPU a job, without a server's.
    pub cpu: f64,
}

/// A submission with positions, sequences and offsets as the store would give them.
type Written = (Job, Vec<Event>);

trait Sink {
    /// Writes a batch in one transaction.
    async fn commit(&mut self, batch: &[Written]);

    /// Leaves nothing behind.
    async fn end(self);
}

/// Writes jobs of `users` users, `batch` of them a COMMIT, to what the gateway uses.
pub async fn run(batch: usize, users: usize) -> Figures {
    let factory = rows::factory();
    let jobs: Vec<Written> = (0..JOBS).map(|n| numbered(rows::submission(&factory, n, users), n, users)).collect();
    match std::env::var("GATEWAY__STORE__URL") {
        Ok(url) => measure(postgres::Session::open(&url, factory).await, &jobs, batch).await,
        Err(_) => measure(sqlite::File::open(factory).await, &jobs, batch).await,
    }
}

async fn measure(mut sink: impl Sink, jobs: &[Written], batch: usize) -> Figures {
    let (cpu, start) = (crate::beside::own_cpu_seconds(), Instant::now());
    let mut written = 0;
    for batch in jobs.chunks(batch.max(1)) {
        sink.commit(batch).await;
        written += batch.len();
        if start.elapsed() > LIMIT {
            break;
        }
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), crate::beside::own_cpu_seconds() - cpu);
    sink.end().await;
    Figures { rate: written as f64 / seconds, cpu: cpu / written as f64 * 1e6 }
}

fn numbered((job, drafts): (Job, Vec<EventDraft>), n: usize, users: usize) -> Written {
    let events = drafts.into_iter().enumerate().map(|(index, draft)| Event {
        position: (2 * n + index + 1) as i64,
        sequence: 1,
        user_offset: draft.event_type.audience.user.then_some((n / users + 1) as i64),
        origin: Origin::default(),
        draft,
    });
    (job, events.collect())
}

/// The last sequence of each aggregate and the last offset of each user: kind, id, last.
fn heads<'e>(events: &[&'e Event]) -> Vec<((&'e str, &'e str), i64)> {
    let mut heads = BTreeMap::new();
    for event in events {
        heads.insert((&*event.event_type.aggregate, &*event.aggregate_id), event.sequence);
        if let Some(offset) = event.user_offset {
            heads.insert(("user", &*event.user_id), offset);
        }
    }
    heads.into_iter().collect()
}

struct Leg {
    position: i64,
    broker: i16,
    state: i16,
    bucket: i16,
    at: i64,
}

fn legs(events: &[&Event]) -> Vec<Leg> {
    let of = |event: &Event| {
        let (position, at, bucket) = (event.position, event.occurred_at.0, i16::from(bucket(&event.aggregate_id)));
        let skipped = |broker| event.skip.iter().any(|(skipped, _)| *skipped == broker);
        let leg = |broker| Leg { position, broker: broker as i16, state: i16::from(skipped(broker)) * 2, bucket, at };
        event.event_type.brokers().iter().map(|broker| leg(*broker)).collect::<Vec<_>>()
    };
    events.iter().flat_map(|event| of(event)).collect()
}
