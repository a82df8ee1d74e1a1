//! What reaches whom: order, holes, outages, samples, operators, the submit-to-screen time.

use event_gateway::domain::factory::Cause;
use event_gateway::domain::payload::{
    AlertRaised, ComponentStates, ComponentStatus, JobMetrics, JobMetricsRecorded, NotificationChannel,
    NotificationSent, ReadStatus, Severity, SystemHealthCheck, SystemMetrics,
};
use event_gateway::domain::{Event, Id, Timestamp};
use event_gateway::store::Unit;
use serde_json::json;

use crate::broadcast::Mode;
use crate::client::Client;
use crate::gateway::Gateway;

/// Reads a channel's offsets up to `last`; they must be without gap or repeat.
async fn follow(client: &mut Client, channel: &str, mut after: i64, last: i64) {
    while after < last {
        let event = client.event_of(channel).await;
        assert_eq!((event.name.as_str(), event.offset()), ("job_update", after + 1));
        after += 1;
    }
}

#[tokio::test]
async fn a_hole_is_filled_from_the_store_in_order() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    for _ in 0..5 {
        gateway.broadcast.set_mode(Mode::Lose);
        gateway.report(job, 3).await;
        gateway.broadcast.set_mode(Mode::Deliver);
        gateway.report(job, 2).await;
    }
    follow(&mut client, &name, 2, 27).await;
    gateway.stop().await;
}

#[tokio::test]
async fn events_out_of_order_are_delivered_in_order() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.broadcast.set_mode(Mode::Lose);
    let mut events = Vec::new();
    for _ in 0..40 {
        events.extend(gateway.commit(vec![gateway.progress(job)]).await);
    }
    gateway.broadcast.set_mode(Mode::Deliver);
    events.reverse();
    events.extend(events.clone());
    gateway.broadcast.send(&events).await;
    gateway.broadcast.drained().await;
    follow(&mut client, &format!("job:{job}"), 2, 42).await;
    let again = client.received().await.into_iter().filter(|event| event.channel().starts_with("job:")).count();
    assert_eq!(again, 0, "repeats are dropped");
    gateway.stop().await;
}

#[tokio::test]
async fn sockets_stay_live_while_the_broker_is_away() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.broadcast.set_away(true);
    gateway.report(job, 5).await;
    follow(&mut client, &name, 2, 7).await;
    // While it comes back events go on; none is lost on either side of the subscription.
    gateway.broadcast.set_away(false);
    gateway.broadcast.subscribed().await;
    gateway.report(job, 5).await;
    follow(&mut client, &name, 7, 12).await;
    gateway.stop().await;
}

#[tokio::test]
async fn what_the_instance_commits_itself_needs_no_broker() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.broadcast.set_mode(Mode::Lose);
    let mut events = gateway.commit(vec![gateway.progress(job)]).await;
    // One that the store does not have: no sweep can bring it.
    let mut next = Event::clone(&events[0]);
    (next.sequence, next.user_offset, next.draft.event_id) = (4, None, Id::new());
    events.push(next.into());
    gateway.own.committed(&events);
    follow(&mut client, &format!("job:{job}"), 2, 4).await;
    gateway.broadcast.set_mode(Mode::Deliver);
    gateway.broadcast.send(&events).await;
    gateway.broadcast.drained().await;
    let again = client.received().await.into_iter().filter(|event| event.channel().starts_with("job:")).count();
    assert_eq!(again, 0, "the queue brings them once more");
    gateway.stop().await;
}

#[tokio::test]
async fn everyone_gets_their_own_channel_from_the_start() {
    let gateway = Gateway::start().await;
    let mut ada = gateway.client("ada").await;
    let mut bob = gateway.client("bob").await;
    let mut own = gateway.client("ada").await;
    for client in [&mut ada, &mut bob, &mut own] {
        // The answer proves that the connection is served.
        client.received().await;
    }
    let job = gateway.submit("ada").await;
    for client in [&mut ada, &mut own] {
        let event = client.event().await;
        assert_eq!((event.name.as_str(), event.channel(), event.offset()), ("job_update", "user:ada", 1));
        assert_eq!(event.body["type"], "job.submitted");
        assert_eq!(event.body["job_id"], job.to_string());
    }
    gateway.submit("bob").await;
    assert_eq!(bob.event().await.channel(), "user:bob");
    assert_eq!(ada.received().await, []);
    gateway.stop().await;
}

#[tokio::test]
async fn a_left_room_is_silent() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.operator().await;
    client.join(job, Some(2)).await;
    let left = client.ask("leave_job_channel", json!({ "jobId": job })).await;
    assert_eq!(left, json!({ "left": true, "room": format!("job:{job}") }));
    let again = client.ask("leave_job_channel", json!({ "jobId": job })).await;
    assert_eq!(again["left"], false);
    // Somebody who stays proves that the update went out.
    let mut witness = gateway.client("ada").await;
    witness.join(job, Some(2)).await;
    gateway.report(job, 1).await;
    witness.event_of(&format!("job:{job}")).await;
    assert_eq!(client.received().await, []);
    gateway.stop().await;
}

#[tokio::test]
async fn samples_go_to_the_jobs_room_without_an_offset() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    let sample = JobMetricsRecorded {
        job_id: job,
        host: Some("node1".into()),
        sample_timestamp: Timestamp::now(),
        sample_interval_seconds: 1.0,
        metrics: JobMetrics { cpu_utilization_percent: 42.0, ..JobMetrics::default() },
    };
    let draft = gateway.factory.draft(&sample, &"ada".into(), &Cause::root(), Timestamp::now()).unwrap();
    gateway.commit(vec![Unit { events: vec![draft], ..Unit::default() }]).await;
    let event = client.event().await;
    assert_eq!((event.name.as_str(), event.channel()), ("telemetry_update", format!("job:{job}").as_str()));
    assert_eq!(event.body["job_id"], job.to_string());
    assert_eq!(event.body["data"]["metrics"]["cpu_utilization_percent"], 42.0);
    assert!(event.body.get("offset").is_none(), "{}", event.body);
    // Who joins later starts with the latest sample.
    let mut later = gateway.operator().await;
    later.join(job, Some(2)).await;
    assert_eq!(later.event().await, event);
    gateway.stop().await;
}

#[tokio::test]
async fn a_notification_reaches_its_user_in_the_users_order() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ada").await;
    client.received().await;
    let job = gateway.submit("ada").await;
    let notification = NotificationSent {
        notification_id: Id::new(),
        recipient_user_id: "ada".into(),
        channel: NotificationChannel::InApp,
        subject: "done".into(),
        message: "your job is done".into(),
        related_job_id: Some(job),
        data: None,
        read_status: ReadStatus::Unread,
        created_at: Timestamp::now(),
    };
    let draft = gateway.factory.draft(&notification, &"ada".into(), &Cause::root(), Timestamp::now()).unwrap();
    gateway.commit(vec![Unit { events: vec![draft], ..Unit::default() }]).await;
    assert_eq!(client.event().await.offset(), 1);
    let event = client.event().await;
    assert_eq!((event.name.as_str(), event.channel(), event.offset()), ("job_notification", "user:ada", 2));
    assert_eq!(event.body["job_id"], job.to_string());
    gateway.stop().await;
}

#[tokio::test]
async fn operators_get_alerts_and_statistics_and_others_do_not() {
    let gateway = Gateway::start().await;
    let mut operator = gateway.operator().await;
    let mut user = gateway.client("ada").await;
    operator.received().await;
    user.received().await;
    let alert = AlertRaised {
        alert_id: Id::new(),
        alert_type: "lag".into(),
        severity: Severity::Warning,
        message: "a consumer lags".into(),
        affected_resource_id: "orchestrator".into(),
        metrics: None,
    };
    let healthy = ComponentStatus::Healthy;
    let check = SystemHealthCheck {
        instance_id: "one".into(),
        check_timestamp: Timestamp::now(),
        components: ComponentStates {
            database: healthy,
            rabbitmq: healthy,
            kafka: healthy,
            nats: healthy,
            registry: healthy,
            external_api: healthy,
        },
        metrics: SystemMetrics::default(),
    };
    let system = "system".into();
    let drafts = vec![
        gateway.factory.draft(&alert, &system, &Cause::root(), Timestamp::now()).unwrap(),
        gateway.factory.draft(&check, &system, &Cause::root(), Timestamp::now()).unwrap(),
    ];
    gateway.commit(vec![Unit { events: drafts, ..Unit::default() }]).await;
    let first = operator.event().await;
    assert_eq!((first.name.as_str(), first.channel()), ("alert", "role:operator"));
    let second = operator.event().await;
    assert_eq!((second.name.as_str(), second.channel()), ("stats_update", "role:operator"));
    assert_eq!(user.received().await, []);
    // The next operator starts with the latest statistics.
    let mut next = gateway.operator().await;
    assert_eq!(next.event().await, second);
    gateway.stop().await;
}

#[tokio::test]
async fn acks_of_a_sample_are_timed() {
    let gateway = Gateway::start_with(|options| options.ack_every = 1).await;
    let job = gateway.running("ada").await;
    let mut client = gateway.client("ada").await;
    client.answers = true;
    let mut silent = gateway.client("ada").await;
    silent.join(job, None).await;
    client.ask("join_job_channel", json!({ "jobId": job, "acks": true })).await;
    gateway.submit("ada").await;
    let event = client.event().await;
    assert!(event.ack.is_some(), "{event:?}");
    assert_eq!(silent.event().await.ack, None, "who did not offer is not asked");
    // The answer comes after the ack on the same connection.
    client.received().await;
    let metrics = gateway.metrics.render();
    assert!(metrics.contains("submit_to_screen_seconds_count 1"), "{metrics}");
    // Acks that nobody asked for count nothing.
    client.send("43/messaging,0[]").await;
    client.send("43/messaging,77[]").await;
    client.answers = false;
    client.ask("leave_job_channel", json!({ "jobId": job })).await;
    assert!(gateway.metrics.render().contains("submit_to_screen_seconds_count 1"));
    gateway.stop().await;
}

#[tokio::test]
async fn what_was_delivered_and_seen_is_known() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let channel = event_gateway::domain::Channel::Job(job);
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    gateway.report(job, 3).await;
    follow(&mut client, &channel.to_string(), 2, 5).await;
    let answer = client.ask("seen", json!({ channel.to_string(): 4, "nonsense": 1 })).await;
    assert_eq!(answer["seen"], true);
    let progress = gateway.realtime.progress(&channel);
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].delivered, progress[0].seen), (5, 4));
    let again = client.ask("seen", json!({ channel.to_string(): 5 })).await;
    assert_eq!(again["error"]["code"], "rate_limited");
    gateway.stop().await;
}
