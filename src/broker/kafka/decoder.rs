//! From Confluent's wire format to the records that the consumers here understand.

use std::sync::Arc;

use apache_avro::Schema;
use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::unsync::Cache;

use super::Shared;
use super::publisher::MAGIC;
use crate::domain::catalogue::EventType;
use crate::schema_registry::RegistryError;

/// Writers' schemas kept; a registry has one for each version of each type.
const CACHE: usize = 1024;

/// Decodes for one subscription. Only schemas are cached, never failures.
pub(super) struct Decoder {
    shared: Arc<Shared>,
    types: Vec<Arc<EventType>>,
    cache: Mutex<Cached>,
}

struct Cached {
    schemas: Cache<u32, Arc<Schema>>,
    generation: u64,
}

/// What a body needs before it can be read.
pub(super) enum Needs {
    Nothing,
    /// The schema with this id.
    Schema(u32),
}

impl Decoder {
    pub fn new(shared: Arc<Shared>) -> Self {
        let mut types: Vec<_> = shared.topology.types.iter().map(|(_, event_type)| event_type.clone()).collect();
        types.dedup_by(|a, b| a.name == b.name);
        let cache = Mutex::new(Cached { schemas: Cache::new(CACHE), generation: 0 });
        Self { shared, types, cache }
    }

    pub fn needs(&self, event_type: &str, body: &[u8]) -> Needs {
        match split(body) {
            Ok((id, _)) if self.reader(event_type).is_some() && !self.shared.schemas.is_ours(id, event_type) => {
                if self.cached(id).is_some() { Needs::Nothing } else { Needs::Schema(id) }
            }
            // Ours, unreadable, or of a type that nobody here reads.
            _ => Needs::Nothing,
        }
    }

    /// Fetches a writer's schema.
    ///
    /// # Errors
    /// The registry's. A schema that cannot be parsed counts as not there.
    pub async fn load(&self, id: u32) -> Result<(), RegistryError> {
        let generation = self.shared.schemas.generation();
        let text = self.shared.schemas.registry.schema_by_id(id).await?;
        let schema = Schema::parse_str(&text)
            .map_err(|error| RegistryError::NotFound(format!("readable Avro schema with id {id}: {error}")))?;
        let mut cache = self.cache.lock();
        if cache.generation != generation {
            cache.schemas.clear();
            cache.generation = generation;
        }
        cache.schemas.insert(id, Arc::new(schema));
        Ok(())
    }

    /// The record as this gateway's version of the type has it, without prefix.
    ///
    /// # Errors
    /// Why it can never be read.
    pub fn decode(&self, event_type: &str, body: &Bytes) -> Result<Bytes, String> {
        let (id, start) = split(body)?;
        let record = body.slice(start..);
        let Some(reader) = self.reader(event_type) else { return Ok(record) };
        if self.shared.schemas.is_ours(id, event_type) {
            return Ok(record);
        }
        let writer = self.cached(id).ok_or_else(|| format!("the schema registry has no schema with id {id}"))?;
        reader
            .resolve_record(&writer, &record)
            .map_err(|error| format!("written with schema {id}, which does not fit {event_type}: {error}"))
    }

    fn reader(&self, event_type: &str) -> Option<&Arc<EventType>> {
        self.types.iter().find(|known| *known.name == *event_type)
    }

    fn cached(&self, id: u32) -> Option<Arc<Schema>> {
        let cache = self.cache.lock();
        if cache.generation != self.shared.schemas.generation() {
            return None;
        }
        cache.schemas.get(&id).cloned()
    }
}

/// The schema's id and where the record begins.
fn split(body: &[u8]) -> Result<(u32, usize), String> {
    match body.split_first_chunk::<5>() {
        Some(([MAGIC, id @ ..], _)) => Ok((u32::from_be_bytes(*id), 5)),
        _ => Err("the body is not in Confluent's wire format (a zero byte, then a schema's id)".to_owned()),
    }
}
