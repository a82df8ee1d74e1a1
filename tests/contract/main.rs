//! The contract of the broker port: one suite that every publisher and subscriber
//! passes, on the embedded brokers and on the real ones.

mod embedded;
mod fixture;
mod nats;
mod rabbitmq;
mod suite;
