//! What every store must do when rows grow old.

use std::sync::Arc;
use std::time::Duration;

use event_gateway::domain::job::JobCommand;
use event_gateway::domain::payload::CancelledBy;
use event_gateway::domain::{Broker, Channel, Event, Id, Timestamp};
use event_gateway::store::{
    AuditRow, Duty, Effect, EventFilter, Fold, LegMark, LegState, Page, Prunable, PruneStep, Renewal, Replay,
    ReplayLimit, Unit, Verdict,
};

use super::fixture::{Opened, claim, command, commit, committed, delivery, failed, job, submit};

/// Everything committed until now counts as old.
fn now() -> Timestamp {
    Timestamp::now().plus_ms(1_000)
}

/// Prunes to the end in steps of `limit`; rows deleted.
async fn prune_by(opened: &Opened, what: Prunable, before: Timestamp, limit: u32, dry_run: bool) -> u64 {
    let mut step = PruneStep { dry_run, ..PruneStep::first(what, before, limit) };
    let mut rows = 0;
    for _ in 0..1_000 {
        let pruned = opened.store.prune(&step).await.expect("it prunes");
        assert!(pruned.rows <= u64::from(limit), "a step is bounded");
        rows += pruned.rows;
        match pruned.next {
            Some(next) => step.after = Some(next),
            None => return rows,
        }
    }
    panic!("{what:?} does not come to an end");
}

async fn prune(opened: &Opened, what: Prunable) -> u64 {
    prune_by(opened, what, now(), 100, false).await
}

/// Marks every open leg done.
async fn deliver_all(opened: &Opened) {
    for broker in Broker::ALL {
        let open = opened.store.open_legs(broker, None, 0, 500).await.unwrap();
        let marks = open.iter().map(|(event, _)| mark(event, broker, LegState::Done)).collect();
        commit(opened, vec![Unit { marks, ..Unit::default() }]).await;
    }
}

fn mark(event: &Event, broker: Broker, state: LegState) -> LegMark {
    LegMark {
        position: event.position,
        broker,
        state,
        attempts: 1,
        partition: None,
        offset: None,
        at: Timestamp::now(),
        next_at: None,
        error: None,
        skip: None,
    }
}

/// A job that was submitted and cancelled; its events.
async fn ended(opened: &Opened, user: &str) -> (Id, Vec<Arc<Event>>) {
    let job = job(user);
    let mut events = committed(opened, submit(&job)).await;
    let cancel = command(job.id, JobCommand::Cancel { by: CancelledBy::User, reason: "no".into() });
    events.extend(committed(opened, cancel).await);
    (job.id, events)
}

/// The newest event always stays; this one belongs to nobody's assertions.
async fn newest(opened: &Opened) {
    committed(opened, submit(&job("zoe"))).await;
}

async fn stored_events(opened: &Opened, user: &str) -> usize {
    let filter = EventFilter { user: Some(user.into()), ..EventFilter::default() };
    opened.store.events(&filter, Page { before: None, limit: 500 }).await.unwrap().len()
}

pub async fn ended_jobs_go_with_all_that_is_theirs(opened: &Opened) {
    let (id, events) = ended(opened, "ada").await;
    let fold = Fold { model: "any", key: id.to_string(), ..Fold::default() };
    commit(opened, vec![Unit { effects: vec![Effect::Fold(fold)], ..Unit::default() }]).await;
    newest(opened).await;
    deliver_all(opened).await;

    assert_eq!(prune_by(opened, Prunable::Jobs, Timestamp::now().plus_ms(-60_000), 100, false).await, 0, "too young");
    assert_eq!(prune_by(opened, Prunable::Events, Timestamp::now().plus_ms(-60_000), 100, false).await, 0);
    assert_eq!(prune(opened, Prunable::Jobs).await, 1);
    assert!(opened.store.job(id).await.unwrap().is_none());
    assert!(opened.store.read_model("any", &id.to_string()).await.unwrap().is_none());
    assert_eq!(prune(opened, Prunable::Events).await, events.len() as u64);
    assert!(opened.store.event_deliveries(events[0].event_id).await.unwrap().is_none());
    assert_eq!(stored_events(opened, "ada").await, 0);
    let heads = opened.store.channel_heads(&[Channel::Job(id), Channel::User("ada".into())]).await.unwrap();
    assert_eq!(heads[0], 0);
    assert!(heads[1] > 0, "a user's offsets go on");
}

pub async fn open_legs_backlog_rows_and_open_jobs_keep_what_they_need(opened: &Opened) {
    let (waiting, parked) = ended(opened, "waiting").await;
    let queued = job("queued");
    committed(opened, submit(&queued)).await;
    deliver_all(opened).await;
    commit(opened, vec![delivery("audit", &parked[1], failed(None))]).await;
    // A dead leg is an open one: somebody must decide.
    let (dead, events) = ended(opened, "dead").await;
    let died = mark(&events[0], Broker::Rabbitmq, LegState::Dead);
    let rest = events[1..].iter().map(|event| mark(event, Broker::Rabbitmq, LegState::Done));
    let kafka = events.iter().map(|event| mark(event, Broker::Kafka, LegState::Done));
    let marks = std::iter::once(died).chain(rest).chain(kafka).collect();
    commit(opened, vec![Unit { marks, ..Unit::default() }]).await;
    let (undelivered, _) = ended(opened, "undelivered").await;
    newest(opened).await;

    assert_eq!(prune(opened, Prunable::Jobs).await, 0);
    assert_eq!(prune(opened, Prunable::Events).await, 0);

    // Settled, they go.
    deliver_all(opened).await;
    let mut handled = delivery("audit", &parked[1], Verdict::Done);
    handled.delivery.as_mut().unwrap().from_backlog = true;
    committed(opened, handled).await;
    assert_eq!(prune(opened, Prunable::Jobs).await, 3);
    for id in [waiting, dead, undelivered] {
        assert!(opened.store.job(id).await.unwrap().is_none());
    }
    assert!(opened.store.job(queued.id).await.unwrap().is_some(), "it has not ended");
    prune(opened, Prunable::Events).await;
    for user in ["waiting", "dead", "undelivered"] {
        assert_eq!(stored_events(opened, user).await, 0, "{user}");
    }
    assert!(stored_events(opened, "queued").await > 0);
}

pub async fn a_cursor_older_than_what_is_kept_gets_a_snapshot(opened: &Opened) {
    let (id, _) = ended(opened, "ada").await;
    newest(opened).await;
    deliver_all(opened).await;
    prune(opened, Prunable::Jobs).await;
    prune(opened, Prunable::Events).await;
    let later = job("ada");
    committed(opened, submit(&later)).await;
    let user = Channel::User("ada".into());
    let head = opened.store.channel_heads(std::slice::from_ref(&user)).await.unwrap()[0];
    let wanted = [(user.clone(), Some(0)), (user, Some(head - 1)), (Channel::Job(id), Some(1))];
    let limit = ReplayLimit { events: 500, bytes: 1_000_000 };
    let states = opened.store.channels(&wanted, limit).await.unwrap();
    assert!(matches!(states[0].replay, Replay::Snapshot(_)), "a part of it is gone");
    assert!(matches!(&states[1].replay, Replay::Events(events) if events.len() == 1), "what it missed is kept");
    assert!(matches!(states[2].replay, Replay::Snapshot(_)), "the job is gone");
}

pub async fn the_inbox_outlives_its_events(opened: &Opened) {
    let (_, events) = ended(opened, "ada").await;
    newest(opened).await;
    for consumer in ["audit", "metrics", "orchestrator"] {
        commit(opened, events.iter().map(|event| delivery(consumer, event, Verdict::Done)).collect()).await;
    }
    deliver_all(opened).await;
    assert_eq!(prune(opened, Prunable::Inbox).await, 0, "the events are still there");
    prune(opened, Prunable::Jobs).await;
    prune(opened, Prunable::Events).await;
    assert_eq!(prune_by(opened, Prunable::Inbox, now(), 2, false).await, 3 * events.len() as u64);
    // Gone: the message would be handled anew.
    committed(opened, delivery("audit", &events[0], Verdict::Done)).await;
}

pub async fn a_dry_run_counts_and_deletes_nothing(opened: &Opened) {
    let (id, events) = ended(opened, "ada").await;
    commit(opened, events.iter().map(|event| delivery("audit", event, Verdict::Done)).collect()).await;
    newest(opened).await;
    deliver_all(opened).await;
    for (what, rows) in [
        (Prunable::Jobs, 1),
        (Prunable::Events, events.len() as u64),
        (Prunable::Inbox, events.len() as u64),
        (Prunable::Idempotency, 0),
    ] {
        assert_eq!(prune_by(opened, what, now(), 2, true).await, rows, "{what:?}");
    }
    assert!(opened.store.job(id).await.unwrap().is_some());
    assert_eq!(stored_events(opened, "ada").await, events.len());
}

pub async fn steps_are_bounded_and_numbers_go_on(opened: &Opened) {
    let mut last = 0;
    for _ in 0..10 {
        last = ended(opened, "ada").await.1.last().unwrap().position;
    }
    deliver_all(opened).await;
    let audit = |number: u32| AuditRow {
        audit_id: Id::new(),
        audit_type: "audit.action",
        actor_user_id: "ada".into(),
        target_resource_type: "job",
        target_resource_id: number.to_string(),
        at: Timestamp::now(),
        details: serde_json::json!({}),
    };
    let effects = (0..10).map(|number| Effect::Audit(audit(number))).collect();
    commit(opened, vec![Unit { effects, ..Unit::default() }]).await;
    assert_eq!(prune_by(opened, Prunable::Jobs, now(), 3, false).await, 10);
    assert!(prune_by(opened, Prunable::Events, now(), 3, false).await >= 20);
    assert_eq!(prune_by(opened, Prunable::Audit, now(), 3, false).await, 9, "the newest is kept");
    let next = committed(opened, submit(&job("ada"))).await[0].position;
    assert!(next > last, "positions never come again");
}

pub async fn answers_and_minutes_go_by_age(opened: &Opened) {
    let unit = |key: &str| Unit { idempotency: Some(claim(key, 1)), ..submit(&job("ada")) };
    commit(opened, vec![unit("a"), unit("b"), unit("c")]).await;
    assert_eq!(prune_by(opened, Prunable::Idempotency, Timestamp::now().plus_ms(-60_000), 2, false).await, 0);
    assert_eq!(prune_by(opened, Prunable::Idempotency, now(), 2, false).await, 3);
    committed(opened, unit("a")).await;

    let minute = |at: Timestamp| Effect::Fold(Fold { model: "minutes", key: at.to_string(), ..Fold::default() });
    let (old, young) = (Timestamp::now().plus_ms(-3_600_000), Timestamp::now());
    commit(opened, vec![Unit { effects: vec![minute(old), minute(young)], ..Unit::default() }]).await;
    let before = Timestamp::now().plus_ms(-60_000);
    assert_eq!(prune_by(opened, Prunable::TimedModel("minutes"), before, 10, false).await, 1);
    assert!(opened.store.read_model("minutes", &old.to_string()).await.unwrap().is_none());
    assert!(opened.store.read_model("minutes", &young.to_string()).await.unwrap().is_some());
}

const LEASE: Duration = Duration::from_secs(60);

pub async fn a_lease_that_is_renewed_goes_on(opened: &Opened) {
    opened.store.enroll("one", LEASE).await.unwrap();
    submitted_again(opened).await;
    assert_eq!(opened.store.renew(LEASE).await.unwrap(), Renewal::Held { adopted: 0 });
    let duty = Duty { name: "retention", lease: LEASE };
    assert!(opened.store.take_duty(duty).await.unwrap());
    assert!(opened.store.take_duty(duty).await.unwrap(), "it keeps it");
    // A new start owes what the last one has left.
    opened.store.enroll("one", LEASE).await.unwrap();
    submitted_again(opened).await;
    assert_eq!(opened.store.open_legs(Broker::Rabbitmq, None, 0, 10).await.unwrap().len(), 2);
}

async fn submitted_again(opened: &Opened) {
    committed(opened, submit(&job("ada"))).await;
}

pub async fn epochs_count_up_per_instance(opened: &Opened) {
    let epoch = async |instance| opened.store.enroll(instance, LEASE).await.unwrap().epoch;
    assert_eq!(epoch("one").await, 1);
    assert_eq!(epoch("two").await, 1);
    assert_eq!(epoch("one").await, 2);
}
