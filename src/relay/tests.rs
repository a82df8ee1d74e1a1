//! What a lane holds is bounded, in events and in bytes.

use std::sync::Arc;

use tokio::time::Instant;

use super::Held;
use super::inbox::LaneInbox;
use super::keys::{Keys, WINDOW_BYTES, Waiting};
use crate::broker::Outgoing;
use crate::domain::catalogue::{Catalogue, Route};
use crate::domain::event::{EncodedPayload, Origin};
use crate::domain::{Broker, Event, EventDraft, Id, Timestamp};

const MIB: usize = 1 << 20;

/// An event of the job `of` that takes about so many bytes.
fn event(catalogue: &Catalogue, of: &str, position: i64, bytes: usize) -> Arc<Event> {
    Arc::new(Event {
        position,
        sequence: position,
        user_offset: None,
        origin: Origin::default(),
        draft: EventDraft {
            event_id: Id::new(),
            event_type: catalogue.get("job.submitted").unwrap().clone(),
            aggregate_id: of.into(),
            user_id: "ada".into(),
            occurred_at: Timestamp::now(),
            correlation_id: Id::new(),
            causation_id: None,
            tags: Vec::new(),
            payload: EncodedPayload { json: vec![b' '; bytes].into(), avro: None },
            traceparent: None,
            skip: Vec::new(),
        },
    })
}

fn waiting(event: Arc<Event>) -> Waiting {
    let key = event.aggregate_id.clone();
    let route = Route { broker: Broker::Kafka, target: "job-lifecycle".into(), key, optional: false };
    Waiting::new(Outgoing { event, route }, 0)
}

#[test]
fn an_inbox_takes_few_large_events() {
    let catalogue = Catalogue::load(&[]).unwrap();
    let inbox = LaneInbox::new(Held { events: 100, bytes: 3 * MIB });
    inbox.trust_again();
    for position in 1..=5 {
        inbox.push(event(&catalogue, "a", position, MIB));
    }
    let taken =
        |events, bytes| -> Vec<i64> { inbox.take(Held { events, bytes }).iter().map(|event| event.position).collect() };
    assert!(!inbox.must_read_store(), "what came before the first that was dropped goes first");
    assert_eq!(taken(100, MIB), [1], "there is no room for more");
    assert_eq!(taken(100, 0), [0; 0]);
    assert_eq!(taken(1, 100 * MIB), [2]);
    assert_eq!(taken(100, 100 * MIB), [3]);
    assert!(inbox.must_read_store());

    // And again, from nothing.
    inbox.trust_again();
    inbox.push(event(&catalogue, "a", 6, MIB));
    inbox.distrust();
    inbox.trust_again();
    for position in 7..=9 {
        inbox.push(event(&catalogue, "a", position, MIB - 256));
    }
    assert_eq!(taken(100, 100 * MIB), [7, 8, 9]);
}

#[test]
fn a_window_has_few_large_events() {
    let catalogue = Catalogue::load(&[]).unwrap();
    let mut keys = Keys::default();
    for position in 1..=40 {
        keys.add(waiting(event(&catalogue, &position.to_string(), position, MIB)));
    }
    let now = Instant::now();
    let window = keys.window(512, now);
    assert_eq!(window.len(), WINDOW_BYTES / MIB);
    assert_eq!(keys.held().events, 40 - window.len());
    let first = window[0].outgoing.event.position;
    keys.put_back(window);
    assert_eq!(keys.window(1, now)[0].outgoing.event.position, first);

    let sizes: Vec<usize> = (0..4).map(|_| keys.window(512, now).len()).collect();
    assert_eq!(sizes, [16, 16, 7, 0]);
    assert_eq!(keys.held(), Held::default());
}

#[test]
fn what_is_held_adds_up() {
    let catalogue = Catalogue::load(&[]).unwrap();
    let mut keys = Keys::default();
    let now = Instant::now();
    let later = now + std::time::Duration::from_secs(1);
    for position in 1..=3 {
        keys.add(waiting(event(&catalogue, "a", position, 1_000)));
    }
    keys.add(waiting(event(&catalogue, "b", 4, 1_000)));
    assert_eq!(keys.held(), Held { events: 4, bytes: 4 * 1_256 });
    let mut window = keys.window(10, now);
    assert_eq!(window.len(), 2, "one of each key");
    let (b, a) = (window.pop().unwrap(), window.pop().unwrap());
    keys.settled(&a);
    keys.try_later(b, later);
    assert_eq!(keys.held(), Held { events: 3, bytes: 3 * 1_256 });
    let a = keys.window(10, now).pop().unwrap();
    // The one behind it goes out of memory with the key.
    keys.died(&a);
    assert_eq!(keys.held(), Held { events: 1, bytes: 1_256 });
    keys.add(waiting(event(&catalogue, "a", 5, 1_000)));
    assert_eq!(keys.window(10, later).len(), 1);
    assert_eq!(keys.held(), Held::default());
}

#[test]
fn what_waits_behind_a_slow_key_leaves_its_room_to_others() {
    let catalogue = Catalogue::load(&[]).unwrap();
    let mut keys = Keys::default();
    for position in 1..=10 {
        keys.add(waiting(event(&catalogue, "slow", position, 100)));
    }
    let mut window = keys.window(10, Instant::now());
    let mut slow = window.remove(0);
    slow.underway = true;
    keys.try_later(slow, Instant::now());
    assert_eq!((keys.held().events, keys.later()), (10, 1));

    keys.make_room();
    assert_eq!((keys.held().events, keys.later()), (1, 1), "the store has the others");
    keys.add(waiting(event(&catalogue, "slow", 11, 100)));
    keys.add(waiting(event(&catalogue, "quick", 12, 100)));
    assert_eq!(keys.held().events, 2, "and what comes after them");

    let window = keys.window(10, Instant::now());
    let of = |waiting: &Waiting| waiting.outgoing.event.position;
    assert_eq!(window.iter().map(of).collect::<Vec<_>>(), [1, 12]);
    keys.settled(&window[1]);
    assert!(!keys.owes(), "nothing was left to the store behind that one");
    keys.settled(&window[0]);
    assert!(keys.owes());
    keys.add(waiting(event(&catalogue, "slow", 13, 100)));
    assert_eq!(keys.held(), Held::default(), "not before those that only the store has");
}

#[test]
fn what_is_under_way_is_found_wherever_it_waits() {
    let catalogue = Catalogue::load(&[]).unwrap();
    let mut keys = Keys::default();
    for position in 1..=4 {
        keys.add(waiting(event(&catalogue, &position.to_string(), position, 100)));
    }
    let mut window = keys.window(3, Instant::now());
    window.iter_mut().take(2).for_each(|waiting| waiting.underway = true);
    let returned = window.split_off(1);
    keys.try_later(window.remove(0), Instant::now());
    keys.put_back(returned);
    let mut found: Vec<i64> = keys.underway().iter().map(|waiting| waiting.outgoing.event.position).collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
    assert_eq!((keys.held().events, keys.ready(), keys.later()), (2, 2, 0));
}
