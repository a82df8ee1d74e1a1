//! event-gateway: accepts jobs, commands and events over REST, commits each durably
//! once, publishes it to RabbitMQ, Kafka and NATS JetStream, and shows it live.
//!
//! `docs/architecture.md` maps the modules; each uses only what stands below it.

pub mod agents;
pub mod app;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod client;
pub mod config;
pub mod consumer;
pub mod domain;
pub mod http;
pub mod ops;
pub mod realtime;
pub mod relay;
pub mod runner;
pub mod schema_registry;
pub mod service;
pub mod store;
pub mod task;
pub mod telemetry;
