//! What holds after every fault: the gateway says that all is up, the brokers have what the ledger
//! says, consumers have had every event once and in order, nothing waits, and memory was bounded.

use std::time::{Duration, Instant};

use event_gateway::consumer::{Declaration, declarations};

use crate::effects::{OUT_OF_ORDER, WRONG};
use crate::gateway::Gateway;
use crate::play::psql;
use crate::readiness::until;
use crate::reconcile::{brokers_have_everything, brokers_have_what_the_ledger_says};
use crate::world::World;

/// What is on its way needs no longer.
const SETTLED: Duration = Duration::from_secs(60);

/// All is well, now or soon.
pub fn all_is_well(gateway: &Gateway, world: &World) {
    until(gateway, &[]);
    consumers_have_everything(world);
    brokers_have_what_the_ledger_says(gateway, world);
    let (what, query) = OUT_OF_ORDER;
    assert_eq!(psql(&world.database, query), "0", "{what}");
}

/// As [`all_is_well`], but for the order of what consumers have had.
pub fn nothing_is_missing(gateway: &Gateway, world: &World) {
    until(gateway, &[]);
    consumers_have_everything(world);
    brokers_have_everything(gateway, world);
}

/// Each has handled each event that it handles, with one effect; and nothing else.
pub fn consumers_have_everything(world: &World) {
    // A user who sent a job again until it was answered has one.
    let doubled = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE name LIKE '% #%' GROUP BY agent, name \
         HAVING count(*) > 1) AS wrong";
    let mut queries = vec![("jobs that are there twice".to_owned(), doubled.to_owned())];
    for consumer in declarations() {
        queries.push((format!("events that {} misses", consumer.name), missed_by(&consumer)));
    }
    queries.extend(WRONG.map(|(what, query)| (what.to_owned(), query.to_owned())));
    let deadline = Instant::now() + SETTLED;
    loop {
        let found = wrong(world, &queries);
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{found:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How many events there are that a consumer handles and has not handled, in SQL.
pub fn missed_by(consumer: &Declaration) -> String {
    let types: Vec<String> = consumer.consumes.iter().map(|(name, _)| format!("'{name}'")).collect();
    format!(
        "SELECT count(*) FROM events AS e WHERE event_type IN ({}) AND NOT EXISTS \
           (SELECT 1 FROM inbox AS i WHERE i.consumer = '{}' AND i.event_id = e.event_id)",
        types.join(", "),
        consumer.name
    )
}

/// Which of them count something, and how many.
fn wrong(world: &World, queries: &[(String, String)]) -> Vec<String> {
    let counts: Vec<String> = queries.iter().map(|(_, query)| format!("({query})")).collect();
    let counted = psql(&world.database, &format!("SELECT {}", counts.join(", ")));
    let found = queries.iter().zip(counted.split('|')).filter(|(_, count)| *count != "0");
    found.map(|((what, _), count)| format!("{count} {what}")).collect()
}

/// What brokers' clients buffer and lanes read at once of small messages, in MiB.
pub const SMALL: u64 = 100;

/// What a gateway had before a fault.
pub struct Memory(u64);

impl Memory {
    pub fn of(gateway: &Gateway) -> Self {
        Self(gateway.memory())
    }

    /// Not more than this was needed since, in MiB.
    pub fn sufficed(&self, gateway: &Gateway, allowance: u64) {
        let (before, peak) = (self.0, gateway.peak_memory());
        println!("{before} MiB before the fault, {peak} MiB at most");
        assert!(peak <= before + allowance, "{peak} MiB, {before} MiB before the fault");
    }
}
