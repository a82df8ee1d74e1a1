//! Facts that are a log line and a counter at once. Whoever learns of one calls
//! `record`; that is the only place where the two are written, so they never disagree.

use std::fmt::Display;

use super::metrics::{ConsumerMetrics, FailureClass, Metrics, PublishFailure, Resync};
use super::readiness::ComponentState;
use crate::broker::PublishError;
use crate::domain::{Broker, Id, Timestamp};

/// A broker did not confirm a message.
pub struct PublishFailed<'a> {
    pub broker: Broker,
    pub event_id: Id,
    pub error: &'a PublishError,
}

impl PublishFailed<'_> {
    pub fn record(&self, metrics: &Metrics) {
        let Self { broker, event_id, error } = *self;
        let kind = match error {
            // A copy that nobody takes is skipped by design; what is on its way has not failed.
            PublishError::NoQueueBound | PublishError::Unsettled { .. } => return,
            PublishError::Permanent(_) => {
                tracing::error!(%broker, %event_id, %error, "publish failed for good; the leg is dead");
                PublishFailure::Permanent
            }
            PublishError::Transient(_) => {
                tracing::warn!(%broker, %event_id, %error, "publish failed; it will be tried again");
                PublishFailure::Transient
            }
            // One line a message would flood the log: ComponentChanged says it once.
            PublishError::Down(_) => {
                tracing::debug!(%broker, %event_id, %error, "publish failed; the broker is down");
                PublishFailure::Down
            }
        };
        metrics.publish_errors(broker, kind).inc();
    }
}

/// A consumer's handler failed on a message.
pub struct HandlerFailed<'a, E: Display> {
    pub consumer: &'a str,
    pub event_id: Option<Id>,
    pub class: FailureClass,
    /// Counts from 1.
    pub attempt: u32,
    pub error: E,
}

impl<E: Display> HandlerFailed<'_, E> {
    pub fn record(&self, metrics: &ConsumerMetrics) {
        let Self { consumer, event_id, class, attempt, error } = self;
        let event_id = event_id.as_ref().map(tracing::field::display);
        match class {
            FailureClass::Transient => {
                tracing::warn!(consumer, event_id, attempt, %error, "handler failed; it will be tried again");
            }
            FailureClass::Permanent => tracing::error!(consumer, event_id, attempt, %error, "handler failed for good"),
            FailureClass::Undecodable => {
                tracing::error!(consumer, event_id, %error, "a message cannot be decoded; it is in quarantine");
            }
        }
        metrics.handler_errors[*class].inc();
    }
}

/// A delivery was given up.
pub struct DeadLettered<'a, E: Display> {
    pub consumer: &'a str,
    pub key: &'a str,
    pub event_id: Option<Id>,
    pub attempts: u32,
    pub error: E,
}

impl<E: Display> DeadLettered<'_, E> {
    pub fn record(&self, metrics: &ConsumerMetrics) {
        let Self { consumer, key, event_id, attempts, error } = self;
        let event_id = event_id.as_ref().map(tracing::field::display);
        tracing::error!(
            consumer,
            key,
            event_id,
            attempts,
            %error,
            "dead letter; later events of its key wait behind it"
        );
        metrics.dead_letters.inc();
    }
}

/// A broker confirmed a message that its consumer never got.
pub struct Overdue<'a> {
    pub consumer: &'a str,
    pub event_id: Id,
    pub event_type: &'a str,
    pub broker: Broker,
    pub confirmed_at: Timestamp,
}

impl Overdue<'_> {
    pub fn record(&self, metrics: &ConsumerMetrics) {
        let Self { consumer, event_id, event_type, broker, confirmed_at } = *self;
        tracing::warn!(
            consumer, %event_id, event_type, %broker, %confirmed_at,
            "overdue: confirmed, but never came to its consumer (was a binding or a queue deleted?); \
             handing it over from the store"
        );
        metrics.overdue.inc();
    }
}

/// A component works again, wholly or not, or no longer does. Record changes only.
pub struct ComponentChanged<'a> {
    pub component: &'static str,
    pub state: ComponentState,
    pub why: &'a str,
}

impl ComponentChanged<'_> {
    pub fn record(&self, metrics: &Metrics) {
        let Self { component, state, why } = *self;
        match state {
            ComponentState::Up => tracing::info!(component, why, "component is up"),
            ComponentState::Degraded => tracing::warn!(component, why, "component is degraded"),
            ComponentState::Starting | ComponentState::Down => tracing::warn!(component, why, "component is down"),
        }
        let works = matches!(state, ComponentState::Up | ComponentState::Degraded);
        metrics.component_up(component).set(i64::from(works));
    }
}

/// A socket was told to start over from a snapshot.
pub struct SocketResynced<'a> {
    pub user_id: &'a str,
    pub channel: &'a dyn Display,
    pub reason: Resync,
}

impl SocketResynced<'_> {
    pub fn record(&self, metrics: &Metrics) {
        let Self { user_id, channel, reason } = *self;
        tracing::info!(user_id, %channel, ?reason, "socket resynchronised");
        metrics.socket_resyncs[reason].inc();
    }
}
