//! How far a consumer is behind is seen in the metrics: by the number of messages that wait, and by
//! how old they can be.

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use crate::aftermath::consumers_have_everything;
use crate::gateway::Gateway;
use crate::readiness::{scraped, until};
use crate::reconcile::submitted;
use crate::runtime::runtime_beside;
use crate::waiting::{MINUTE, await_that};
use crate::world::{CLUSTER, World};

/// What a gauge of the audit's consumer says.
fn audits(gateway: &Gateway, gauge: &str) -> f64 {
    let text = scraped(gateway);
    let start = format!("event_gateway_{gauge}{{consumer=\"audit\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("{gauge} is not there: {text}")).parse().unwrap()
}

/// Somebody else reads the audit's queue, which has one reader at a time, and acknowledges nothing.
#[test]
fn a_consumer_that_must_wait_shows_how_many_messages_do_and_for_how_long() {
    let Some(world) = World::fresh() else { return };
    // The first declares the queue.
    assert!(Gateway::start(&world.settings()).stop().success());
    let runtime = runtime_beside();
    let (connection, reader) = runtime.block_on(async {
        let connection = Connection::connect(&world.amqp(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let reading = channel.basic_consume("job-events-audit".into(), "outsider".into(), options, arguments);
        (connection, reading.await.unwrap())
    });

    let gateway = Gateway::start(&world.settings());
    for _ in 0..5 {
        submitted(&gateway, &["--agent", CLUSTER, "--dataset", "d"]);
    }
    // One is in the other's hands.
    await_that("four messages", MINUTE, || audits(&gateway, "consumer_lag_messages") == 4.0);
    let seconds = audits(&gateway, "consumer_lag_seconds");
    await_that("their age", MINUTE, || audits(&gateway, "consumer_lag_seconds") > seconds + 1.0);

    drop(reader);
    runtime.block_on(connection.close(200, "done".into())).unwrap();
    for gauge in ["consumer_lag_messages", "consumer_lag_seconds"] {
        await_that(gauge, MINUTE, || audits(&gateway, gauge) == 0.0);
    }
    until(&gateway, &[]);
    consumers_have_everything(&world);
    assert!(gateway.stop().success());
}
