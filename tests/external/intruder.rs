//! Somebody else who reads a consumer's queue, which has one reader at a time.

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Runtime;

use crate::runtime::runtime_beside;
use crate::world::World;

/// Takes one message of a queue that is there, once nobody else reads it, and never acknowledges it.
pub struct Intruder {
    runtime: Runtime,
    connection: Connection,
    consumer: lapin::Consumer,
}

impl Intruder {
    pub fn next_in(world: &World, queue: &str) -> Self {
        let runtime = runtime_beside();
        let (connection, consumer) = runtime.block_on(async {
            let connection = Connection::connect(&world.amqp(), ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await;
            (connection, consumer.unwrap())
        });
        Self { runtime, connection, consumer }
    }

    /// Takes the message for none that it will ever handle, and then the next one.
    pub fn refuses_one(&mut self) {
        self.runtime.block_on(async {
            let message = self.consumer.next().await.expect("a message").unwrap();
            message.nack(BasicNackOptions { requeue: false, ..BasicNackOptions::default() }).await.unwrap();
        });
    }

    pub fn leave(self) {
        self.runtime.block_on(self.connection.close(0, "done".into())).unwrap();
    }
}
