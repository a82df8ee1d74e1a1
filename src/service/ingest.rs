//! Taking in events that others have made, of the types the catalogue lets their role post.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::{Context, EventService, FieldError, ServiceError, encode};
use crate::domain::factory::Cause;
use crate::domain::{EventDraft, Id, Timestamp};
use crate::store::{IdempotencyClaim, IdempotencyKey, StoredResponse, Unit};

/// An event from outside.
#[derive(Clone, Debug)]
pub struct IngestEvent {
    /// With `source` the key that makes a repeat harmless.
    pub id: String,
    pub source: String,
    pub event_type: String,
    /// When it happened; when it arrived if missing.
    pub time: Option<Timestamp>,
    /// The payload, as JSON.
    pub data: Bytes,
    /// What it belongs to, if it says so itself; else the request's.
    pub cause: Option<Cause>,
}

/// An event that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingested {
    pub event_id: Id,
    /// It had been taken in before.
    pub repeated: bool,
}

/// What is kept to answer a repeat.
#[derive(Serialize, Deserialize)]
struct Kept {
    event_id: Id,
}

const ROUTE: &str = "POST /api/v1/events";

impl EventService {
    /// Takes in events. All are checked before any is written; then each is committed on
    /// its own under the key (source, id), so that the same call may be repeated as a
    /// whole. One whose key came with other content before is refused alone.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] with fields `events.N.field`, [`ServiceError::Forbidden`]:
    /// nothing was written. Others: repeat the call.
    pub async fn ingest(
        &self,
        context: &Context,
        events: Vec<IngestEvent>,
    ) -> Result<Vec<Result<Ingested, ServiceError>>, ServiceError> {
        let limit = self.options.batch_limit;
        if events.is_empty() || events.len() > limit {
            let message = format!("takes 1 to {limit} events, these are {}", events.len());
            return Err(ServiceError::Invalid(vec![FieldError::new("events", "out_of_range", message)]));
        }
        let checked = self.check_events(context, &events)?;
        // The same event twice in one call is one event.
        let mut first: BTreeMap<IdempotencyKey, usize> = BTreeMap::new();
        let mut same_as = Vec::with_capacity(checked.len());
        let mut pending = Vec::new();
        for (index, (draft, claim)) in checked.into_iter().enumerate() {
            same_as.push(*first.entry(claim.key.clone()).or_insert(index));
            if same_as[index] == index {
                pending.push((index, claim.fingerprint, self.take_in(draft, claim)));
            } else if !pending.iter().any(|(of, print, _)| *of == same_as[index] && *print == claim.fingerprint) {
                let message = "has the source and id of another event in this batch, but not its content";
                let field = format!("events.{index}.id");
                return Err(ServiceError::Invalid(vec![FieldError::new(field, "duplicate", message)]));
            }
        }
        let (indexes, futures): (Vec<usize>, Vec<_>) =
            pending.into_iter().map(|(index, _, future)| (index, future)).unzip();
        let mut done = BTreeMap::new();
        for (index, result) in indexes.into_iter().zip(join_all(futures).await) {
            match result {
                Ok(_) | Err(ServiceError::KeyReused) => done.insert(index, result),
                Err(error) => return Err(error),
            };
        }
        Ok(same_as
            .into_iter()
            .enumerate()
            .map(|(index, of)| match done.get(&of) {
                Some(Ok(ingested)) => Ok(Ingested { repeated: ingested.repeated || index != of, ..*ingested }),
                _ => Err(ServiceError::KeyReused),
            })
            .collect())
    }

    /// Drafts of all events, or everything that is wrong with them.
    fn check_events(
        &self,
        context: &Context,
        events: &[IngestEvent],
    ) -> Result<Vec<(EventDraft, IdempotencyClaim)>, ServiceError> {
        let mut errors = Vec::new();
        let mut drafts = Vec::with_capacity(events.len());
        for (index, event) in events.iter().enumerate() {
            let mut wrong = |field: &str, code, message: String| {
                errors.push(FieldError::new(format!("events.{index}.{field}"), code, message));
            };
            let named = |text: &str, most: usize| {
                (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control)
            };
            if !named(&event.id, 255) {
                wrong("id", "out_of_range", "must have 1 to 255 characters without control characters".into());
            }
            if !named(&event.source, 500) || event.source.contains(' ') {
                wrong("source", "out_of_range", "must be a URI reference of 1 to 500 characters".into());
            }
            let Some(event_type) = self.factory.catalogue().get(&event.event_type) else {
                wrong(
                    "type",
                    "unknown_value",
                    format!("'{}' is not in the catalogue; GET /api/v1/catalogue lists the types", event.event_type),
                );
                continue;
            };
            if !event_type.ingest.iter().any(|role| context.principal.has(*role)) {
                return Err(ServiceError::Forbidden(match event_type.ingest.as_slice() {
                    [] => format!("events of type {} are made by the gateway alone", event_type.name),
                    roles => {
                        let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                        format!("posting events of type {} needs the role {}", event_type.name, roles.join(" or "))
                    }
                }));
            }
            let encoded = match event_type.encode_json(event.data.clone()) {
                Ok(encoded) => encoded,
                Err(_) => {
                    for violation in event_type.violations(&event.data) {
                        let field = match &*violation.field {
                            "payload" => "data".to_owned(),
                            field => format!("data.{field}"),
                        };
                        wrong(&field, "schema", violation.reason);
                    }
                    continue;
                }
            };
            self.factory.check_size(event_type, &encoded)?;
            let aggregate_id = event_type
                .aggregate_id(&encoded.json)
                .map_err(|error| ServiceError::Internal(format!("aggregate of {}: {error}", event_type.name)))?;
            let cause = event.cause.as_ref().unwrap_or(&context.cause);
            let draft = EventDraft {
                event_id: Id::new(),
                event_type: event_type.clone(),
                aggregate_id,
                user_id: context.principal.user_id.clone(),
                occurred_at: event.time.unwrap_or(context.received_at),
                correlation_id: cause.correlation_id,
                causation_id: cause.causation_id,
                tags: Vec::new(),
                payload: encoded,
                traceparent: cause.traceparent.clone(),
                skip: Vec::new(),
            };
            let claim = claim(context, event, &draft)?;
            drafts.push((draft, claim));
        }
        if errors.is_empty() { Ok(drafts) } else { Err(ServiceError::Invalid(errors)) }
    }

    async fn take_in(&self, draft: EventDraft, claim: IdempotencyClaim) -> Result<Ingested, ServiceError> {
        let unit = Unit { events: vec![draft], idempotency: Some(claim), ..Unit::default() };
        let answer = self.commit_claimed(unit).await?;
        let kept: Kept = serde_json::from_slice(&answer.body)
            .map_err(|error| ServiceError::Internal(format!("a stored answer: {error}")))?;
        Ok(Ingested { event_id: kept.event_id, repeated: answer.repeated })
    }
}

/// The key is (source, id); the content is what they stand for, however it was sent.
fn claim(context: &Context, event: &IngestEvent, draft: &EventDraft) -> Result<IdempotencyClaim, ServiceError> {
    let mut content = sha2::Sha256::new();
    content.update(event.event_type.as_bytes());
    content.update([0]);
    content.update(&draft.payload.json);
    Ok(IdempotencyClaim {
        key: IdempotencyKey {
            user_id: context.principal.user_id.clone(),
            route: Arc::from(ROUTE),
            // A source has no spaces.
            key: format!("{} {}", event.source, event.id).into(),
        },
        fingerprint: content.finalize().into(),
        response: StoredResponse { status: 202, location: None, body: encode(&Kept { event_id: draft.event_id })? },
        at: context.received_at,
    })
}
