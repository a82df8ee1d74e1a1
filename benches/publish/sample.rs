//! The message that is published: an event such as most are.

use std::sync::Arc;

use event_gateway::broker::Outgoing;
use event_gateway::broker::cloudevents::attributes;
use event_gateway::domain::catalogue::{Catalogue, EventType, Route};
use event_gateway::domain::{Broker, Event, EventDraft, Id, Origin, Timestamp};

/// Events of one type on one route, each with an id and an aggregate of its own.
pub struct Sample {
    pub event_type: Arc<EventType>,
    pub route: Route,
    event: Event,
}

impl Sample {
    /// About 700 bytes with its headers.
    pub fn new(broker: Broker, target: &str, key: Option<&str>) -> Self {
        let catalogue = Catalogue::load(&[]).expect("the built-in catalogue");
        let event_type = catalogue.get("job.status.changed").expect("a type of it").clone();
        let payload = serde_json::json!({
            "job_id": Id::new(), "previous_status": "QUEUED", "new_status": "RUNNING", "attempt": 1, "progress": 0.5,
        });
        let event = Event {
            position: 1,
            sequence: 1,
            user_offset: Some(1),
            origin: Origin::default(),
            draft: EventDraft {
                event_id: Id::new(),
                event_type: event_type.clone(),
                aggregate_id: Id::new().to_string().into(),
                user_id: "bench".into(),
                occurred_at: Timestamp::now(),
                correlation_id: Id::new(),
                causation_id: None,
                tags: Vec::new(),
                payload: event_type.encode_json(payload.to_string().into()).expect("a payload of the type"),
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
                skip: Vec::new(),
            },
        };
        let route = Route { broker, target: target.into(), key: key.unwrap_or_default().into(), optional: false };
        Self { event_type, route, event }
    }

    /// What the relay would hand to the adapter. Without a key of its own a message's is its aggregate.
    pub fn window(&self, messages: usize) -> Vec<Outgoing> {
        let outgoing = || {
            let aggregate_id: Arc<str> = Id::new().to_string().into();
            let draft =
                EventDraft { event_id: Id::new(), aggregate_id: aggregate_id.clone(), ..self.event.draft.clone() };
            let mut route = self.route.clone();
            if route.key.is_empty() {
                route.key = aggregate_id;
            }
            Outgoing { event: Arc::new(Event { draft, origin: Origin::default(), ..self.event.clone() }), route }
        };
        (0..messages).map(|_| outgoing()).collect()
    }

    /// The headers' names, with the broker's prefix, and texts; made once by a bare client.
    pub fn headers(&self, prefix: &str) -> Vec<(String, String)> {
        headers(&self.event, prefix)
    }

    pub fn json(&self) -> bytes::Bytes {
        self.event.payload.json.clone()
    }
}

/// The headers' names, with the broker's prefix, and texts.
pub fn headers(event: &Event, prefix: &str) -> Vec<(String, String)> {
    let envelope = event.headers();
    attributes(&envelope).map(|(name, text)| (format!("{prefix}{}", name.name()), text.into_owned())).collect()
}
