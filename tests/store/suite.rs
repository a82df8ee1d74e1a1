//! What every store must do. Each function is one promise of the port.

use std::sync::Arc;

use event_gateway::domain::job::{JobCommand, JobError, JobRefusal, JobStatus, Priority, Report, RunnerKind};
use event_gateway::domain::payload::CancelledBy;
use event_gateway::domain::{Broker, Channel, Event, Id, Timestamp};
use event_gateway::store::{
    BrokerEnd, Deliveries, Effect, Fold, JobFilter, LegMark, LegState, Outcome, Page, Replay, ReplayLimit, Unit,
    Verdict, Workload,
};

use super::fixture::{Opened, claim, command, commit, committed, delivery, failed, job, submit};

pub async fn a_repeat_of_a_key_is_answered_from_the_first(opened: &Opened) {
    let first = Unit { idempotency: Some(claim("k", 1)), ..submit(&job("ada")) };
    assert!(matches!(commit(opened, vec![first]).await[..], [Outcome::Committed { .. }]));
    let repeat = Unit { idempotency: Some(claim("k", 1)), ..submit(&job("ada")) };
    let other = Unit { idempotency: Some(claim("k", 2)), ..submit(&job("ada")) };
    match &commit(opened, vec![repeat, other]).await[..] {
        [Outcome::Repeated(response), Outcome::KeyReused] => assert_eq!(response.body, "answer k"),
        other => panic!("{other:?}"),
    }
    assert_eq!(all_jobs(opened).await, 1);
}

pub async fn what_was_committed_is_there_when_it_is_opened_again(opened: &Opened) {
    let job = job("ada");
    let first = committed(opened, Unit { idempotency: Some(claim("k", 1)), ..submit(&job) }).await;
    let done = Unit { marks: vec![mark(&first[0], Broker::Rabbitmq, LegState::Done, None)], ..Unit::default() };
    commit(opened, vec![done]).await;
    opened.store.close().await;

    let store = (opened.again)().await;
    let kept = store.aggregate_events("job", &job.id.to_string(), 0, 500).await.unwrap();
    assert_eq!(kept.iter().map(|event| event.event_id).collect::<Vec<_>>(), [first[0].event_id]);
    assert!(store.open_legs(Broker::Rabbitmq, None, 0, 100).await.unwrap().is_empty(), "what is done stays done");
    let owed = store.open_legs(Broker::Kafka, None, 0, 100).await.unwrap();
    assert_eq!(owed[0].0.event_id, first[0].event_id, "what is open is open");
    let repeat = Unit { idempotency: Some(claim("k", 1)), ..submit(&job) };
    let cancel = command(job.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() });
    match &store.commit(Arc::new(vec![repeat, cancel])).await.unwrap()[..] {
        [Outcome::Repeated(response), Outcome::Committed { events, .. }] => {
            assert_eq!(response.body, "answer k");
            assert_eq!(events[0].sequence, 2, "numbers go on");
            assert!(events[0].position > first[0].position);
        }
        other => panic!("{other:?}"),
    }
    store.close().await;
}

pub async fn a_large_job_comes_back_whole(opened: &Opened) {
    let params = serde_json::json!({ "mask": "✓".repeat(100_000), "rows": vec![1.5; 10_000] }).to_string();
    let mut large = job("ada");
    large.params = serde_json::value::RawValue::from_string(params.clone()).unwrap().into();
    let submitted = committed(opened, submit(&large)).await;
    let stored = opened.store.job(large.id).await.unwrap().unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(stored.params.get()).unwrap(),
        serde_json::from_str::<serde_json::Value>(&params).unwrap()
    );
    let ids: Vec<Id> = submitted.iter().map(|event| event.event_id).collect();
    let events = opened.store.events_by_id(&ids).await.unwrap();
    for event in &submitted {
        let read = events.iter().find(|read| read.event_id == event.event_id).unwrap();
        assert_eq!(read.payload.json, event.payload.json);
    }
    assert!(events.iter().any(|event| event.payload.json.len() > 300_000), "the command carries it");
}

pub async fn two_units_of_one_key_in_a_batch_are_one(opened: &Opened) {
    let unit = || Unit { idempotency: Some(claim("k", 1)), ..submit(&job("ada")) };
    let outcomes = commit(opened, vec![unit(), unit()]).await;
    assert!(matches!(outcomes[..], [Outcome::Committed { .. }, Outcome::Repeated(_)]), "{outcomes:?}");
    assert_eq!(all_jobs(opened).await, 1);
}

async fn all_jobs(opened: &Opened) -> usize {
    let page = Page { before: None, limit: 500 };
    opened.store.jobs(&JobFilter::default(), page).await.unwrap().len()
}

pub async fn a_refused_unit_leaves_nothing_and_others_go_through(opened: &Opened) {
    let (one, two) = (job("ada"), job("ada"));
    committed(opened, submit(&one)).await;
    // The first command of the unit is fine, its second is not: neither counts.
    let mut mixed = command(one.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() });
    mixed.jobs.extend(command(two.id, JobCommand::Retry).jobs);
    mixed.idempotency = Some(claim("mixed", 1));
    let outcomes = commit(opened, vec![mixed, submit(&two)]).await;
    assert!(
        matches!(
            outcomes[..],
            [Outcome::Refused { index: 1, refusal: JobRefusal::NotFound }, Outcome::Committed { .. }]
        ),
        "{outcomes:?}"
    );
    assert_eq!(opened.store.job(one.id).await.unwrap().unwrap().status, JobStatus::Queued);
    assert_eq!(history(opened, one.id).await.len(), 1);
    // Its key is free again.
    let again = Unit { idempotency: Some(claim("mixed", 2)), ..submit(&job("ada")) };
    committed(opened, again).await;
}

async fn history(opened: &Opened, id: Id) -> Vec<Arc<Event>> {
    opened.store.aggregate_events("job", &id.to_string(), 0, 500).await.unwrap()
}

pub async fn numbers_have_no_gaps_over_batches(opened: &Opened) {
    let jobs: Vec<_> = (0..20).map(|n| job(if n % 2 == 0 { "ada" } else { "bob" })).collect();
    let mut units: Vec<Unit> = jobs.iter().map(submit).collect();
    let late = units.split_off(10);
    commit(opened, units).await;
    commit(opened, late).await;
    let cancel = |id| command(id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() });
    commit(opened, jobs.iter().map(|job| cancel(job.id)).collect()).await;
    for job in &jobs {
        let sequences: Vec<i64> = history(opened, job.id).await.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, [1, 2, 3]);
    }
    for user in ["ada", "bob"] {
        let found = opened.store.channel_ranges(&[(Channel::User(user.into()), 0, 1_000)]).await.unwrap();
        let offsets: Vec<i64> = found.iter().filter_map(|(_, event)| event.user_offset).collect();
        assert_eq!(offsets, (1..=30).collect::<Vec<i64>>());
        assert_eq!(opened.store.channel_heads(&[Channel::User(user.into())]).await.unwrap(), [30]);
    }
}

pub async fn a_message_has_its_effect_once(opened: &Opened) {
    let event = committed(opened, submit(&job("ada"))).await.remove(0);
    let unit = || Unit { effects: vec![counting("seen")], ..delivery("metrics", &event, Verdict::Done) };
    let outcomes = commit(opened, vec![unit(), unit()]).await;
    assert!(matches!(outcomes[..], [Outcome::Committed { .. }, Outcome::Duplicate]), "{outcomes:?}");
    assert!(matches!(commit(opened, vec![unit()]).await[..], [Outcome::Duplicate]));
    let row = opened.store.read_model("test", "row").await.unwrap().unwrap();
    assert_eq!(row["seen"], 1);
}

fn counting(field: &'static str) -> Effect {
    let mut fold = Fold { model: "test", key: "row".into(), ..Fold::default() };
    fold.add.insert(field, 1.0);
    Effect::Fold(fold)
}

/// Three events of one job.
async fn three_events(opened: &Opened) -> Vec<Arc<Event>> {
    let job = job("ada");
    committed(opened, submit(&job)).await;
    committed(opened, command(job.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() })).await;
    history(opened, job.id).await
}

async fn due(opened: &Opened) -> Vec<Id> {
    let now = Timestamp::now().plus_ms(1);
    let (rows, _) = opened.store.backlog_due("audit", now, 100).await.unwrap();
    rows.iter().map(|row| row.event_id).collect()
}

fn from_backlog(event: &Event, verdict: Verdict) -> Unit {
    let mut unit = delivery("audit", event, verdict);
    unit.delivery.as_mut().unwrap().from_backlog = true;
    unit
}

pub async fn later_events_of_a_failed_key_park_and_come_back_in_order(opened: &Opened) {
    let events = three_events(opened).await;
    let now = Timestamp::now();
    commit(opened, vec![delivery("audit", &events[0], failed(Some(now)))]).await;
    // Handled well, but not its turn: parked, without its effects.
    let second = Unit { effects: vec![counting("second")], ..delivery("audit", &events[1], Verdict::Done) };
    let third = delivery("audit", &events[2], failed(None));
    assert!(matches!(commit(opened, vec![second, third]).await[..], [Outcome::Parked, Outcome::Parked]));
    assert!(opened.store.read_model("test", "row").await.unwrap().is_none());
    for event in &events {
        assert_eq!(due(opened).await, [event.event_id], "one at a time, in sequence");
        committed(opened, from_backlog(event, Verdict::Done)).await;
    }
    assert!(due(opened).await.is_empty());
    // The key is free: the next message is handled at once.
    let more = three_events(opened).await;
    committed(opened, delivery("audit", &more[0], Verdict::Done)).await;
}

/// A broker may deliver again what is in the backlog: after a crash before the acknowledgement, or from
/// the beginning of a topic.
pub async fn what_is_delivered_again_keeps_its_place_in_the_backlog(opened: &Opened) {
    let (dead, waiting) = (three_events(opened).await, three_events(opened).await);
    commit(opened, vec![delivery("audit", &dead[0], failed(None))]).await;
    let now = Timestamp::now();
    let second = Verdict::Failed { error: "no luck".into(), attempts: 2, retry_at: Some(now) };
    commit(opened, vec![delivery("audit", &waiting[0], failed(Some(now)))]).await;
    commit(opened, vec![from_backlog(&waiting[0], second)]).await;

    for verdict in [Verdict::Done, failed(Some(now))] {
        let again = [&dead[0], &waiting[0]].map(|event| delivery("audit", event, verdict.clone()));
        assert!(matches!(commit(opened, again.into()).await[..], [Outcome::Parked, Outcome::Parked]));
        assert_eq!(opened.store.wake_headless("audit", now).await.unwrap(), 0, "neither is parked");
        let (rows, _) = opened.store.backlog_due("audit", Timestamp::now(), 100).await.unwrap();
        let due: Vec<_> = rows.iter().map(|row| (row.event_id, row.attempts)).collect();
        assert_eq!(due, [(waiting[0].event_id, 2)], "the dead one stays dead");
    }
}

pub async fn a_dead_head_keeps_its_key_blocked(opened: &Opened) {
    let events = three_events(opened).await;
    commit(opened, vec![delivery("audit", &events[0], failed(None))]).await;
    assert!(matches!(commit(opened, vec![delivery("audit", &events[1], Verdict::Done)]).await[..], [Outcome::Parked]));
    assert!(due(opened).await.is_empty(), "nothing comes back by itself");
    assert_eq!(opened.store.wake_headless("audit", Timestamp::now()).await.unwrap(), 0, "a dead head is a head");
    let other = three_events(opened).await;
    committed(opened, delivery("audit", &other[0], Verdict::Done)).await;
}

pub async fn consumers_without_order_park_nothing(opened: &Opened) {
    let events = three_events(opened).await;
    let unordered = |event: &Event, verdict| {
        let mut unit = delivery("metrics", event, verdict);
        unit.delivery.as_mut().unwrap().ordered = false;
        unit
    };
    commit(opened, vec![unordered(&events[0], failed(None))]).await;
    committed(opened, unordered(&events[1], Verdict::Done)).await;
}

pub async fn claims_take_the_best_job_and_only_once(opened: &Opened) {
    let mut jobs = [job("ada"), job("ada"), job("ada")];
    jobs[2].priority = Priority::High;
    commit(opened, jobs.iter().map(submit).collect()).await;
    let best = opened.store.claimable(RunnerKind::External, &[], 10).await.unwrap();
    assert_eq!(best, [jobs[2].id, jobs[0].id, jobs[1].id], "priority, then age");
    assert!(opened.store.claimable(RunnerKind::Process, &[], 10).await.unwrap().is_empty());
    let take = |claimant: &str| {
        let lease_until = Timestamp::now().plus_ms(60_000);
        command(jobs[2].id, JobCommand::Claim { claimant: claimant.into(), lease_until, start: false })
    };
    let outcomes = commit(opened, vec![take("one"), take("two")]).await;
    assert!(matches!(outcomes[..], [Outcome::Committed { .. }, Outcome::Refused { .. }]), "{outcomes:?}");
    assert_eq!(opened.store.claimable(RunnerKind::External, &[], 10).await.unwrap().len(), 2);
}

fn report(id: Id, attempt: u32, report: Report) -> Unit {
    command(id, JobCommand::Report { claimant: "w".into(), attempt, report })
}

async fn running(opened: &Opened) -> Id {
    let job = job("ada");
    committed(opened, submit(&job)).await;
    let lease_until = Timestamp::now().plus_ms(60_000);
    committed(opened, command(job.id, JobCommand::Claim { claimant: "w".into(), lease_until, start: true })).await;
    job.id
}

pub async fn a_stale_report_is_refused_and_a_repeat_writes_nothing(opened: &Opened) {
    let id = running(opened).await;
    let done = || report(id, 1, Report::Completed { result: Box::default() });
    assert_eq!(committed(opened, done()).await.len(), 2);
    assert!(committed(opened, done()).await.is_empty(), "a repeat");
    let outcomes = commit(opened, vec![report(id, 2, Report::Cancelled { reason: String::new() })]).await;
    assert!(
        matches!(
            outcomes[..],
            [Outcome::Refused { refusal: JobRefusal::StaleAttempt { reported: 2, current: 1 }, .. }]
        ),
        "{outcomes:?}"
    );
    assert_eq!(history(opened, id).await.len(), 4);
}

fn mark(event: &Event, broker: Broker, state: LegState, offset: Option<i64>) -> LegMark {
    LegMark {
        position: event.position,
        broker,
        state,
        attempts: 1,
        partition: offset.map(|_| 0),
        offset,
        at: Timestamp::now(),
        next_at: None,
        error: None,
        skip: None,
    }
}

pub async fn marks_settle_legs_and_never_unsettle_them(opened: &Opened) {
    let event = committed(opened, submit(&job("ada"))).await.remove(0);
    let open = |broker| opened.store.open_legs(broker, None, 0, 100);
    assert_eq!(open(Broker::Rabbitmq).await.unwrap().len(), 1);
    assert_eq!(open(Broker::Nats).await.unwrap().len(), 0, "claimed through the API: skipped");
    let marks = |state, offset| Unit { marks: vec![mark(&event, Broker::Rabbitmq, state, offset)], ..Unit::default() };
    commit(opened, vec![marks(LegState::Done, Some(7))]).await;
    assert!(open(Broker::Rabbitmq).await.unwrap().is_empty());
    // A late mark of an earlier try says nothing any more.
    commit(opened, vec![marks(LegState::Pending, None)]).await;
    assert!(open(Broker::Rabbitmq).await.unwrap().is_empty());
    let deliveries = opened.store.event_deliveries(event.event_id).await.unwrap().unwrap();
    let leg = deliveries.legs.iter().find(|leg| leg.broker == Broker::Rabbitmq).unwrap();
    assert_eq!((leg.state, leg.offset), (LegState::Done, Some(7)));
}

pub async fn lost_log_tails_reopen_their_legs(opened: &Opened) {
    // JetStream's log is the stream, not the subject that the route names.
    for (broker, log) in [(Broker::Rabbitmq, "job.events"), (Broker::Nats, "COMMANDS_JOB")] {
        let end = |end| BrokerEnd { broker, log: log.into(), partition: 0, end };
        let mut events = Vec::new();
        for offset in 0..4 {
            let submitted = committed(opened, submit(&job("ada"))).await;
            let owes = |event: &Arc<Event>| event.event_type.brokers().contains(&broker);
            let event = submitted.into_iter().find(owes).unwrap();
            let marks = vec![mark(&event, broker, LegState::Done, Some(offset))];
            commit(opened, vec![Unit { marks, ends: vec![end(offset + 1)], ..Unit::default() }]).await;
            events.push(event);
        }
        let known = async || {
            let ends = opened.store.broker_ends().await.unwrap();
            ends.into_iter().find(|known| known.broker == broker).unwrap().end
        };
        assert_eq!(known().await, 4);
        assert_eq!(opened.store.reopen_legs(&[end(2)]).await.unwrap(), 2);
        assert_eq!(known().await, 2);
        let mut newest = opened.store.deliveries(Page { before: None, limit: 100 }).await.unwrap();
        newest.retain(|found| events.iter().any(|event| event.event_id == found.event.event_id));
        let state = |found: &Deliveries| found.legs.iter().find(|leg| leg.broker == broker).unwrap().state;
        let states: Vec<(Id, LegState)> =
            newest.iter().rev().map(|found| (found.event.event_id, state(found))).collect();
        let expected = [LegState::Done, LegState::Done, LegState::Pending, LegState::Pending];
        assert_eq!(states, events.iter().map(|event| event.event_id).zip(expected).collect::<Vec<_>>());
        let open = opened.store.open_legs(broker, None, events[0].position - 1, 100).await.unwrap();
        assert_eq!(
            open.iter().map(|(event, _)| event.event_id).collect::<Vec<_>>(),
            [2, 3].map(|n| events[n].event_id)
        );
    }
}

pub async fn what_a_broker_has_lost_is_owed_again(opened: &Opened) {
    let mut positions = Vec::new();
    for offset in 0..3 {
        let event = committed(opened, submit(&job("ada"))).await.remove(0);
        let marks = vec![mark(&event, Broker::Kafka, LegState::Done, Some(offset))];
        commit(opened, vec![Unit { marks, ..Unit::default() }]).await;
        positions.push(event.position);
    }
    let pending = committed(opened, submit(&job("ada"))).await.remove(0).position;
    let lost = [positions[0], positions[2], pending];
    assert_eq!(opened.store.publish_again(Broker::Kafka, &lost).await.unwrap(), 2, "what was done");
    assert_eq!(opened.store.publish_again(Broker::Kafka, &lost).await.unwrap(), 0, "once");
    for (position, state) in positions.into_iter().zip([LegState::Pending, LegState::Done, LegState::Pending]) {
        let found = opened.store.deliveries(Page { before: Some(position + 1), limit: 1 }).await.unwrap();
        let leg = found[0].legs.iter().find(|leg| leg.broker == Broker::Kafka).unwrap();
        assert_eq!((leg.position, leg.state), (position, state));
        assert_eq!(leg.offset.is_some(), state == LegState::Done);
    }
}

pub async fn channels_replay_exactly_or_say_snapshot(opened: &Opened) {
    let id = running(opened).await;
    let limit = |events| ReplayLimit { events, bytes: 1_000_000 };
    let channel = Channel::Job(id);
    let replay = async |cursor, events| {
        let wanted = [(channel.clone(), cursor)];
        opened.store.channels(&wanted, limit(events)).await.unwrap().remove(0)
    };
    match replay(Some(1), 10).await {
        state if state.head == 2 => match state.replay {
            Replay::Events(events) => assert_eq!(events.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2]),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    assert!(matches!(replay(Some(2), 10).await.replay, Replay::Events(events) if events.is_empty()));
    assert!(matches!(replay(Some(0), 1).await.replay, Replay::Snapshot(_)), "too many were missed");
    assert!(matches!(replay(None, 10).await.replay, Replay::Snapshot(_)), "no cursor");
    assert!(matches!(replay(Some(3), 10).await.replay, Replay::Snapshot(_)), "a cursor from another history");
}

pub async fn folds_add_up_within_and_over_batches(opened: &Opened) {
    let unit = || Unit { effects: vec![counting("n")], ..Unit::default() };
    commit(opened, vec![unit(), unit(), unit()]).await;
    commit(opened, vec![unit()]).await;
    assert_eq!(opened.store.read_model("test", "row").await.unwrap().unwrap()["n"], 4);
}

pub async fn lists_page_without_holes(opened: &Opened) {
    let jobs: Vec<_> = (0..25).map(|n| job(if n % 5 == 0 { "bob" } else { "ada" })).collect();
    commit(opened, jobs.iter().map(submit).collect()).await;
    let filter = JobFilter { user: Some("ada".into()), ..JobFilter::default() };
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = opened.store.jobs(&filter, Page { before, limit: 7 }).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        seen.extend(page.iter().map(|job| job.id));
    }
    let mut wanted: Vec<Id> = jobs.iter().filter(|job| &*job.user_id == "ada").map(|job| job.id).collect();
    wanted.reverse();
    assert_eq!(seen, wanted);
    let summary = opened.store.job_summary(&filter).await.unwrap();
    assert_eq!(summary.by_status.get(&JobStatus::Queued), Some(&20));
}

pub async fn due_retries_and_lapsed_leases_are_found(opened: &Opened) {
    let id = running(opened).await;
    let error = JobError { code: "x".into(), message: "y".into(), retriable: true, exit_code: None, stack_trace: None };
    committed(opened, report(id, 1, Report::Failed { error, counted: true })).await;
    let (due, next) = opened.store.due_retries(Timestamp::now(), 10).await.unwrap();
    assert!(due.is_empty() && next.is_some(), "a second from now");
    let (due, _) = opened.store.due_retries(Timestamp::now().plus_ms(5_000), 10).await.unwrap();
    assert_eq!(due, [(id, 1)]);

    let leased = running(opened).await;
    assert!(opened.store.lapsed_leases(Timestamp::now(), 10).await.unwrap().is_empty());
    let later = Timestamp::now().plus_ms(61_000);
    assert_eq!(opened.store.lapsed_leases(later, 10).await.unwrap(), [(leased, 1)]);
}

pub async fn what_there_is_to_do_is_counted(opened: &Opened) {
    let jobs = [job("ada"), job("ada"), job("ben"), job("ben"), job("ben")];
    for job in &jobs {
        committed(opened, submit(job)).await;
    }
    let lease_until = Timestamp::now().plus_ms(60_000);
    // Claimed is not yet running.
    for (job, start) in [(&jobs[0], true), (&jobs[1], true), (&jobs[2], false)] {
        let claim = JobCommand::Claim { claimant: "worker".into(), lease_until, start };
        committed(opened, command(job.id, claim)).await;
    }
    let cancel = JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() };
    committed(opened, command(jobs[4].id, cancel)).await;
    let report = Report::Completed { result: Box::default() };
    committed(opened, command(jobs[1].id, JobCommand::Report { claimant: "worker".into(), attempt: 1, report })).await;
    assert_eq!(opened.store.workload().await.unwrap(), Workload { running: 1, queued: 2 });
}

pub async fn a_read_model_adds_up_from_a_key_on(opened: &Opened) {
    let sum = async |from: &str| opened.store.read_model_sum("test", "n", from).await.unwrap();
    assert_eq!(sum("").await, 0.0);
    for (key, field, amount) in [("a", "n", 1.0), ("b", "n", 2.5), ("c", "other", 9.0), ("d", "n", 4.0)] {
        let mut fold = Fold { model: "test", key: key.into(), ..Fold::default() };
        fold.add.insert(field, amount);
        commit(opened, vec![Unit { effects: vec![Effect::Fold(fold)], ..Unit::default() }]).await;
    }
    assert_eq!(sum("").await, 7.5);
    assert_eq!(sum("b").await, 6.5);
    assert_eq!(sum("e").await, 0.0);
}
