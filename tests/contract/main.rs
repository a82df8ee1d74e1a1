//! The contract of the broker port: one suite that every publisher and subscriber
//! passes, on the embedded brokers and on the real ones.

mod embedded;
#[path = "../support/environment.rs"]
mod environment;
mod fixture;
mod kafka;
mod nats;
mod rabbitmq;
mod suite;
