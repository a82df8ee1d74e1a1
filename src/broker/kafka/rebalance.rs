//! What librdkafka calls from within a member's poll: partitions come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::connection::{self, Complaints};
use super::group::{Place, State, store};

/// How long the group may take to say where it is.
const POSITIONS: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);

/// A member as librdkafka knows it.
pub(super) struct Group {
    pub state: Arc<State>,
    pub complaints: Arc<Complaints>,
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        connection::log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.complaints.note(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.state.told(&statistics);
    }
}

fn places(list: &TopicPartitionList) -> Vec<Place> {
    list.elements().iter().map(|element| (element.topic().into(), element.partition())).collect()
}

impl ConsumerContext for Group {
    /// In place of what rdkafka does by itself, which cannot say where to begin.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let done = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.come(consumer, list);
                consumer.incremental_assign(list)
            }
            // There is nothing else but revocations.
            _ => {
                self.go(consumer, list);
                consumer.incremental_unassign(list)
            }
        };
        if let Err(error) = done {
            self.state.lose(format!("the group's partitions are not taken or given back: {error}"));
        }
    }
}

impl Group {
    fn come(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        let places = places(list);
        tracing::debug!(consumer = %self.state.consumer, partitions = places.len(), "partitions come");
        // None is noted as ours then: nothing of them is handed out, and no position is stored.
        if self.state.is_over() {
            return;
        }
        if !places.is_empty()
            && let Err(error) = self.begin(consumer, list)
        {
            return self.state.lose(format!("where the group is cannot be known: {error}"));
        }
        self.state.come(places);
    }

    /// Where the group was in another topic of the same name says nothing about this one: all of it
    /// is new. librdkafka begins everywhere else by itself, where the group is.
    fn begin(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<(), ClientError> {
        for at in self.committed(consumer, list)?.elements() {
            let (topic, partition) = (at.topic(), at.partition());
            if self.state.is_of_another(topic, at.metadata()) {
                tracing::warn!(consumer = %self.state.consumer, topic, partition,
                    "the topic was deleted and is another one now: read from its beginning");
                list.set_partition_offset(topic, partition, Offset::Beginning)?;
            }
        }
        Ok(())
    }

    /// Where the group is. Asked again for a while: it may be moving to another coordinator.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Result<TopicPartitionList, ClientError> {
        let limit = Instant::now() + POSITIONS;
        loop {
            let answer = consumer.committed_offsets(list.clone(), POSITIONS).and_then(|committed| {
                committed.elements().iter().try_for_each(|at| at.error())?;
                Ok(committed)
            });
            if answer.is_ok() || Instant::now() > limit || self.state.is_over() {
                return answer;
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn go(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let places = places(list);
        if places.is_empty() {
            return;
        }
        let lost = consumer.assignment_lost();
        if !lost {
            self.state.hand_over(&places);
            if let Some(positions) = self.state.positions(Some(&places)) {
                store(&self.state, consumer, &positions);
                if let Err(error) = consumer.commit(&positions, CommitMode::Sync) {
                    tracing::debug!(consumer = %self.state.consumer, %error, "positions are not committed");
                }
            }
        }
        tracing::debug!(consumer = %self.state.consumer, partitions = places.len(), lost, "partitions go");
        self.state.forget(&places);
    }
}
