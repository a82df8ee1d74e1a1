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

#[derive(Default)]
struct Ids {
    /// By topic (without prefix), then type.
    of: HashMap<Arc<str>, HashMap<Arc<str>, u32>>,
    /// How often they were asked for: what was cached by id before is not to be trusted.
    generation: u64,
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
        let mut of: HashMap<Arc<str>, HashMap<Arc<str>, u32>> = HashMap::new();
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
        let mut ids = self.ids.write();
        ids.of = of;
        ids.generation += 1;
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

    /// Is this the id that we write this type with, in whatever topic?
    pub fn is_ours(&self, id: u32, event_type: &str) -> bool {
        self.ids.read().of.values().any(|types| types.get(event_type) == Some(&id))
    }

    /// Changes whenever the ids were asked for anew.
    pub fn generation(&self) -> u64 {
        self.ids.read().generation
    }
}
