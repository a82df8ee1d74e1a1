//! The contract of the broker port: one suite that every publisher and subscriber
//! passes, on the embedded brokers and on the real ones.

mod embedded;
#[path = "../support/environment.rs"]
mod environment;
mod fixture;
mod kafka;
mod nats;
#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "the tests of the whole gateway use the rest of it")]
mod proxy;
mod rabbitmq;
mod suite;
