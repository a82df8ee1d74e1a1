//! The ledger: every leg of an event, whether a broker owes it or a consumer.
//!
//! What has happened is read from the store; what is still owed by a consumer follows
//! from its declaration, because a consumer that has not got to an event leaves no row.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::consumer::Declaration;
use crate::domain::catalogue::Route;
use crate::domain::{Broker, Id, Principal, Timestamp};
use crate::service::ServiceError;
use crate::store::{Deliveries, EffectRow, EffectState, LegRow, LegState, Store};

/// Who has to take an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LegKind {
    Broker,
    Consumer,
}

/// Where a leg stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LegStatus {
    /// Nothing has been tried yet.
    Pending,
    Done,
    /// Failed and will be tried again.
    Retrying,
    /// Waits behind a failed event of the same key.
    Parked,
    /// Given up; later events of its key wait behind it.
    Dead,
    /// Not owed; `reason` says why.
    Skipped,
}

/// One delivery obligation of an event.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Leg {
    pub kind: LegKind,
    /// The broker or the consumer.
    pub name: String,
    /// Exchange and routing key, topic and record key, or subject.
    #[schema(required = true)]
    pub target: Option<String>,
    pub state: LegStatus,
    pub attempts: u32,
    /// Where the broker has put it.
    #[schema(required = true)]
    pub position: Option<String>,
    #[schema(required = true)]
    pub updated_at: Option<Timestamp>,
    /// The next attempt.
    #[schema(required = true)]
    pub next_at: Option<Timestamp>,
    #[schema(required = true)]
    pub last_error: Option<String>,
    /// Why it is skipped.
    #[schema(required = true)]
    pub reason: Option<String>,
}

/// An event and all of its legs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct EventDeliveries {
    pub event_id: Id,
    #[schema(value_type = String)]
    pub event_type: Arc<str>,
    #[schema(value_type = String)]
    pub aggregate_type: Arc<str>,
    #[schema(value_type = String)]
    pub aggregate_id: Arc<str>,
    #[schema(minimum = 1)]
    pub sequence: i64,
    pub occurred_at: Timestamp,
    /// Brokers first, then consumers.
    pub legs: Vec<Leg>,
}

/// A page of a job's ledger, oldest event first.
#[derive(Clone, Debug)]
pub struct LedgerPage {
    pub items: Vec<EventDeliveries>,
    /// The commit position after which the next page begins; `None` at the end.
    pub next: Option<i64>,
}

/// Answers "where is my event?".
pub struct Ledger {
    store: Arc<dyn Store>,
    consumers: Vec<Declaration>,
}

impl Ledger {
    /// `consumers`: everybody who leaves inbox rows (not the live consumer).
    pub fn new(store: Arc<dyn Store>, consumers: Vec<Declaration>) -> Self {
        Self { store, consumers }
    }

    /// One event. [`ServiceError::NotFound`] also for events of others.
    pub async fn event(&self, principal: &Principal, id: Id) -> Result<EventDeliveries, ServiceError> {
        let found = self.store.event_deliveries(id).await?.ok_or(ServiceError::NotFound)?;
        if !principal.may_see(&found.event) {
            return Err(ServiceError::NotFound);
        }
        Ok(self.legs(&found))
    }

    /// The events and commands of a job in commit order, from after `after`.
    pub async fn job(
        &self,
        principal: &Principal,
        job: Id,
        after: Option<i64>,
        limit: u32,
    ) -> Result<LedgerPage, ServiceError> {
        let owner = self.store.job(job).await?.ok_or(ServiceError::NotFound)?.user_id;
        if !principal.may_read(&owner) {
            return Err(ServiceError::NotFound);
        }
        // One more than asked tells whether there is a next page.
        let mut found = self.store.job_deliveries(job, after, limit.saturating_add(1)).await?;
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let next = if more { found.last().map(|last| last.event.position) } else { None };
        Ok(LedgerPage { items: found.iter().map(|deliveries| self.legs(deliveries)).collect(), next })
    }

    fn legs(&self, deliveries: &Deliveries) -> EventDeliveries {
        let event = &deliveries.event;
        let routes = event.event_type.routes(&event.aggregate_id, &event.payload.json);
        let mut legs: Vec<Leg> = deliveries.legs.iter().map(|leg| broker_leg(leg, &routes)).collect();
        legs.extend(deliveries.effects.iter().map(consumer_leg));
        // What a declared consumer has left no row of is still owed.
        let owed = self.consumers.iter().filter(|consumer| consumer.handles(&event.event_type.name));
        for consumer in owed {
            if !deliveries.effects.iter().any(|effect| &*effect.consumer == consumer.name) {
                legs.push(pending(LegKind::Consumer, consumer.name));
            }
        }
        legs.sort_by(|a, b| (a.kind == LegKind::Consumer).cmp(&(b.kind == LegKind::Consumer)).then(a.rank(b)));
        EventDeliveries {
            event_id: event.event_id,
            event_type: event.event_type.name.clone(),
            aggregate_type: event.event_type.aggregate.clone(),
            aggregate_id: event.aggregate_id.clone(),
            sequence: event.sequence,
            occurred_at: event.occurred_at,
            legs,
        }
    }
}

impl Leg {
    /// Brokers in the order of their numbers, consumers by name.
    fn rank(&self, other: &Self) -> std::cmp::Ordering {
        let broker = |leg: &Self| Broker::ALL.iter().position(|broker| broker.as_str() == leg.name);
        broker(self).cmp(&broker(other)).then_with(|| self.name.cmp(&other.name))
    }
}

fn pending(kind: LegKind, name: &str) -> Leg {
    Leg {
        kind,
        name: name.to_owned(),
        target: None,
        state: LegStatus::Pending,
        attempts: 0,
        position: None,
        updated_at: None,
        next_at: None,
        last_error: None,
        reason: None,
    }
}

fn broker_leg(leg: &LegRow, routes: &[Route]) -> Leg {
    let route = routes.iter().find(|route| route.broker == leg.broker);
    let state = match leg.state {
        LegState::Done => LegStatus::Done,
        LegState::Skipped => LegStatus::Skipped,
        LegState::Dead => LegStatus::Dead,
        LegState::Pending if leg.attempts > 0 => LegStatus::Retrying,
        LegState::Pending => LegStatus::Pending,
    };
    Leg {
        target: route.map(target),
        state,
        attempts: leg.attempts,
        position: leg.offset.map(|offset| match leg.partition {
            Some(partition) => format!("{partition}/{offset}"),
            None => offset.to_string(),
        }),
        updated_at: Some(leg.at),
        next_at: leg.next_at,
        last_error: leg.error.clone(),
        reason: leg.skip.map(|skip| skip.as_str().to_owned()),
        ..pending(LegKind::Broker, leg.broker.as_str())
    }
}

/// What people look for in that broker's own tools.
fn target(route: &Route) -> String {
    match route.broker {
        Broker::Rabbitmq | Broker::Kafka => format!("{} {}", route.target, route.key),
        Broker::Nats => route.target.to_string(),
    }
}

fn consumer_leg(effect: &EffectRow) -> Leg {
    Leg {
        state: match effect.state {
            EffectState::Done => LegStatus::Done,
            EffectState::Retrying => LegStatus::Retrying,
            EffectState::Parked => LegStatus::Parked,
            EffectState::Dead => LegStatus::Dead,
        },
        attempts: effect.attempts,
        updated_at: Some(effect.at),
        next_at: effect.next_at,
        last_error: effect.error.clone(),
        ..pending(LegKind::Consumer, &effect.consumer)
    }
}
