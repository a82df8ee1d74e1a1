//! The gateway on RabbitMQ, Kafka, NATS JetStream and PostgreSQL: the real binary plays a
//! workload log, other clients look into what the brokers have, nodes are killed meanwhile.
//!
//! `scripts/brokers env tests` says where the brokers are. Without it these tests say so and
//! pass, or fail if `REQUIRE_BROKERS=1`. One runs at a time: NATS has the streams' names once.

#[path = "../cli/gateway.rs"]
mod gateway;
#[path = "../cli/program.rs"]
mod program;

mod aftermath;
mod dead_letters;
#[path = "../support/effects.rs"]
mod effects;
#[path = "../support/environment.rs"]
mod environment;
mod faults;
mod instances;
mod lasting;
mod play;
mod projections;
#[path = "../support/proxy.rs"]
mod proxy;
mod readiness;
mod reconcile;
mod restore;
mod topology;
mod world;
