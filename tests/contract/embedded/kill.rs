//! SIGKILL at any moment: what was confirmed is there, what was not done comes again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use event_gateway::broker::Outgoing;
use event_gateway::broker::embedded::Embedded;
use event_gateway::domain::Broker;

use super::{Face, Nats, Rabbitmq, consumer, topology};
use crate::fixture::*;

/// Where the victim keeps its file; set by whoever starts it.
const DIRECTORY: &str = "CONTRACT_KILL_DIRECTORY";
const KEYS: usize = 16;

/// The victim: publishes and consumes, and says so, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a helper process of the kill tests"]
async fn victim() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let path = Path::new(&directory);
    if path.ends_with("nats") {
        publish_and_consume::<Nats>(path).await;
    } else {
        publish_and_consume::<Rabbitmq>(path).await;
    }
}

async fn open<F: Face>(directory: &Path) -> Embedded {
    Embedded::open(&directory.join("brokers.db"), topology::<F>(&["reader"])).await.unwrap()
}

fn say(line: std::fmt::Arguments<'_>) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

async fn publish_and_consume<F: Face>(directory: &Path) {
    let embedded = open::<F>(directory).await;
    let start = embedded.ends().iter().find(|end| end.broker == F::BROKER).unwrap().end;
    let publishing = async {
        let publisher = embedded.publisher(F::BROKER);
        for sequence in start.. {
            let event = |n| event(&format!("key-{n}"), sequence);
            let route = |n| F::route(&format!("key-{n}"));
            let window: Vec<Outgoing> = (0..KEYS).map(|n| Outgoing { event: event(n), route: route(n) }).collect();
            for position in publish(&*publisher, &window).await {
                say(format_args!("confirmed {}", position.offset.unwrap()));
            }
        }
    };
    let consuming = async {
        let mut inbound =
            embedded.subscriber(F::BROKER).subscribe(&consumer("reader", F::source("reader"))).await.unwrap();
        loop {
            let mut got = inbound.receive(10).await.unwrap();
            if F::BROKER == Broker::Nats {
                got.reverse(); // out of order, as work ends
            }
            for delivery in got {
                say(format_args!("done {}", delivery.position.offset.unwrap()));
                inbound.ack(&[delivery.token]).await.unwrap();
            }
        }
    };
    tokio::join!(publishing, consuming);
}

/// Runs the victim until it has said `lines` lines; returns what it confirmed and did.
fn run_and_kill(directory: &Path, lines: usize) -> (BTreeSet<i64>, BTreeSet<i64>) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "embedded::kill::victim", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(victim.stdout.take().unwrap());
    let (mut confirmed, mut done) = (BTreeSet::new(), BTreeSet::new());
    let mut line = String::new();
    let mut said = 0;
    // After the kill: what was said before it. A line without an end was cut off.
    while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        match line.trim_end().split_once(' ') {
            Some(("confirmed", offset)) => drop(confirmed.insert(offset.parse::<i64>().unwrap())),
            Some(("done", offset)) => drop(done.insert(offset.parse::<i64>().unwrap())),
            _ => {}
        }
        line.clear();
        said += 1;
        if said == lines {
            victim.kill().unwrap();
        }
    }
    let status = victim.wait().unwrap();
    assert!(said >= lines && status.code().is_none(), "the victim ended by itself after {said} lines: {status}");
    (confirmed, done)
}

async fn survives<F: Face>(name: &str) {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join(name);
    std::fs::create_dir(&directory).unwrap();
    let (mut confirmed, mut done) = (BTreeSet::new(), BTreeSet::new());
    for lines in [300, 1, 2000, 777] {
        let (now_confirmed, now_done) = run_and_kill(&directory, lines);
        confirmed.extend(now_confirmed);
        done.extend(now_done);
    }

    let embedded = open::<F>(&directory).await;
    let end = embedded.ends().into_iter().find(|end| end.broker == F::BROKER).unwrap();
    let mut there = Vec::new();
    while (there.len() as i64) < end.end {
        let page = embedded.records(F::BROKER, &end.log, 0, there.len() as i64, 1000).await.unwrap();
        there.extend(page.iter().map(|record| record.offset));
    }
    assert_eq!(there, (0..end.end).collect::<Vec<_>>(), "gap-free");
    assert!(confirmed.len() > 1000 && done.len() > 100, "{} and {}", confirmed.len(), done.len());
    assert!(
        confirmed.iter().all(|offset| *offset < end.end),
        "confirmed up to {:?}, there to {}",
        confirmed.last(),
        end.end
    );

    let mut inbound = embedded.subscriber(F::BROKER).subscribe(&consumer("reader", F::source("reader"))).await.unwrap();
    let owed = within(inbound.lag()).await.unwrap() as usize;
    let again: BTreeSet<i64> =
        consume(&mut *inbound, owed).await.iter().map(|delivery| delivery.position.offset.unwrap()).collect();
    let lost: Vec<i64> = (0..end.end).filter(|offset| !done.contains(offset) && !again.contains(offset)).collect();
    assert!(lost.is_empty(), "never delivered: {lost:?}");
    embedded.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_and_its_queue_survive_sigkill() {
    survives::<Rabbitmq>("rabbitmq").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_work_queue_survives_sigkill() {
    survives::<Nats>("nats").await;
}
