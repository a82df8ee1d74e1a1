//! audit: one row in the trail for every step of a job's life, and the event that says so.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Declaration, Effects, Handler, HandlerError, Message};
use crate::broker::Source;
use crate::domain::Id;
use crate::domain::catalogue::Order;
use crate::domain::factory::EventFactory;
use crate::domain::payload::{AuditJobLifecycle, AuditTarget, JobCancelled, Payload};
use crate::store::{AuditRow, Effect};

const LIFECYCLE: &[&str] = &["audit.job.lifecycle"];

/// Writes the audit trail.
pub struct Audit {
    factory: Arc<EventFactory>,
}

impl Audit {
    pub fn new(factory: Arc<EventFactory>) -> Self {
        Self { factory }
    }

    fn effects(&self, message: &Message) -> Result<Effects, HandlerError> {
        let headers = &message.headers;
        // Who acted, where the event says so; else its owner.
        let actor: Arc<str> = if &*headers.event_type == JobCancelled::TYPE {
            let cancelled: JobCancelled = message.payload()?;
            match cancelled.cancelled_by {
                crate::domain::payload::CancelledBy::User => headers.user_id.clone(),
                other => format!("{other:?}").to_lowercase().into(),
            }
        } else {
            headers.user_id.clone()
        };
        let audit_id = Id::new();
        let payload = AuditJobLifecycle {
            audit_id,
            actor_user_id: actor.to_string(),
            target_resource_id: headers.aggregate_id.to_string(),
            target_resource_type: AuditTarget::Job,
            timestamp: headers.occurred_at,
            ip_address: None,
            chain_no: None,
            previous_digest: None,
            digest: None,
            event_id: headers.event_id,
            event_type: headers.event_type.to_string(),
            sequence: headers.sequence,
        };
        let row = AuditRow {
            audit_id,
            audit_type: AuditJobLifecycle::TYPE,
            actor_user_id: actor,
            target_resource_type: "job",
            target_resource_id: headers.aggregate_id.to_string(),
            at: headers.occurred_at,
            details: serde_json::json!({
                "event_id": headers.event_id,
                "event_type": headers.event_type,
                "sequence": headers.sequence,
            }),
        };
        let event = self.factory.draft(&payload, &headers.user_id, &message.cause(), headers.occurred_at)?;
        Ok(Effects { events: vec![event], rows: vec![Effect::Audit(row)], ..Effects::default() })
    }
}

pub fn declaration() -> Declaration {
    Declaration {
        name: "audit",
        source: Source::Queue {
            name: "job-events-audit".into(),
            bindings: vec![("job.events".into(), "job.#".into())],
            exclusive: false,
        },
        consumes: &[
            ("job.submitted", LIFECYCLE),
            ("job.completed", LIFECYCLE),
            ("job.failed", LIFECYCLE),
            ("job.cancelled", LIFECYCLE),
        ],
        order: Order::Aggregate,
    }
}

#[async_trait]
impl Handler for Audit {
    fn declaration(&self) -> Declaration {
        declaration()
    }

    async fn handle(&self, batch: &[Message]) -> Vec<Result<Effects, HandlerError>> {
        batch.iter().map(|message| self.effects(message)).collect()
    }
}
