//! One broker is a real one, the others are embedded: each kind alone.

use std::time::{Duration, Instant};

use event_gateway::domain::Broker;

use crate::aftermath::consumers_have_everything;
use crate::gateway::Gateway;
use crate::play::psql;
use crate::readiness::until;
use crate::world::World;

#[test]
fn one_broker_alone_may_be_external() {
    for broker in Broker::ALL {
        let Some(world) = World::fresh() else { return };
        let mode = format!("{}.mode=external", broker.as_str());
        let settings = world.settings().into_iter().filter(|setting| !setting.starts_with("brokers.mode="));
        let settings: Vec<&str> = settings.chain(["brokers.mode=embedded", &mode]).collect();
        let gateway = Gateway::start(&settings);
        until(&gateway, &[]);
        let dataset = "anomaly-detection/quiet-receiver.csv";
        let ended = gateway.run(&["jobs", "submit", "--agent", "AnomalyDetection", "--dataset", dataset]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let watched = gateway.run(&["jobs", "watch", ended.stdout.trim()]);
        assert!(watched.stdout.contains("COMPLETED"), "{broker}: {}{}", watched.stdout, watched.stderr);
        everything_is_published(&world, broker);
        consumers_have_everything(&world);
        assert!(gateway.stop().success());
    }
}

/// To all three.
fn everything_is_published(world: &World, alone: Broker) {
    let open = "SELECT count(*) FILTER (WHERE state <> 1), count(DISTINCT broker) FROM legs";
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = psql(&world.database, open);
        if found == "0|3" {
            return;
        }
        assert!(Instant::now() < deadline, "{alone} external: {found}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
