//! The ids of the schemas that this gateway writes with.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::KafkaError;
use super::topology::{KafkaTopology, prefixed};
use crate::config::Kafka as KafkaConfig;
use crate::domain::catalogue::EventType;
use crate::schema_registry::{RegistryError, SchemaRegistry, subject};

/// One record type in one topic.
struct Written {
    topic: Arc<str>,
    event_type: Arc<EventType>,
    subject: String,
}

/// The registry and what it has answered.
pub(super) struct Schemas {
    pub registry: SchemaRegistry,
    written: Vec<Written>,
    ids: RwLock<Ids>,
}

/// By topic (without prefix), then type.
type ByTopic = HashMap<Arc<str>, HashMap<Arc<str>, u32>>;

#[derive(Default)]
struct Ids {
    of: ByTopic,
    /// Every id that this process has had for a type. A registry that has lost what it knew gives
    /// others; records with the former are in the topics all the same.
    ever: HashMap<Arc<str>, Vec<u32>>,
    /// How often they were asked for: what was cached by id before is not to be trusted.
    generation: u64,
}

impl Ids {
    fn answered(&mut self, of: ByTopic) {
        for (event_type, id) in of.values().flatten() {
            let ever = self.ever.entry(event_type.clone()).or_default();
            if !ever.contains(id) {
                ever.push(*id);
            }
        }
        self.of = of;
        self.generation += 1;
    }

    fn are_ours(&self, id: u32, event_type: &str) -> bool {
        self.ever.get(event_type).is_some_and(|ids| ids.contains(&id))
    }
}

impl Schemas {
    pub fn new(registry: SchemaRegistry, topology: &KafkaTopology, config: &KafkaConfig) -> Self {
        let written = (topology.types.iter())
            .map(|(topic, event_type)| Written {
                topic: topic.clone(),
                event_type: event_type.clone(),
                subject: subject(&prefixed(config, topic), event_type.record_name()),
            })
            .collect();
        Self { registry, written, ids: RwLock::default() }
    }

    /// Registers or looks up the schema of every type in every topic.
    ///
    /// # Errors
    /// [`KafkaError::Schemas`] lists what the registry refuses or lacks.
    pub async fn prepare(&self) -> Result<(), KafkaError> {
        let mut of = ByTopic::new();
        let mut wrong = Vec::new();
        for written in &self.written {
            match self.registry.prepare(&written.subject, written.event_type.schema_text()).await {
                Ok(id) => {
                    of.entry(written.topic.clone()).or_default().insert(written.event_type.name.clone(), id);
                }
                Err(error @ (RegistryError::NotFound(_) | RegistryError::Refused(_))) => wrong.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        if !wrong.is_empty() {
            return Err(KafkaError::Schemas(wrong));
        }
        self.ids.write().answered(of);
        Ok(())
    }

    /// Asks for one of the schemas: the registry answers, and with what it answered before.
    /// If not (a registry in memory was restarted), everything is asked for anew.
    pub async fn verify(&self) -> Result<(), KafkaError> {
        let Some(first) = self.written.first() else { return Ok(self.registry.ping().await?) };
        match self.registry.find(&first.subject, first.event_type.schema_text()).await {
            Ok(id) if self.id(&first.topic, &first.event_type.name) == Some(id) => Ok(()),
            Ok(_) | Err(RegistryError::NotFound(_)) => self.prepare().await,
            Err(error) => Err(error.into()),
        }
    }

    /// The id to write an event of this type to this topic with; `None` before `prepare`
    /// and for what the catalogue does not send there.
    pub fn id(&self, topic: &str, event_type: &str) -> Option<u32> {
        self.ids.read().of.get(topic)?.get(event_type).copied()
    }

    /// Is this an id that we write this type with, or have written, in whatever topic?
    pub fn is_ours(&self, id: u32, event_type: &str) -> bool {
        self.ids.read().are_ours(id, event_type)
    }

    /// Changes whenever the ids were asked for anew.
    pub fn generation(&self) -> u64 {
        self.ids.read().generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_the_registry_lost_its_ids_is_still_ours() {
        let with = |id| ByTopic::from([("job-lifecycle".into(), HashMap::from([("job.failed".into(), id)]))]);
        let mut ids = Ids::default();
        ids.answered(with(7));
        ids.answered(with(3));
        assert!(ids.are_ours(7, "job.failed") && ids.are_ours(3, "job.failed"));
        assert!(!ids.are_ours(7, "job.completed") && !ids.are_ours(4, "job.failed"));
        assert_eq!(ids.of["job-lifecycle"]["job.failed"], 3, "what is written now");
        assert_eq!(ids.generation, 2);
    }
}
