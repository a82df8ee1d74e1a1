//! The Socket.IO namespace over real TCP connections, with events committed to a real
//! store and carried by a broadcast queue that the test holds in its hand; or, with
//! `EVENT_GATEWAY_TEST_ON=brokers`, to PostgreSQL and by RabbitMQ.

mod broadcast;
mod client;
#[path = "../support/environment.rs"]
mod environment;
#[path = "../support/fresh.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fresh;
mod gateway;
mod held;
#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod proxy;
mod rabbit;

mod auth;
mod delivery;
mod join;
mod limits;
mod slow;
