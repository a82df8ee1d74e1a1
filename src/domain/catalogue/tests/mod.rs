//! The built-in catalogue, what contradicts itself, and what encoding and decoding promise.

mod built_in;
mod contradictions;
mod docs;
mod encoding;
mod police;

use std::sync::{Arc, LazyLock};

use super::conform::samples;
use super::*;
use crate::domain::event::Origin;
use crate::domain::job::{Priority, ResourceRequest, RunnerKind, TaccSystem};
use crate::domain::payload::*;
use crate::domain::{EventDraft, Id, Timestamp};

static CATALOGUE: LazyLock<Arc<Catalogue>> =
    LazyLock::new(|| Catalogue::load(&[]).unwrap_or_else(|errors| panic!("{errors:#?}")));

fn get(name: &str) -> &'static Arc<EventType> {
    CATALOGUE.get(name).unwrap_or_else(|| panic!("no type {name}"))
}

fn submitted() -> JobSubmitted {
    JobSubmitted {
        job_id: Id::new(),
        job_name: "M31, band 4".to_owned(),
        agent: "AlphaCal".to_owned(),
        dataset_id: "vla-2026-113".to_owned(),
        tacc_system: TaccSystem::Frontera,
        resource_request: ResourceRequest::default(),
        estimated_cost_usd: 1.4,
        priority: Priority::High,
    }
}

fn submit_requested() -> SubmitJobRequested {
    SubmitJobRequested {
        job_id: Id::new(),
        attempt: 2,
        runner: RunnerKind::External,
        agent: "AlphaCal".to_owned(),
        dataset_id: "vla-2026-113".to_owned(),
        params: r#"{"threshold":5,"runner":"no"}"#.to_owned(),
        resource_request: ResourceRequest::default(),
        wall_time_minutes: 60,
    }
}

/// A committed event with everything set that may be.
fn event(event_type: &Arc<EventType>, payload: EncodedPayload) -> Event {
    let aggregate_id = event_type.aggregate_id(&payload.json).unwrap();
    Event {
        position: 77,
        sequence: 3,
        user_offset: event_type.audience.user.then_some(41),
        origin: Origin::default(),
        draft: EventDraft {
            event_id: Id::new(),
            event_type: event_type.clone(),
            aggregate_id,
            user_id: "ada".into(),
            occurred_at: Timestamp(1_795_253_400_123),
            correlation_id: Id::new(),
            causation_id: Some(Id::new()),
            tags: vec!["night".to_owned(), "übung".to_owned()],
            payload,
            traceparent: None,
            skip: Vec::new(),
        },
    }
}

fn first_sample(event_type: &EventType) -> EncodedPayload {
    let sample = samples(event_type.payload_schema()).next().unwrap();
    event_type.encode_json(sample.to_string().into()).unwrap()
}
