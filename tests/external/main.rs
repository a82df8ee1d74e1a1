//! The gateway on RabbitMQ, Kafka, NATS JetStream and PostgreSQL: the real binary plays a
//! workload log, other clients look into what the brokers have, nodes are killed meanwhile.
//!
//! `scripts/brokers env tests` says where the brokers are. Without it these tests say so and
//! pass, or fail if `REQUIRE_BROKERS=1`. One runs at a time: NATS has the streams' names once.

#[path = "../cli/gateway.rs"]
#[expect(dead_code, reason = "the tests of the command line use the rest of it")]
mod gateway;
#[path = "../cli/program.rs"]
mod program;

mod aftermath;
mod dead_letters;
mod disorder;
mod domain;
#[path = "../support/effects.rs"]
mod effects;
#[path = "../support/environment.rs"]
mod environment;
mod faults;
#[path = "../support/fresh.rs"]
#[expect(dead_code, reason = "the tests of the gateway that run here as well use the rest of it")]
mod fresh;
mod instances;
mod intruder;
mod lag;
mod lasting;
mod mixed;
mod play;
mod projections;
#[path = "../support/proxy.rs"]
mod proxy;
mod readiness;
mod reconcile;
mod registry;
mod restore;
#[path = "../support/runtime.rs"]
mod runtime;
mod stock;
mod topology;
mod waiting;
mod work_queue;
mod world;
