use std::time::Duration;

use serde_json::json;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const NOW: Timestamp = Timestamp(1_000_000_000_000);

pub(super) fn leg(offset: i64, age: Duration) -> OwedLeg {
    OwedLeg {
        event_id: Id::new(),
        committed: 1,
        event_type: "job.submitted".into(),
        aggregate: "job".into(),
        aggregate_id: "a".into(),
        sequence: 1,
        ordered: true,
        state: LegState::Done,
        log: Some("log".into()),
        target: "commands.job.submit.process".into(),
        partition: Some(0),
        offset: Some(offset),
        occurred_at: NOW.plus_ms(-i64::try_from(age.as_millis()).unwrap()),
        command: None,
    }
}

fn judged(leg: &OwedLeg, keeps: Keeps) -> Absence {
    let extent = Extent { log: "log".into(), partition: 0, start: 10, end: 20, keeps };
    absence(leg, &HashMap::from([(("log", 0), &extent)]), NOW)
}

fn is_missing(leg: &OwedLeg, keeps: Keeps) -> bool {
    matches!(judged(leg, keeps), Absence::Missing(_))
}

#[test]
fn only_what_is_old_enough_may_have_left_a_log() {
    assert_eq!(judged(&leg(9, 2 * HOUR), Keeps::For(HOUR)), Absence::Retired);
    assert!(is_missing(&leg(9, HOUR / 2), Keeps::For(HOUR)), "young, before the beginning");
    assert!(is_missing(&leg(10, 2 * HOUR), Keeps::For(HOUR)), "old, but between others");
    assert_eq!(judged(&leg(9, Duration::ZERO), Keeps::Bounded), Absence::Retired);
    assert!(is_missing(&leg(12, 2 * HOUR), Keeps::Bounded));
    assert!(is_missing(&leg(9, 1000 * HOUR), Keeps::For(Duration::MAX)));
}

#[test]
fn what_lies_beyond_the_end_was_lost() {
    assert!(is_missing(&leg(20, 2 * HOUR), Keeps::For(HOUR)));
    assert!(is_missing(&leg(20, 2 * HOUR), Keeps::Bounded));
    assert!(is_missing(&leg(20, HOUR), Keeps::UntilConsumed(vec![(">".into(), 100)])));
}

#[test]
fn work_is_consumed_only_by_a_consumer_of_its_subject_that_was_given_it() {
    let given = |filter: &str, end| Keeps::UntilConsumed(vec![("other.>".into(), 20), (filter.into(), end)]);
    assert_eq!(judged(&leg(5, HOUR), given("commands.job.submit.*", 6)), Absence::Consumed);
    assert!(is_missing(&leg(6, HOUR), given("commands.job.submit.*", 6)), "not given yet");
    assert!(is_missing(&leg(5, HOUR), given("commands.job.submit.tapis", 20)), "another kind's");
    assert!(is_missing(&leg(5, HOUR), Keeps::UntilConsumed(Vec::new())), "nobody's");
}

#[test]
fn a_command_that_was_handed_out_has_left_traces() {
    let job = |status: &str, attempt: u32, claimant: Option<&str>| -> Job {
        serde_json::from_value(json!({
            "id": Id::new(), "user_id": "ann", "name": "a", "agent": "x", "runner": "external", "dataset_id": "d",
            "tacc_system": "other", "external_job_id": null, "status": status, "progress": null, "priority": "normal",
            "params": {}, "resource_request": {}, "result": null, "error": null, "attempt": attempt, "retry_count": 0,
            "max_retries": 3, "retry_at": null, "cancel_requested": false, "claimant": claimant, "lease_until": null,
            "estimated_cost_usd": 0.0, "created_at": NOW, "updated_at": NOW, "started_at": null, "completed_at": null
        }))
        .unwrap()
    };
    let command = |runner: &str, buried: bool| -> Command {
        serde_json::from_value(json!({ "attempt": 2, "runner": runner, "buried": buried })).unwrap()
    };
    let given = command("external", false);
    let waits = job("QUEUED", 2, None);
    assert!(matches!(given.after_handout(Some(&waits)), Absence::Missing(_)), "later ones prove nothing");
    assert_eq!(command("process", false).after_handout(Some(&waits)), Absence::Unclaimed);
    assert_eq!(command("external", true).after_handout(Some(&waits)), Absence::Consumed, "a dead letter");
    for traced in [job("QUEUED", 2, Some("w")), job("RUNNING", 2, Some("w")), job("CANCELLED", 2, None)] {
        assert_eq!(given.after_handout(Some(&traced)), Absence::Consumed, "{:?}", traced.status);
    }
    assert_eq!(given.after_handout(Some(&job("QUEUED", 3, None))), Absence::Consumed, "its attempt is over");
    assert!(matches!(given.after_handout(Some(&job("FAILED", 1, None))), Absence::Missing(_)), "not begun");
    assert_eq!(given.after_handout(None), Absence::Consumed, "deleted with age");
}

#[test]
fn a_log_that_is_not_there_holds_nothing() {
    assert!(matches!(absence(&leg(1, HOUR), &HashMap::new(), NOW), Absence::Missing(why) if why.contains("exist")));
    let nowhere = OwedLeg { log: None, ..leg(1, HOUR) };
    assert!(matches!(absence(&nowhere, &HashMap::new(), NOW), Absence::Missing(why) if why.contains("takes")));
}

#[test]
fn what_a_log_keeps_is_published_again_and_work_is_not() {
    let lost = leg(20, HOUR);
    let again = |broker, log: &str, keeps| {
        let extent = Extent { log: log.into(), partition: 0, start: 10, end: 20, keeps };
        is_published_again(broker, &lost, &HashMap::from([((log, 0), &extent)]))
    };
    assert!(again(Broker::Kafka, "log", Keeps::For(HOUR)));
    assert!(again(Broker::Nats, "log", Keeps::Bounded));
    assert!(!again(Broker::Nats, "log", Keeps::UntilConsumed(Vec::new())));
    // Topics are logs; what an unknown stream would be nobody can say.
    assert!(again(Broker::Kafka, "another", Keeps::Bounded));
    assert!(!again(Broker::Nats, "another", Keeps::Bounded));
}
