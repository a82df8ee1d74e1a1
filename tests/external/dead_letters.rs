//! What nobody can serve leaves the work queue as a dead letter.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;

use crate::gateway::Gateway;
use crate::play::psql;
use crate::world::{World, address};

#[test]
fn garbage_on_the_work_queue_is_one_dead_letter_and_gone_from_jetstream() {
    let Some(world) = World::fresh() else { return };
    let gateway = Gateway::start(&world.settings());
    let garbage = format!("garbage of {}", world.prefix);
    // Others may use the stream, too: only this body counts.
    let rows = |what: &str| {
        let query = format!(
            "SELECT {what} FROM backlog WHERE consumer = 'runner-process' AND state = 3 \
             AND body = convert_to('{garbage}', 'UTF8')"
        );
        psql(&world.database, &query)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers: Vec<String> = address("NATS").unwrap().split(',').map(str::to_owned).collect();
    let jetstream = runtime.block_on(async { async_nats::jetstream::new(async_nats::connect(servers).await.unwrap()) });
    let published = runtime.block_on(async {
        let sent = jetstream.publish("commands.job.submit.process", garbage.clone().into()).await.unwrap();
        sent.await.unwrap().sequence
    });

    await_that("a dead letter", || rows("count(*)") == "1");
    let found = rows("source || ': ' || (errors -> 0 ->> 'error')");
    for part in [
        &*format!("COMMANDS_JOB/0@{published}: "),
        "nats, stream COMMANDS_JOB, subject commands.job.submit.process: headers: the message has no headers",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    await_that("an empty consumer", || {
        runtime.block_on(async {
            let stream = jetstream.get_stream("COMMANDS_JOB").await.unwrap();
            let consumer: PullConsumer = stream.get_consumer("runner-process").await.unwrap();
            let info = consumer.cached_info();
            let gone = stream.get_raw_message(published).await.is_err();
            gone && (info.num_pending, info.num_ack_pending) == (0, 0)
        })
    });
    assert_eq!(rows("count(*)"), "1");

    // Where operators look.
    let metrics = runtime.block_on(async {
        let answer = reqwest::get(format!("{}/metrics", gateway.url())).await.unwrap();
        answer.text().await.unwrap()
    });
    let dead = metrics.lines().find(|line| line.contains("dead_letters{consumer=\"runner-process\"}")).unwrap();
    assert!(!dead.ends_with(" 0"), "{dead}");
    assert!(gateway.stop().success());
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
