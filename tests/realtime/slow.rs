//! Readers that are slow or stuck: they cost the others nothing, hold little memory, and
//! are told what they missed.

use std::time::Duration;

use event_gateway::domain::Channel;
use serde_json::json;

use crate::gateway::{Gateway, until};

/// Large enough that the kernel's buffers hold few of them.
const BULK: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_reader_loses_its_rooms_and_gets_a_resync_when_it_reads_again() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let idle = gateway.running("ada").await;
    let (name, channel) = (format!("job:{job}"), Channel::Job(job));
    let mut stuck = gateway.operator().await;
    stuck.join(job, Some(2)).await;
    stuck.join(idle, Some(2)).await;
    let mut witness = gateway.client("ada").await;
    witness.join(job, Some(2)).await;
    let mut head = 2;
    // The witness reads everything while the other reads nothing.
    while gateway.realtime.progress(&channel).len() == 2 {
        assert!(head < 2_000, "the stuck reader keeps its room");
        gateway.commit(vec![gateway.bulky(job, BULK)]).await;
        head += 1;
        assert_eq!(witness.event_of(&name).await.offset(), head);
    }
    until("all its rooms to be left", || gateway.realtime.progress(&Channel::Job(idle)).is_empty()).await;
    for _ in 0..20 {
        gateway.commit(vec![gateway.bulky(job, BULK)]).await;
        head += 1;
        assert_eq!(witness.event_of(&name).await.offset(), head);
    }
    // It reads again: first what was on its way, in order, then what became of the rest.
    let mut last = 2;
    let resync = loop {
        let event = stuck.event().await;
        if event.name == "resync" && event.channel() == name {
            break event;
        }
        if event.channel() == name {
            assert_eq!(event.offset(), last + 1);
            last = event.offset();
        }
    };
    assert_eq!(resync.body["from"], last);
    assert_eq!(resync.body["to"], head);
    assert_eq!(resync.body["snapshot"]["job"]["id"], job.to_string());
    until("it to be back in its rooms", || {
        gateway.realtime.progress(&channel).len() == 2 && gateway.realtime.progress(&Channel::Job(idle)).len() == 1
    })
    .await;
    gateway.report(job, 3).await;
    for offset in head + 1..=head + 3 {
        assert_eq!(stuck.event_of(&name).await.offset(), offset);
    }
    assert!(gateway.metrics.socket_resyncs[event_gateway::telemetry::metrics::Resync::SlowReader].get() >= 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_never_reads_again_is_let_go() {
    let gateway = Gateway::start_with(|options| {
        options.ping_interval = Duration::from_secs(1);
        options.ping_timeout = Duration::from_secs(1);
    })
    .await;
    let job = gateway.running("ada").await;
    let mut stuck = gateway.client("ada").await;
    stuck.join(job, Some(2)).await;
    while !gateway.realtime.progress(&Channel::Job(job)).is_empty() {
        gateway.commit(vec![gateway.bulky(job, BULK)]).await;
    }
    until("it to be gone", || gateway.metrics.sockets_connected.get() == 0).await;
    // The write that waits for it ends with the kernel's patience, and with it the
    // descriptor and what it holds.
    until("its connection to be given up", || connections(gateway.address) == 0).await;
    drop(stuck);
    gateway.stop().await;
}

/// A burst much larger than the queue towards sockets that do read: nobody loses a room as
/// long as the events come no faster than they are read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_no_reason_to_lose_anything() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    let name = format!("job:{job}");
    let mut client = gateway.client("ada").await;
    client.join(job, Some(2)).await;
    let units = (0..250).map(|_| gateway.progress(job)).collect();
    gateway.commit(units).await;
    for offset in 3..=252 {
        assert_eq!(client.event_of(&name).await.offset(), offset);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_cut_off() {
    let gateway = Gateway::start().await;
    let job = gateway.running("ada").await;
    gateway.commit((0..400).map(|_| gateway.bulky(job, 2_000)).collect()).await;
    let mut client = gateway.client("ada").await;
    // Each answer is nearly a megabyte.
    for _ in 0..2_000 {
        client.ask_later("join_job_channel", json!({ "jobId": job, "lastOffset": 2 })).await;
    }
    // Answers wait for their turn: the rest is refused or still unread, nothing grows.
    for _ in 0..10 {
        let crate::client::Packet::Ack(..) = client.packet().await else { continue };
    }
    drop(client);
    until("it to be gone", || gateway.metrics.sockets_connected.get() == 0).await;
    gateway.stop().await;
}

/// Connections that `address` has accepted and not closed.
fn connections(address: std::net::SocketAddr) -> usize {
    let all = procfs::net::tcp().unwrap();
    let open = |entry: &&procfs::net::TcpNetEntry| entry.state != procfs::net::TcpState::Listen && entry.inode != 0;
    all.iter().filter(|entry| entry.local_address == address).filter(open).count()
}
