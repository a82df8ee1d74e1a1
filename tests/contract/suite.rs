//! The contract, as tests over any fixture. A test's name is what it promises.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use event_gateway::broker::{Delivery, Encoding, Inbound, Outgoing, PublishError, Subscription};

use crate::fixture::*;

/// Makes a test of each function for one fixture.
macro_rules! contract {
    ($fixture:ty: $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::suite::$test::<$fixture>().await;
            }
        )*
    };
}
pub(crate) use contract;

// Every broker.

pub async fn a_message_arrives_as_it_was_published<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let sent = outgoing(&fixture, "alpha", 3);
    let position = publish(&*fixture.publisher(), std::slice::from_ref(&sent)).await.remove(0);

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 1).await.remove(0);

    assert_eq!(**got.headers.as_ref().unwrap(), sent.event.headers());
    match got.encoding {
        Encoding::Json => assert_eq!(got.body, sent.event.payload.json),
        Encoding::Avro => assert_eq!(got.body, sent.event.event_type.encode_record(&sent.event).unwrap()),
    }
    assert_eq!(got.position.log, position.log);
    if position.offset.is_some() {
        assert_eq!(got.position, position);
    }
    assert!(!got.redelivered);
}

pub async fn order_holds_per_key<F: Fixture>() {
    const KEYS: usize = 20;
    const EVENTS: i64 = 50;
    let fixture = F::start(&["reader"]).await;
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n}")).collect();

    // Two publishers at once, each with the keys that are its own, as relay lanes do.
    let publisher = fixture.publisher();
    let lane = async |keys: &[String]| {
        for sequence in 1..=EVENTS {
            let window: Vec<Outgoing> = keys.iter().map(|key| outgoing(&fixture, key, sequence)).collect();
            publish(&*publisher, &window).await;
        }
    };
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let (first, second) = keys.split_at(KEYS / 2);
    let ((), (), got) = tokio::join!(lane(first), lane(second), consume(&mut *inbound, KEYS * EVENTS as usize));

    let expected: Vec<i64> = (1..=EVENTS).collect();
    let got = by_key(&got);
    assert_eq!(got.len(), KEYS);
    for (key, sequences) in got {
        assert_eq!(sequences, expected, "{key}");
    }
}

pub async fn a_window_is_confirmed_message_by_message<F: Fixture>() {
    const WINDOW: usize = 256;
    let fixture = F::start(&["reader"]).await;
    let window: Vec<Outgoing> = (0..WINDOW).map(|n| outgoing(&fixture, &format!("key-{n}"), 1)).collect();
    let positions = publish(&*fixture.publisher(), &window).await;

    let mut inbound = subscribe(&fixture, &Subscription { prefetch: WINDOW, ..fixture.durable("reader") }).await;
    let got = receive(&mut *inbound, WINDOW).await;
    let by_id: HashMap<_, &Delivery> = got.iter().map(|d| (d.headers.as_ref().unwrap().event_id, d)).collect();
    assert_eq!(by_id.len(), WINDOW);
    for (outgoing, position) in window.iter().zip(&positions) {
        let delivery = by_id[&outgoing.event.event_id];
        if position.offset.is_some() {
            assert_eq!(delivery.position, *position, "{}", outgoing.event.aggregate_id);
        }
    }
}

pub async fn confirmed_positions_increase<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let mut ends: BTreeMap<(Arc<str>, i32), i64> = BTreeMap::new();
    for sequence in 1..=20 {
        let window: Vec<Outgoing> = (0..5).map(|n| outgoing(&fixture, &format!("key-{n}"), sequence)).collect();
        for position in publish(&*fixture.publisher(), &window).await {
            let Some(offset) = position.offset else { return };
            let last = ends.insert((position.log.clone(), position.partition), offset);
            assert!(last.is_none_or(|last| last < offset), "{position} after {last:?}");
        }
    }
}

pub async fn an_empty_window_is_fine<F: Fixture>() {
    let fixture = F::start(&[]).await;
    assert!(try_publish(&*fixture.publisher(), &[]).await.is_empty());
}

pub async fn a_refused_message_does_not_harm_its_window<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let huge = event_with("huge", 1, &"x".repeat(1 << 20));
    let window = [
        outgoing(&fixture, "before", 1),
        Outgoing { event: huge, route: fixture.route("huge") },
        Outgoing { event: event("lost", 1), route: fixture.nowhere() },
        outgoing(&fixture, "after", 1),
    ];
    let results = publish_settled(&*fixture.publisher(), &window).await;
    assert!(results[0].is_ok() && results[3].is_ok(), "{results:?}");
    assert!(matches!(&results[1], Err(PublishError::Permanent(why)) if why.contains("1048576")), "{results:?}");
    assert!(matches!(&results[2], Err(PublishError::Permanent(_))), "{results:?}");

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got: BTreeSet<_> = consume(&mut *inbound, 2).await.iter().map(|d| of(d).0).collect();
    assert_eq!(got, BTreeSet::from(["after".into(), "before".into()]));
    expect_quiet(&mut *inbound).await;
}

pub async fn a_large_message_arrives_whole<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let reason: String = (0..500_000u32).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let sent = Outgoing { event: event_with("large", 1, &reason), route: fixture.route("large") };
    publish(&*fixture.publisher(), &[sent]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 1).await.remove(0);
    assert!(got.body.windows(reason.len()).any(|window| window == reason.as_bytes()));
}

pub async fn what_was_not_acknowledged_comes_again_after_a_drop<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=10).await;

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 10).await;
    within(inbound.ack(&tokens(&got[..4]))).await.unwrap();
    drop(inbound);

    // At least once: an acknowledgement may be forgotten, a message may not.
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let mut again = Vec::new();
    while again.last() != Some(&10) {
        again.extend(sequences(&consume(&mut *inbound, 1).await));
    }
    assert!(again[0] <= 5, "{again:?}");
    assert_eq!(again, (again[0]..=10).collect::<Vec<_>>());
    expect_quiet(&mut *inbound).await;
}

pub async fn messages_and_positions_survive_a_restart<F: Fixture>() {
    let fixture = F::start(&["reader", "other"]).await;
    publish_series(&fixture, "alpha", 1..=60).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    // At once: of many acknowledgements RabbitMQ keeps the last on the channel while its queue is busy,
    // and forgets them with it.
    let got = receive(&mut *inbound, 40).await;
    assert_eq!(sequences(&got), (1..=40).collect::<Vec<_>>());
    within(inbound.ack(&tokens(&got))).await.unwrap();
    drop(inbound);

    let fixture = fixture.restart().await;
    publish_series(&fixture, "alpha", 61..=70).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 30).await), (41..=70).collect::<Vec<_>>());
    expect_quiet(&mut *inbound).await;
}

pub async fn unreadable_headers_are_delivered_as_such<F: Fixture>() {
    let mut fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=1).await;
    fixture = fixture.publish_unreadable("alpha", b"{\"raw\":true}").await;
    publish_series(&fixture, "alpha", 2..=2).await;

    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = consume(&mut *inbound, 3).await;
    assert_eq!((of(&got[0]).1, of(&got[2]).1), (1, 2));
    let bad = &got[1];
    assert!(!bad.headers.as_ref().unwrap_err().is_empty());
    assert_eq!(&bad.body[..], b"{\"raw\":true}");
    assert_eq!(bad.key, got[0].key);
}

pub async fn no_more_than_the_prefetch_is_handed_out<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=20).await;
    let mut inbound = subscribe(&fixture, &Subscription { prefetch: 5, ..fixture.durable("reader") }).await;
    let mut held = Vec::new();
    while held.len() < 5 {
        held.extend(within(inbound.receive(100)).await.unwrap());
    }
    assert_eq!(sequences(&held), [1, 2, 3, 4, 5]);
    expect_quiet(&mut *inbound).await;

    within(inbound.ack(&tokens(&held[..2]))).await.unwrap();
    let more = receive(&mut *inbound, 2).await;
    assert_eq!(sequences(&more), [6, 7]);
    expect_quiet(&mut *inbound).await;
}

pub async fn a_receive_given_up_loses_nothing<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    expect_quiet(&mut *inbound).await;
    publish_series(&fixture, "alpha", 1..=3).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [1, 2, 3]);
}

pub async fn a_waiting_receive_wakes_up<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let waiting = event_gateway::task::spawn("reader", async move { consume(&mut *inbound, 1).await });
    expect_pending(&waiting).await;
    publish_series(&fixture, "alpha", 1..=1).await;
    assert_eq!(sequences(&within(waiting).await.unwrap()), [1]);
}

async fn expect_pending<T>(task: &tokio::task::JoinHandle<T>) {
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!task.is_finished());
}

pub async fn lag_falls_to_zero<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=12).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 5).await;
    lag_becomes(&mut *inbound, 12).await;
    within(inbound.ack(&tokens(&got))).await.unwrap();
    consume(&mut *inbound, 7).await;
    lag_becomes(&mut *inbound, 0).await;
}

/// Brokers tell it late: Kafka's once a second.
async fn lag_becomes(inbound: &mut dyn Inbound, messages: u64) {
    let told = async {
        while inbound.lag().await != Some(messages) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(told).await;
}

pub async fn acknowledging_twice_is_harmless<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=2).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 1).await;
    for _ in 0..2 {
        within(inbound.ack(&tokens(&got))).await.unwrap();
    }
    assert_eq!(sequences(&consume(&mut *inbound, 1).await), [2]);
    expect_quiet(&mut *inbound).await;
}

pub async fn tokens_increase<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let window: Vec<Outgoing> = (0..50).map(|n| outgoing(&fixture, &format!("key-{n}"), 1)).collect();
    publish(&*fixture.publisher(), &window).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = tokens(&receive(&mut *inbound, 50).await);
    assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
}

// Brokers whose consumers each get everything.

pub async fn each_consumer_gets_everything<F: Fixture>() {
    let fixture = F::start(&["first", "second"]).await;
    publish_series(&fixture, "alpha", 1..=20).await;
    for name in ["first", "second"] {
        let mut inbound = subscribe(&fixture, &fixture.durable(name)).await;
        assert_eq!(sequences(&consume(&mut *inbound, 20).await), (1..=20).collect::<Vec<_>>(), "{name}");
        expect_quiet(&mut *inbound).await;
    }
}

/// Two readers of one ordered consumer: no key is with both at once.
pub async fn sharing_readers_keep_order_per_key<F: Fixture>() {
    const KEYS: i64 = 8;
    const EVENTS: i64 = 40;
    let fixture = F::start(&["reader"]).await;
    let mut first = subscribe(&fixture, &fixture.durable("reader")).await;
    let mut second = subscribe(&fixture, &fixture.durable("reader")).await;
    let publishing = async {
        for sequence in 1..=EVENTS {
            let window: Vec<Outgoing> = (0..KEYS).map(|n| outgoing(&fixture, &format!("key-{n}"), sequence)).collect();
            publish(&*fixture.publisher(), &window).await;
        }
    };
    let seen: parking_lot::Mutex<Vec<Delivery>> = parking_lot::Mutex::default();
    let all = tokio::sync::Notify::new();
    let read = async |inbound: &mut Box<dyn Inbound>| loop {
        let got = tokio::select! {
            () = all.notified() => { all.notify_one(); return }
            got = inbound.receive(7) => got.unwrap(),
        };
        // Noted before the ack: until then nobody else may have the key.
        let count = {
            let mut seen = seen.lock();
            seen.extend(got.iter().cloned());
            seen.len()
        };
        inbound.ack(&tokens(&got)).await.unwrap();
        if count as i64 >= KEYS * EVENTS {
            all.notify_one();
        }
    };
    within(async { tokio::join!(publishing, read(&mut first), read(&mut second)) }).await;
    for (key, sequences) in by_key(&seen.into_inner()) {
        assert_eq!(sequences, (1..=EVENTS).collect::<Vec<_>>(), "{key}");
    }
}

pub async fn a_second_reader_takes_over<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=6).await;
    let mut first = subscribe(&fixture, &fixture.durable("reader")).await;
    let held = receive(&mut *first, 3).await;
    let mut second = subscribe(&fixture, &fixture.durable("reader")).await;
    let takeover = event_gateway::task::spawn("reader", async move { consume(&mut *second, 6).await });
    expect_pending(&takeover).await;
    drop((first, held));
    assert_eq!(sequences(&within(takeover).await.unwrap()), [1, 2, 3, 4, 5, 6]);
}

// Brokers that mark a repeated delivery.

pub async fn a_repeated_delivery_says_so<F: TellsRedelivery>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=4).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 3).await;
    within(inbound.ack(&tokens(&got[..1]))).await.unwrap();
    drop(inbound);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 3).await;
    assert_eq!(got.iter().map(|d| (of(d).1, d.redelivered)).collect::<Vec<_>>(), [(2, true), (3, true), (4, false)]);
}

// Brokers with readers that start at the present.

pub async fn a_live_reader_starts_now<F: Live>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=5).await;
    let mut inbound = subscribe(&fixture, &fixture.live()).await;
    let mut other = subscribe(&fixture, &fixture.live()).await;
    publish_series(&fixture, "alpha", 6..=10).await;
    for inbound in [&mut inbound, &mut other] {
        assert_eq!(sequences(&consume(&mut **inbound, 5).await), [6, 7, 8, 9, 10]);
        expect_quiet(&mut **inbound).await;
    }
}

pub async fn a_live_reader_leaves_nothing_behind<F: Live>() {
    let fixture = F::start(&["reader"]).await;
    let mut inbound = subscribe(&fixture, &fixture.live()).await;
    publish_series(&fixture, "alpha", 1..=2).await;
    assert_eq!(sequences(&receive(&mut *inbound, 2).await), [1, 2]);
    drop(inbound);
    let mut inbound = subscribe(&fixture, &fixture.live()).await;
    expect_quiet(&mut *inbound).await;
}

// Work queues.

pub async fn competing_readers_share_the_work<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let subscription = Subscription { prefetch: 4, ack_wait: PATIENCE, ..fixture.durable("reader") };
    let mut first = subscribe(&fixture, &subscription).await;
    let mut second = subscribe(&fixture, &subscription).await;
    publish_series(&fixture, "alpha", 1..=8).await;
    // With four each in hand, both must have taken part.
    let (mine, theirs) = (receive(&mut *first, 4).await, receive(&mut *second, 4).await);
    let mut all: Vec<i64> = sequences(&mine).into_iter().chain(sequences(&theirs)).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=8).collect::<Vec<_>>(), "each message once");
    expect_quiet(&mut *first).await;

    // What one gives up, the other gets; what was acknowledged, nobody.
    within(first.ack(&tokens(&mine[1..2]))).await.unwrap();
    within(second.ack(&tokens(&theirs))).await.unwrap();
    let given_up: Vec<i64> = [0, 2, 3].map(|n| of(&mine[n]).1).to_vec();
    drop(first);
    let got = consume(&mut *second, 3).await;
    assert_eq!(sequences(&got), given_up);
    assert!(got.iter().all(|delivery| delivery.redelivered));
    expect_quiet(&mut *second).await;
}

pub async fn work_not_acknowledged_in_time_goes_to_another<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    let subscription = Subscription { ack_wait: Duration::from_millis(300), ..fixture.durable("reader") };
    publish_series(&fixture, "alpha", 1..=3).await;
    let mut slow = subscribe(&fixture, &subscription).await;
    let held = receive(&mut *slow, 3).await;
    let mut quick = subscribe(&fixture, &Subscription { ack_wait: PATIENCE, ..subscription }).await;
    let got = consume(&mut *quick, 3).await;
    assert_eq!(sequences(&got), [1, 2, 3]);
    assert!(got.iter().all(|delivery| delivery.redelivered));
    // The late acknowledgement is ignored.
    within(slow.ack(&tokens(&held))).await.unwrap();
    expect_quiet(&mut *quick).await;
}

pub async fn acknowledged_work_stays_done_after_a_restart<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=6).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 5).await;
    within(inbound.ack(&[got[1].token, got[4].token, got[3].token])).await.unwrap();
    drop(inbound);
    let fixture = fixture.restart().await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 3).await), [1, 3, 6]);
    expect_quiet(&mut *inbound).await;
}

pub async fn terminated_work_is_not_delivered_again<F: Fixture>() {
    let fixture = F::start(&["reader"]).await;
    publish_series(&fixture, "alpha", 1..=4).await;
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    let got = receive(&mut *inbound, 3).await;
    let ended = [(got[0].token, "nobody can".into()), (got[2].token, "nobody ever can".into())];
    within(inbound.terminate(&ended)).await.unwrap();
    drop(inbound);
    let mut inbound = subscribe(&fixture, &fixture.durable("reader")).await;
    assert_eq!(sequences(&consume(&mut *inbound, 2).await), [2, 4]);
    expect_quiet(&mut *inbound).await;
}
